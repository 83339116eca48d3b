"""Clips as samples for training and evaluation: read, cut to one length, augmented.

Everything random about a sample follows from (seed, epoch, index), so a run that goes on after a stop, or on another
number of processes, sees the same samples.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from septr_fast.audio.clips import load_clip
from training.data import augmentation as effects
from training.data.augmentation import Augmentation
from training.data.clip_lists import Clip

_logger = logging.getLogger(__name__)


class Sample(TypedDict):
    """One clip, ready to be collated into a batch.

    Attributes:
        waveform: `(samples,)`, float32.
        target: `(classes,)`, float32: 1 for each label and 0 otherwise, or a mix of two such.
        masks: `(n, 4)`, int64, for `augmentation.apply_masks`.
        weight: `()`, float32: 1, or 0 for a clip that could not be read.
        index: of the clip.
    """

    waveform: Tensor
    target: Tensor
    masks: Tensor
    weight: Tensor
    index: int


class Samples(Dataset[Sample]):
    """The clips of one split.

    A clip that cannot be read, say because it was deleted meanwhile, is silence of weight 0, named in a warning the
    first time. In a mix with another that cannot be read a clip stays alone.

    Args:
        clips: of the split.
        classes: number of classes.
        rate: in hertz; clips of another rate are resampled.
        seconds: length of every sample. Longer clips are cropped, in the middle or, with an augmentation, anywhere;
            shorter ones go on in silence.
        augmentation: None for evaluation, in which nothing is random.
        seed: of everything random.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        classes: int,
        rate: int,
        seconds: float,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < seconds < math.inf or rate < 1 or round(seconds * rate) < 1:
            raise ValueError(f"seconds: expected a time of at least one sample, got {seconds} s at {rate} Hz")
        for clip in clips:
            if not all(0 <= label < classes for label in clip.labels):
                raise ValueError(
                    f"clips: expected labels of 0 up to {classes - 1}, got {max(clip.labels, key=abs)}: {clip.path}"
                )
        self.clips = tuple(clips)
        self.classes = classes
        self.rate = rate
        self.samples = round(seconds * rate)
        self.augmentation = augmentation
        self.seed = seed
        # In shared memory, for workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(self.clips), dtype=torch.bool).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that samples are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the samples of `epoch` from now on, in all workers; call it before the loader's iterator is made."""
        self._epoch.fill_(epoch)

    def unreadable(self) -> list[Path]:
        """Clips that could not be read so far, by any worker of this process."""
        return [self.clips[index].path for index in self._unreadable.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self.clips):
            raise IndexError(f"index: expected 0 up to {len(self.clips) - 1}, got {index}")
        generator = self._generator(index)
        own = self._read(index, generator)
        waveform = torch.zeros(self.samples) if own is None else own
        target = self._target(index)
        if self.augmentation is None:
            masks = torch.zeros(0, 4, dtype=torch.int64)
        else:
            if own is not None:
                waveform, target = self._mixed(own, target, self.augmentation, generator)
                decibels = self.augmentation.noise_db
                waveform = effects.add_noise(waveform, self.augmentation.noise, decibels, generator)
            masks = effects.draw_masks(self.augmentation, generator)
        weight = torch.tensor(0.0 if own is None else 1.0)
        return {"waveform": waveform, "target": target, "masks": masks, "weight": weight, "index": index}

    def _generator(self, index: int) -> Generator:
        digest = hashlib.blake2b(f"{self.seed}:{self.epoch}:{index}".encode(), digest_size=8).digest()
        return Generator().manual_seed(int.from_bytes(digest, "little"))

    def _target(self, index: int) -> Tensor:
        target = torch.zeros(self.classes)
        target[list(self.clips[index].labels)] = 1.0
        return target

    def _mixed(
        self, waveform: Tensor, target: Tensor, augmentation: Augmentation, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Waveform `(samples,)` and target `(classes,)`, mixed with those of another clip."""
        if not augmentation.mixup:
            return waveform, target
        share = effects.mix_share(augmentation.mixup, generator)
        partner = int(torch.randint(len(self.clips), (), generator=generator))
        other = self._read(partner, generator)
        if other is None:
            return waveform, target
        return other.lerp(waveform, share), self._target(partner).lerp(target, share)

    def _read(self, index: int, generator: Generator) -> Tensor | None:
        """The clip's waveform `(samples,)`, cropped and moved; None if it cannot be read."""
        path = self.clips[index].path
        try:
            waveform = load_clip(path, self.rate)
        except (ValueError, OSError) as error:
            if not self._unreadable[index]:
                self._unreadable[index] = True
                _logger.warning("no sound of %s: %s", path, error)
            return None
        waveform = self._cropped(waveform, generator)
        if self.augmentation is None:
            return waveform
        return effects.shift(waveform, round(self.augmentation.time_shift * self.rate), generator)

    def _cropped(self, waveform: Tensor, generator: Generator) -> Tensor:
        """`waveform` cut to, or continued in silence up to, the length of a sample."""
        spare = len(waveform) - self.samples
        if spare <= 0:
            return torch.nn.functional.pad(waveform, (0, -spare))
        start = spare // 2
        if self.augmentation is not None:
            start = int(torch.randint(spare + 1, (), generator=generator))
        return waveform[start : start + self.samples].clone()
