"""What the models are timed on: spoken words, a user's clips, or noise, in batches that change with every call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speech import recordings
from benchmarks.suite import cases, parts
from benchmarks.suite.cases import Case

CLIPS = 32
"""Most clips that are read."""

NOISE_CLASSES = 35
NOISE_BATCHES = 3


def blank(case: Case) -> tuple[Tensor, ...]:
    """Inputs without data, on the meta device."""
    if case.group in cases.PARTS:
        return parts.inputs(case.group, case.config, case.batch, torch.device("meta"), torch.float32)
    return (torch.empty(case.batch, case.channels, *case.size, device="meta"),)


class Source:
    """Inputs for every case.

    Args:
        folder: called once, for the folder of WAV files, one folder for each class; None for noise alone.
        device: where inputs go.
    """

    def __init__(self, folder: Callable[[], Path] | None, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.clips: dict[tuple[tuple[int, int], float], recordings.Clips] = {}

    def shows_clips(self, case: Case) -> bool:
        """Whether a case runs on clips; parts, growth curves and several channels take noise."""
        whole = case.group in (cases.FORWARD, cases.STEP) and case.channels == 1 and case.audio_seconds is not None
        return self.folder is not None and whole

    def num_classes(self, case: Case) -> int:
        """How many classes the labels have."""
        return len(self._clips(case).classes) if self.shows_clips(case) else NOISE_CLASSES

    def batches(self, case: Case, dtype: torch.dtype) -> Iterator[tuple[Tensor, ...]]:
        """Inputs and labels without end, the same ones in the same order every time; no batch like the one before."""
        for index in itertools.count():
            yield self._batch(case, index, dtype)

    def drawn(self, case: Case, dtype: torch.dtype, draw: int) -> tuple[Tensor, ...]:
        """Normal inputs and labels, other ones for every `draw`."""
        torch.manual_seed(1 + draw)
        labels = torch.arange(case.batch) % self.num_classes(case)
        if case.group in cases.PARTS:
            inputs: tuple[Tensor, ...] = parts.inputs(case.group, case.config, case.batch, torch.device("cpu"), dtype)
        else:
            inputs = (torch.randn(case.batch, case.channels, *case.size).to(dtype),)
        return tuple(x.to(self.device) for x in (*inputs, labels))

    def _batch(self, case: Case, index: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if not self.shows_clips(case):
            return self.drawn(case, dtype, index % NOISE_BATCHES)
        clips = self._clips(case)
        start = index * (case.batch + int(case.batch % len(clips.labels) == 0))
        rows = torch.arange(start, start + case.batch) % len(clips.labels)
        return clips.spectrograms[rows].to(self.device, dtype), clips.labels[rows].to(self.device)

    def _clips(self, case: Case) -> recordings.Clips:
        assert self.folder is not None
        assert case.audio_seconds is not None
        key = case.size, case.audio_seconds
        if key not in self.clips:
            self.clips[key] = recordings.load_clips(self.folder(), case.size, limit=CLIPS, seconds=case.audio_seconds)
        return self.clips[key]
