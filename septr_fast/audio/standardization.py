"""Spectrograms with zero mean and unit variance, each by its own statistics."""

from __future__ import annotations

import torch
from torch import Tensor

_CONSTANT = 1e-10
"""Variance, in squares of the mean, up to which a spectrogram counts as constant: what differs is rounding."""


def standardize_clips(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Each spectrogram with zero mean and unit variance: zeros if it is constant, NaN if it holds NaN or infinity.

    Args:
        values: `(batch, channels, height, width)`.
        valid: which frames count, `(batch, 1, 1, width)`; None for all.
    """
    mean = _mean(values, valid)
    centred = values - mean
    variance = _mean(centred.square(), valid)
    constant = variance <= _CONSTANT * mean.square()
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, variance).sqrt())


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Of each of `values`, over what is valid, `(batch, 1, 1, 1)`."""
    if valid is None:
        return values.mean(dim=(1, 2, 3), keepdim=True)
    means = values.mean(dim=(1, 2), keepdim=True)
    return torch.where(valid, means, 0.0).sum(dim=3, keepdim=True) / valid.sum(dim=3, keepdim=True)
