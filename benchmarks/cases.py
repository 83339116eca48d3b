"""What is compared: one task at one size, done by models with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shapes import Config
from septr_fast import SepTr, reference

BASELINE = "reference"


@dataclass(frozen=True)
class Case:
    """A task at a size.

    Attributes:
        task: "inference" or "training step" (forward, backward, AdamW).
        batch: spectrograms at a time.
        config: constructor arguments of the model, `input_size` among them.
        rounds: how often each model is timed.
    """

    task: str
    batch: int
    config: Config = field(hash=False)
    rounds: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a spectrogram."""
        return reference.size_pair(self.config["input_size"], "input_size")

    @property
    def name(self) -> str:
        """Readable, and unique within a setting."""
        return f"{self.task}, {self.size[0]}x{self.size[1]}, batch {self.batch}"

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are compared, the baseline first."""
        names = (BASELINE, "SepTr")
        return (*names, "SepTr, recomputing") if self.task == "training step" else names


FULL = (
    Case("inference", 1, {"input_size": (128, 128)}, rounds=5),
    Case("inference", 4, {"input_size": (64, 64)}, rounds=5),
    Case("training step", 2, {"input_size": (64, 64)}, rounds=5),
)
"""The default setting: minutes on two cores."""

_TINY: Config = {"input_size": (12, 16), "depth": 2, "heads": 2, "mlp_dim": 16, "dim_head": 16, "dim": 16}
SMOKE = (Case("inference", 2, _TINY, rounds=2), Case("training step", 2, _TINY, rounds=2))
"""The same path on tiny shapes: seconds. Its times say nothing."""


def build(name: str, case: Case, num_classes: int) -> nn.Module:
    """The model `name` of `case`, every one from the same seed and so with the same parameters."""
    torch.manual_seed(0)
    if name == BASELINE:
        model: nn.Module = reference.SepTr(**case.config, num_classes=num_classes)
    else:
        model = SepTr(**case.config, num_classes=num_classes)
        model.set_grad_checkpointing(name == "SepTr, recomputing")
    return model.train(case.task == "training step")


def step(model: nn.Module, task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of spectrograms and labels that does `task` once with `model` and returns the logits."""
    if task == "inference":

        def infer(x: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = model(x)
            return logits

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train(x: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        logits: Tensor = model(x)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        return logits.detach()

    return train
