"""Mean and standard deviation of a data set of spectrograms, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Statistics of each channel, ready for a front-end's `mean` and `deviation`.

    Attributes:
        mean: of each channel.
        deviation: standard deviation of each channel, of the population (no correction).
        count: number of values of a channel.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    count: int


def dataset_statistics(batches: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation of each channel over all of `batches`.

    Each batch is reduced to its own mean and sum of squared deviations in float64, and these are merged by the
    update of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979): there is no difference of large sums, and no effect of how the data is cut into batches.

    Args:
        batches: `(batch, channels, height, width)`, floating point; sizes other than `channels` may differ.

    Raises:
        ValueError: if there is no batch, or for one of another shape, without values, or with NaN or infinity.
        TypeError: for a batch that is no tensor.
    """
    count, mean, squares = 0, torch.zeros(0), torch.zeros(0)
    for index, batch in enumerate(batches):
        _check(batch, index, len(mean) if count else None)
        values = in_float64(batch.detach()).transpose(0, 1).flatten(1)
        added, own_mean = values.shape[1], values.mean(dim=1)
        own_squares = (values - own_mean[:, None]).square().sum(dim=1)
        if not count:
            count, mean, squares = added, own_mean, own_squares
            continue
        offset, total = own_mean - mean, count + added
        mean = mean + offset * (added / total)
        squares = squares + own_squares + offset.square() * (count * added / total)
        count = total
    if not count:
        raise ValueError("batches: expected at least one batch of spectrograms, got none")
    return Statistics(tuple(mean.tolist()), tuple((squares / count).sqrt().tolist()), count)


def in_float64(x: Tensor) -> Tensor:
    """`x` in float64, on its device, or on the CPU where that has no float64: a Mac's GPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _check(batch: Tensor, index: int, channels: int | None) -> None:
    if not isinstance(batch, Tensor):
        raise TypeError(f"batches: expected tensors, got {type(batch).__name__} as batch {index}")
    if batch.dim() != 4 or not batch.numel() or not batch.is_floating_point():
        found = f"{batch.dtype} {tuple(batch.shape)}"
        raise ValueError(
            f"batches: expected floating-point (batch, channels, height, width), got {found} as batch {index}"
        )
    if channels is not None and batch.shape[1] != channels:
        raise ValueError(f"batches: expected {channels} channels as before, got {batch.shape[1]} in batch {index}")
    if not bool(batch.isfinite().all()):
        raise ValueError(f"batches: expected finite values, got NaN or infinity in batch {index}")
