"""Which clips each process takes in which step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


def derived_seed(*parts: int | str) -> int:
    """A seed that follows from `parts` alone."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TrainingBatches(Sampler[list[int]]):
    """The share of one process in every batch of an epoch: clips in an order that follows from seed and epoch.

    The remainder that fills no batch is left out, another one in each epoch.

    Args:
        clips: number of clips.
        batch: clips of a step, over all processes.
        seed: of the order.
        process: index of this process.
        processes: their number; it divides `batch`.

    Raises:
        ValueError: for fewer clips than a batch has.
    """

    def __init__(self, clips: int, batch: int, seed: int, process: int = 0, processes: int = 1) -> None:
        if clips < batch:
            raise ValueError(f"batch: expected at most the {clips} clips to train on, got {batch}")
        self.clips, self.batch, self.seed = clips, batch, seed
        self.share = batch // processes
        self.first = process * self.share
        self.epoch, self.start = 0, 0

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return self.clips // self.batch

    def go_to(self, epoch: int, start: int) -> None:
        """Continue with step `start` of `epoch`; what lies before is not read."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        order = torch.randperm(self.clips, generator=generator)
        for step in range(self.start, self.steps):
            first = step * self.batch + self.first
            yield order[first : first + self.share].tolist()


class EvaluationBatches(Sampler[list[int]]):
    """The share of one process in all clips of a split, each clip in one process only.

    Every process gets as many batches of as many clips, as sharded models need it; a place without a clip repeats
    the last one and is not `real`.

    Args:
        clips: number of clips.
        batch: most clips of a batch of one process.
        process: index of this process.
        processes: their number.
    """

    def __init__(self, clips: int, batch: int, process: int = 0, processes: int = 1) -> None:
        self.clips, self.batch = clips, batch
        self.places = range(process, math.ceil(clips / processes) * processes, processes)

    def real(self) -> Iterator[Tensor]:
        """For each batch, which of its places `(places,)` hold a clip of their own."""
        for places in self._places():
            yield torch.tensor([place < self.clips for place in places])

    def __len__(self) -> int:
        return math.ceil(len(self.places) / self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        for places in self._places():
            yield [min(place, self.clips - 1) for place in places]

    def _places(self) -> Iterator[range]:
        for first in range(0, len(self.places), self.batch):
            yield self.places[first : first + self.batch]
