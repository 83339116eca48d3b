"""One model in many hands: threads that share it, and workers of data loaders that use it, forked and spawned."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from support.folding import fold_always
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from septr_fast import LogMel, SepTr
from trust.life.interruptions import CONFIG

THREADS = 8
SECONDS = 120
"""After which a worker that says nothing is an error."""


def threads(rounds: int) -> list[str]:
    """Let threads use one model, weights and front-end, changed between the rounds; what went wrong."""
    torch.manual_seed(0)
    model, front_end = SepTr(**CONFIG).eval(), LogMel(800, 4, fft_size=64, frames=5, standardize=True)
    waveforms = torch.randn(THREADS, 2, 400)
    wrong = []
    # A new thread starts with OpenMP's own number of threads, until PyTorch sets its own: bits depend on it.
    with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        for number in range(rounds):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.data.mul_(1.01).add_(0.001)
                expected = [logits(SepTr_like(model), front_end, waveform) for waveform in waveforms]
            barrier = Barrier(THREADS)

            def work(waveform: Tensor, barrier: Barrier = barrier) -> Tensor:
                barrier.wait(SECONDS)
                return logits(model, front_end, waveform)

            found = list(pool.map(work, waveforms))
            bad = [index for index in range(THREADS) if not torch.equal(found[index], expected[index])]
            wrong += [f"round {number}: thread {index} got other logits" for index in bad]
    return wrong


def SepTr_like(model: SepTr) -> SepTr:  # noqa: N802
    """A new model with the state of `model`."""
    fresh = SepTr(**CONFIG)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


@torch.no_grad()
def logits(model: SepTr, front_end: LogMel, waveforms: Tensor) -> Tensor:
    """What the model says of `(batch, samples)`."""
    result: Tensor = model(front_end(waveforms))
    return result


class Classified(Dataset[Tensor]):
    """Items are computed by the model and the front-end, wherever the loader asks for them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.front_end = SepTr(**CONFIG).eval(), LogMel(800, 4, fft_size=64, frames=5)
        self.waveforms = torch.randn(4, 1, 400)

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int) -> Tensor:
        return logits(self.model, self.front_end, self.waveforms[index])[0]


def _fold_always(_: int) -> None:
    """In a worker that is spawned small models are folded too, as they are here."""
    fold_always()


def workers(method: str, count: int) -> list[str]:
    """Let workers started by `method` compute items, after this process has; what went wrong."""
    data = Classified()
    expected = torch.stack([data[index] for index in range(len(data))])
    loader = DataLoader(
        data, 2, num_workers=count, multiprocessing_context=method, timeout=SECONDS, worker_init_fn=_fold_always
    )
    found = torch.cat(list(loader))
    return [] if torch.equal(found, expected) else [f"workers by {method} give other logits"]
