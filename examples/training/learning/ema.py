"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Average:
    """The average of all weights over the steps so far, the latest counting most.

    Of a sharded model each process averages its own shard.

    Args:
        model: whose parameters are averaged, from their present values on.
        decay: share of the old average in the new one, at least 0 and below 1. In the first steps it is smaller,
            `(1 + step) / (10 + step)`, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.values = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            _own(self.values[name]).lerp_(_own(parameter), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the average as its weights meanwhile; afterwards it has its own, bit for bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            _own(parameter).copy_(_own(values[name]))


def _own(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
