"""What happens to waveforms and spectrograms in training: pure functions that draw from a given generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

_BEYOND = torch.iinfo(torch.int64).max
_MOST_SEED = 2**62


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training clip, in this order; the default does nothing but crop at random.

    Attributes:
        time_shift: seconds by which a clip is moved at most, to either side; silence comes in.
        mixup: alpha of the Beta distribution that the share of the clip in a mix with another is drawn from (Zhang
            et al., "mixup: Beyond Empirical Risk Minimization", 2018); 0 for no mix.
        noise: probability of white noise.
        noise_db: least and greatest ratio of signal to noise, in decibels.
        frequency_masks: number of bands that are masked in a spectrogram (Park et al., "SpecAugment", 2019).
        frequency_width: greatest width of such a band, in bins.
        time_masks: number of spans of time that are masked.
        time_width: greatest width of such a span, in frames.
        bins: of the spectrograms that are masked; where masks are asked for it must be given.
        frames: of these spectrograms, likewise.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    time_shift: float = 0.0
    mixup: float = 0.0
    noise: float = 0.0
    noise_db: tuple[float, float] = (10.0, 40.0)
    frequency_masks: int = 0
    frequency_width: int = 0
    time_masks: int = 0
    time_width: int = 0
    bins: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        for name in ("time_shift", "mixup"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise: expected a probability from 0 to 1, got {self.noise}")
        low, high = self.noise_db
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"noise_db: expected two finite numbers, the least first, got {self.noise_db}")
        for axis, size_name in (("frequency", "bins"), ("time", "frames")):
            _check_masks(axis, getattr(self, f"{axis}_masks"), getattr(self, f"{axis}_width"), size_name, self)


def shift(waveform: Tensor, most: int, generator: Generator) -> Tensor:
    """Move `waveform` `(samples,)` by a number of samples from -most to most, each as likely; zeros come in."""
    offset = int(torch.randint(-most, most + 1, (), generator=generator)) if most else 0
    return moved(waveform, offset)


def moved(waveform: Tensor, offset: int) -> Tensor:
    """`waveform` `(samples,)` later by `offset` samples, or earlier if it is negative; zeros come in."""
    samples = len(waveform)
    offset = max(-samples, min(offset, samples))
    result = torch.zeros_like(waveform)
    result[max(offset, 0) : samples + min(offset, 0)] = waveform[max(-offset, 0) : samples - max(offset, 0)]
    return result


def add_noise(waveform: Tensor, probability: float, decibels: tuple[float, float], generator: Generator) -> Tensor:
    """Add white noise with `probability`, at a ratio of signal to noise drawn from the range `decibels`.

    The ratio is that of the sums of squares over all of `waveform` `(samples,)`, silence included.
    """
    if not probability or float(torch.rand((), generator=generator)) >= probability:
        return waveform
    low, high = decibels
    ratio = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
    noise = torch.randn(waveform.shape, generator=generator, dtype=waveform.dtype)
    scale = waveform.norm() / noise.norm().clamp_min(torch.finfo(waveform.dtype).tiny) * 10 ** (-ratio / 20)
    return waveform + scale * noise


def mix_share(alpha: float, generator: Generator) -> float:
    """The share of a clip in a mix, from 0 to 1, drawn from Beta(alpha, alpha); 1 for an `alpha` of 0."""
    if not alpha:
        return 1.0
    seed = int(torch.randint(_MOST_SEED, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def draw_masks(augmentation: Augmentation, generator: Generator) -> Tensor:
    """Rectangles to mask in one spectrogram.

    The width of each is drawn from 0 to the greatest one, then its place, each as likely.

    Returns:
        `(frequency_masks + time_masks, 4)`, int64: first bin, end of the bins, first frame, end of the frames; those
        of frequency masks span all frames and those of time masks all bins.
    """
    a = augmentation
    rows = [(*_interval(a.frequency_width, a.bins, generator), 0, _BEYOND) for _ in range(a.frequency_masks)]
    rows += [(0, _BEYOND, *_interval(a.time_width, a.frames, generator)) for _ in range(a.time_masks)]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def apply_masks(spectrograms: Tensor, masks: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """`spectrograms` with `value` wherever one of their masks covers them.

    Args:
        spectrograms: `(batch, channels, bins, frames)`.
        masks: `(batch, n, 4)`, int64, on the same device, as `draw_masks` draws them for each.
        value: a number, or a tensor that broadcasts against `spectrograms`.

    Raises:
        ValueError: for tensors of other shapes.
    """
    if spectrograms.dim() != 4 or masks.dim() != 3 or masks.shape[::2] != (len(spectrograms), 4):
        shapes = f"{tuple(masks.shape)} for {tuple(spectrograms.shape)}"
        raise ValueError(f"masks: expected (batch, n, 4) for (batch, channels, bins, frames), got {shapes}")
    if masks.shape[1] == 0:
        return spectrograms
    inside = []
    for axis in (0, 1):
        place = torch.arange(spectrograms.shape[2 + axis], device=masks.device)
        start, end = masks[..., 2 * axis, None], masks[..., 2 * axis + 1, None]
        inside.append((place >= start) & (place < end))
    covered = (inside[0][..., :, None] & inside[1][..., None, :]).any(dim=1)[:, None]
    return torch.where(covered, torch.as_tensor(value, dtype=spectrograms.dtype, device=masks.device), spectrograms)


def _interval(most: int, size: int, generator: Generator) -> tuple[int, int]:
    """Start and end of a random interval of a width up to `most` within `size`."""
    width = int(torch.randint(most + 1, (), generator=generator))
    start = int(torch.randint(size - width + 1, (), generator=generator))
    return start, start + width


def _check_masks(axis: str, count: int, width: int, size_name: str, augmentation: Augmentation) -> None:
    size = getattr(augmentation, size_name)
    for name, value in ((f"{axis}_masks", count), (f"{axis}_width", width), (size_name, size)):
        if value < 0:
            raise ValueError(f"{name}: expected at least 0, got {value}")
    if count and not 0 < width <= size:
        raise ValueError(f"{axis}_width: expected 1 up to {size_name}, {size}, for {count} masks, got {width}")
