"""Long signals in windows: where the windows start, and a model's answers to them averaged."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from septr_fast.passes.inputs import check_dense
from septr_fast.reference import AXES, check_sizes

AVERAGES = ("logits", "probabilities")


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Where windows over `length` values start: every `hop`, and one more that ends with the last value.

    That last window is shifted back rather than padded: it holds nothing but the signal.

    Args:
        length: number of values, at least `window`.
        window: values in a window.
        hop: from one start to the next; above `window` it leaves gaps.

    Raises:
        ValueError: for a size below 1, or a signal shorter than one window.
    """
    window, hop = check_sizes(window=window, hop=hop)
    if length < window:
        raise ValueError(f"window: expected at most the signal's length, {length}, got {window}")
    starts = list(range(0, length - window + 1, hop))
    return starts if starts[-1] + window == length else [*starts, length - window]


def average_windows(logits: Tensor, average: str = "logits") -> Tensor:
    """The mean over windows of `logits` `(..., windows, classes)`, or of their probabilities: `(..., classes)`."""
    if average not in AVERAGES:
        raise ValueError(f"average: expected one of {', '.join(AVERAGES)}, got {average!r}")
    return (logits if average == "logits" else logits.softmax(dim=-1)).mean(dim=-2)


@torch.no_grad()
def predict_long(
    model: nn.Module,
    x: Tensor,
    window: int,
    hop: int,
    *,
    average: str = "logits",
    axis: str = "width",
    batch: int = 32,
) -> Tensor:
    """Classify spectrograms longer than the model's input: windows along the time, their answers averaged.

    The last window ends with the spectrogram, overlapping the one before by more than the others do; nothing is
    padded. The model is called as it is: put it into evaluation mode first. No gradients are computed.

    Args:
        model: maps `(batch, channels, height, width)` to logits `(batch, classes)`, or to a tuple that begins
            with them.
        x: `(batch, channels, height, long width)`, in the dtype and on the device that the model takes.
        window: size of a window along `axis`, the model's input size there.
        hop: from one window to the next, in pixels.
        average: "logits", or "probabilities" for the mean of the windows' softmax.
        axis: "width", or "height" for spectrograms with the time first.
        batch: most windows in one call of the model.

    Returns:
        Averaged logits or probabilities, `(batch, classes)`.

    Raises:
        ValueError: for an argument out of range, or a spectrogram shorter than a window.
        TypeError: for spectrograms that are no dense tensor.

    Example:
        >>> from septr_fast import SepTr
        >>> model = SepTr(input_size=(16, 24), num_classes=10, depth=1, heads=2, dim_head=8, dim=16).eval()
        >>> predict_long(model, torch.zeros(2, 1, 16, 100), window=24, hop=12).shape
        torch.Size([2, 10])
    """
    (batch,) = check_sizes(batch=batch)
    if average not in AVERAGES:
        raise ValueError(f"average: expected one of {', '.join(AVERAGES)}, got {average!r}")
    if axis not in AXES:
        raise ValueError(f"axis: expected one of {', '.join(AXES)}, got {axis!r}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (batch, channels, height, width), got {type(x).__name__}")
    check_dense(x, "x")
    if x.dim() != 4 or not len(x):
        raise ValueError(f"x: expected (batch, channels, height, width), got {tuple(x.shape)}")
    dim = 2 if axis == "height" else 3
    starts = window_starts(x.shape[dim], window, hop)
    logits = torch.cat([logits_of(model, chunk) for chunk in _chunks(x, starts, window, dim, batch)])
    return average_windows(logits.unflatten(0, (len(x), len(starts))), average)


def _chunks(x: Tensor, starts: list[int], window: int, dim: int, batch: int) -> Iterator[Tensor]:
    """All windows of all samples, those of a sample together, `batch` at a time."""
    windows = [(sample, start) for sample in x for start in starts]
    for first in range(0, len(windows), batch):
        chunk = windows[first : first + batch]
        yield torch.stack([sample.narrow(dim - 1, start, window) for sample, start in chunk])


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """What `model` returns for `x`, or the first of it where it returns a tuple."""
    out = model(x)
    logits: Tensor = out[0] if isinstance(out, tuple) else out
    return logits
