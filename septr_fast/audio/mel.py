"""Mel scales and the triangular filters on them.

The formulas are those of librosa (`librosa.hz_to_mel`, `librosa.filters.mel`): Slaney's Auditory Toolbox, and HTK.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from septr_fast.reference import is_number

SCALES = ("slaney", "htk")
NORMS = ("slaney", None)

# Slaney's mel scale: linear below 1000 Hz, 27 steps per factor of 6.4 above.
_LINEAR_HERTZ = 200.0 / 3.0
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ / _LINEAR_HERTZ
_LOG_STEP = math.log(6.4) / 27.0

# HTK's: 2595 log10(1 + hertz / 700).
_HTK_HERTZ = 700.0
_HTK_STEP = 2595.0 / math.log(10.0)


def hertz_to_mel(hertz: float, scale: str = "slaney") -> float:
    """`hertz` on a mel scale, "slaney" or "htk"."""
    if scale == "htk":
        return _HTK_STEP * math.log1p(hertz / _HTK_HERTZ)
    if hertz < _BREAK_HERTZ:
        return hertz / _LINEAR_HERTZ
    return _BREAK_MEL + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def mel_to_hertz(mel: Tensor, scale: str = "slaney") -> Tensor:
    """The inverse of `hertz_to_mel`, elementwise."""
    if scale == "htk":
        return _HTK_HERTZ * torch.expm1(mel / _HTK_STEP)
    above = _BREAK_HERTZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return torch.where(mel < _BREAK_MEL, mel * _LINEAR_HERTZ, above)


def mel_edges(mels: int, rate: int, low: float = 0.0, high: float | None = None, scale: str = "slaney") -> Tensor:
    """Corners of `mels` triangles in hertz, evenly spaced in mel: `(mels + 2,)`, float64.

    Args:
        mels: number of triangles.
        rate: sampling rate in hertz.
        low: the first corner, in hertz.
        high: the last corner, in hertz; None for half the rate.
        scale: "slaney" or "htk".
    """
    first, last = (hertz_to_mel(hertz, scale) for hertz in (low, rate / 2 if high is None else high))
    return mel_to_hertz(torch.linspace(first, last, mels + 2, dtype=torch.float64, device="cpu"), scale)


def mel_filters(
    mels: int,
    fft_size: int,
    rate: int,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
) -> Tensor:
    """Triangular mel filters over the bins of a Fourier transform.

    Args:
        mels: number of filters.
        fft_size: length of the Fourier transform, in samples.
        rate: sampling rate in hertz.
        low: where the first filter begins, in hertz.
        high: where the last filter ends, in hertz; None for half the rate.
        scale: "slaney" or "htk".
        norm: "slaney" for filters of equal area, None for filters of equal height 1.

    Returns:
        `(mels, fft_size // 2 + 1)`, float32; equal to `librosa.filters.mel` of the same settings.

    Raises:
        ValueError: if a size is below 1, for frequencies out of order or above half the rate, and for an
            unknown scale or norm.
    """
    _check(mels, fft_size, rate, low, high, scale, norm)
    edges = mel_edges(mels, rate, low, high, scale)
    bins = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * (rate / fft_size)
    offsets = bins[None, :] - edges[:, None]
    widths = edges.diff()[:, None]
    triangles = torch.minimum(offsets[:-2] / widths[:-1], -offsets[2:] / widths[1:]).clamp(min=0.0)
    if norm is None:
        return triangles.float()
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


def _check(mels: int, fft_size: int, rate: int, low: float, high: float | None, scale: str, norm: str | None) -> None:
    for name, value in (("mels", mels), ("fft_size", fft_size), ("rate", rate)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    top = rate / 2 if high is None else high
    if not is_number(top) or not 0 < top <= rate / 2:
        raise ValueError(f"high: expected hertz up to half the rate, {rate / 2:g}, got {high!r}")
    if not is_number(low) or not 0 <= low < top:
        raise ValueError(f"low: expected hertz from 0 to below {top:g}, got {low!r}")
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    if norm not in NORMS:
        raise ValueError(f"norm: expected 'slaney' or None, got {norm!r}")
