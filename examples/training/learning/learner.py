"""One model in training: its weights over the processes, its optimizer, its average, and one step of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from septr_fast import SepTr, reference
from septr_fast.audio.channel_statistics import in_float64
from training.learning import start
from training.learning.ema import Average
from training.learning.objective import Objective
from training.options import Options

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What one process has of a batch.

    Attributes:
        spectrograms: `(clips, channels, mels, frames)`.
        targets: `(clips, classes)`, 1 for each label and 0 otherwise, or a mix of two such.
        weights: `(clips,)`: 1, or 0 for a clip that could not be read.
        total: `()`, the sum of the weights over all processes.
    """

    spectrograms: Tensor
    targets: Tensor
    weights: Tensor
    total: Tensor


class Learner:
    """A model, what trains it, and what it has gone through.

    Args:
        name: of the model, one of `options.MODELS`.
        options: of the run.
        arguments: of the model's constructor.
        classes: their names.
        objective: what the model is asked for.
        accelerator: which places the model and shares the work.
        starts: whether it takes the weights to start from; otherwise those of a saved state are going to be loaded.

    Attributes:
        module: the model without a wrapper; its parameters are sharded under FSDP2.
        average: of the weights; None without.
        history: one entry for each epoch.
        best: the best entry of `history`; None before the first.
        stale: epochs since then.
        sums: loss, right answers and clips of the epoch so far, `(3,)`, float64 (see `in_float64`), of this process.
        step_seconds: of each step of the run, where they are timed.
    """

    def __init__(
        self,
        name: str,
        options: Options,
        arguments: dict[str, Any],
        classes: tuple[str, ...],
        objective: Objective,
        accelerator: Accelerator,
        starts: bool = True,
    ) -> None:
        self.name, self.options, self.objective, self.accelerator = name, options, objective, accelerator
        self.module = build(name, arguments, options.seed)
        if options.from_ is not None and starts:
            _logger.info("%s: %s", name, start.load(start.read(options.from_), self.module, classes))
        if options.freeze:
            for key, parameter in self.module.named_parameters():
                parameter.requires_grad_(key.startswith("fc."))
        self.module.to(accelerator.device)
        if options.grad_checkpointing:
            cast(SepTr, self.module).set_grad_checkpointing()
        if options.compile:
            self.module.compile()
        self._called = self._shared_over_processes()
        groups = parameter_groups(self.module, arguments, options.weight_decay)
        self.optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(groups, lr=options.learning_rate))
        self.average = Average(self.module, options.ema) if options.ema else None
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.stale = 0
        self.sums = in_float64(torch.zeros(3, device=accelerator.device))
        self.step_seconds: list[float] = []

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return isinstance(self.module, FSDPModule)

    @property
    def is_exhausted(self) -> bool:
        """Whether the patience has run out."""
        return 0 < self.options.patience <= self.stale

    def step(self, share: Share, step: int, rate: float) -> None:
        """Train on one batch.

        The gradient is that of the weighted mean over the whole batch, however it is cut into processes and pieces.

        Args:
            share: of this process.
            step: index of the step in the run.
            rate: the learning rate.
        """
        self._called.train()
        self.gradients(share)
        if self.options.clip:
            self.accelerator.unscale_gradients(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step)

    def gradients(self, share: Share) -> None:
        """Add the gradients of one batch to those of the parameters, and its loss and right answers to `sums`."""
        pieces = [part.chunk(self.options.accumulate) for part in (share.spectrograms, share.targets, share.weights)]
        scale = self.accelerator.num_processes / share.total.clamp(min=1)
        for index, (spectrograms, targets, weights) in enumerate(zip(*pieces, strict=True)):
            with self._synchronized(index == self.options.accumulate - 1):
                logits = self.logits(spectrograms)
                loss = (weights * self.objective.losses(logits, targets)).sum()
                self.accelerator.backward(loss * scale)
            right = (weights * self.objective.right(logits, targets)).sum()
            self.sums += in_float64(torch.stack([loss.detach(), right, weights.sum()]))

    def logits(self, spectrograms: Tensor) -> Tensor:
        """Logits `(clips, classes)` in float32 or more, under the mixed precision of the run."""
        with self.accelerator.autocast():
            logits: Tensor = self._called(spectrograms)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Evaluation mode, with the averaged weights where there are any."""
        self._called.eval()
        with nullcontext() if self.average is None else self.average.in_place():
            yield
        self._called.train()

    def _shared_over_processes(self) -> nn.Module:
        """The module as it is to be called: as it is, sharded, or wrapped in DDP."""
        processes = self.accelerator.num_processes
        if processes > 1 and self.options.parallel == "fsdp2":
            mesh = init_device_mesh(self.accelerator.device.type, (processes,))
            # The root alone: SepTr reads the weights of its submodules without calling them.
            fully_shard(self.module, mesh=mesh, reshard_after_forward=True)
            return self.module
        return cast(nn.Module, self.accelerator.prepare_model(self.module))

    @contextmanager
    def _synchronized(self, synchronized: bool) -> Iterator[None]:
        """Exchange gradients between the processes in this backward pass, or only add them up."""
        if isinstance(self._called, FSDPModule):
            self._called.set_requires_gradient_sync(synchronized)
            yield
        elif isinstance(self._called, DistributedDataParallel) and not synchronized:
            with self._called.no_sync():
                yield
        else:
            yield


def build(name: str, arguments: dict[str, Any], seed: int) -> reference.SepTr:
    """A model with its starting weights, which follow from the seed alone and are the same for both models."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = SepTr if name == "septr" else reference.SepTr
        return kind(**arguments)


def parameter_groups(model: nn.Module, arguments: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """`SepTr.parameter_groups` for either model, sharded or not, in part frozen or not.

    `arguments` are those of its constructor.
    """
    with torch.device("meta"):
        template = SepTr(**arguments)
    names = {id(parameter): name for name, parameter in template.named_parameters()}
    own = dict(model.named_parameters())
    return [
        {**group, "params": [p for parameter in group["params"] if (p := own[names[id(parameter)]]).requires_grad]}
        for group in template.parameter_groups(weight_decay)
    ]
