"""Nothing is timed before it is shown to compute the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALLOWED_RATIO = 2.0
ALLOWED_LOOSE = 1e-5
"""Of the largest value, for what `torch.compile` generates in float32: it sums in another order, and at 128 x 128
was three times as far off as the plain model. So is plain PyTorch's last layer in a large batch. It is the limit of
the original's stored results in float32."""
SAMPLES = 2
"""So many spectrograms of a batch are compared."""
AGAIN = 8
"""Other batches on which a model is checked together where it falls short by little: the largest error of a few
logits is a matter of chance, and the baseline's own differs from processor to processor."""
CHANCE = 30.0
"""Times what is allowed that are no chance any more."""

Context = Callable[[], AbstractContextManager[Any]]


class ParityError(AssertionError):
    """A model computes something else than the baseline.

    Args:
        reason: what is off, and by how much.
        share: how many times the error that is allowed.
    """

    def __init__(self, reason: str, share: float) -> None:
        super().__init__(reason)
        self.share = share


class NoRoomError(Exception):
    """The device has not the memory to check anything in a case."""


@dataclass(frozen=True)
class Errors:
    """Largest errors against float64.

    Attributes:
        outputs: of the logits, or of what a part returns.
        gradients: of the gradient of the cross-entropy in all parameters, relative to its largest value;
            None for inference.
    """

    outputs: float
    gradients: float | None


@dataclass(frozen=True)
class Outcome:
    """Outputs for the first `SAMPLES` spectrograms and, in training, the gradient in all parameters; flat, float64."""

    outputs: Tensor
    gradient: Tensor | None


def outcome(
    model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, context: Context = nullcontext
) -> Outcome:
    """Run `model` on all of `inputs`; with labels the loss is that of the first `SAMPLES` spectrograms alone."""
    return _joined([_parts(model, inputs, labels, context)])


def one_by_one(
    model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, context: Context = nullcontext
) -> Outcome:
    """`outcome` of the first `SAMPLES` spectrograms, each by itself: the same function in the least memory."""
    few = inputs[0][:SAMPLES].shape[0]
    samples = (slice(index, index + 1) for index in range(few))
    return _joined(
        [
            _parts(model, tuple(x[one] for x in inputs), None if labels is None else labels[one], context)
            for one in samples
        ]
    )


def exact(baseline: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None) -> Outcome:
    """Run a float64 copy of `baseline` on the first `SAMPLES` of `inputs`; on the CPU where the device is too small."""
    device = inputs[0].device
    with suppress(torch.OutOfMemoryError):
        return _exact(baseline, inputs, labels, device)
    found = _exact(baseline, inputs, labels, torch.device("cpu"))
    return Outcome(found.outputs.to(device), None if found.gradient is None else found.gradient.to(device))


def usual(baseline: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, context: Context) -> Outcome:
    """Run `baseline` on the first `SAMPLES` of `inputs`; one by one where they do not fit together."""
    few = tuple(x[:SAMPLES] for x in inputs)
    with suppress(torch.OutOfMemoryError):
        return outcome(baseline, few, labels, context)
    return one_by_one(baseline, few, labels, context)


def _exact(baseline: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, device: torch.device) -> Outcome:
    model = copy.deepcopy(baseline).to(device, torch.float64)
    few = tuple(x[:SAMPLES].to(device, torch.float64) for x in inputs)
    return one_by_one(model, few, None if labels is None else labels[:SAMPLES].to(device))


def _parts(
    model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None, context: Context
) -> tuple[list[Tensor], Tensor | None]:
    """The outputs for the first `SAMPLES` spectrograms, one tensor or several, and the flat gradient; float64."""
    if labels is None:
        with torch.no_grad(), context():
            return _first(model(*inputs)), None
    with context():
        logits = model(*inputs)
        loss = F.cross_entropy(logits[:SAMPLES], labels[:SAMPLES])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return _first(logits.detach()), torch.cat([gradient.flatten() for gradient in gradients]).double()


def _first(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    parts = (outputs,) if isinstance(outputs, Tensor) else outputs
    return [part[:SAMPLES].double() for part in parts]


def _joined(runs: Sequence[tuple[list[Tensor], Tensor | None]]) -> Outcome:
    """One outcome of several runs with as many spectrograms each: their outputs, and the mean of their gradients."""
    outputs = torch.cat([torch.cat(part).flatten() for part in zip(*(parts for parts, _ in runs), strict=True)])
    gradients = [gradient for _, gradient in runs if gradient is not None]
    return Outcome(outputs, sum(gradients[1:], gradients[0]) / len(gradients) if gradients else None)


def errors(found: Outcome, wanted: Outcome) -> Errors:
    """How far `found` is from `wanted`."""
    difference = (found.outputs - wanted.outputs).abs().max().item()
    if found.gradient is None or wanted.gradient is None:
        return Errors(difference, None)
    scale = wanted.gradient.abs().max()
    return Errors(difference, ((found.gradient - wanted.gradient).abs().max() / scale).item())


@dataclass(frozen=True)
class Comparison:
    """A model on one batch or on several.

    Attributes:
        found: its errors.
        baseline: errors of the baseline in the same precision.
        largest: the largest output that is wanted.
    """

    found: Errors
    baseline: Errors
    largest: float


def together(comparisons: Sequence[Comparison]) -> Comparison:
    """One of several batches."""
    return Comparison(
        _largest([each.found for each in comparisons]),
        _largest([each.baseline for each in comparisons]),
        max(each.largest for each in comparisons),
    )


def _largest(found: Sequence[Errors]) -> Errors:
    """The largest errors; NaN where there is one."""
    gradients = [each.gradients for each in found if each.gradients is not None]
    return Errors(_worst([each.outputs for each in found]), _worst(gradients) if gradients else None)


def _worst(errors: Sequence[float]) -> float:
    return torch.tensor(errors, dtype=torch.float64).max().item()


def check_finite(outputs: Sequence[Tensor], name: str) -> None:
    """Raise `ParityError` where the last of the timed calls returned something else than numbers."""
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise ParityError(f"{name}: NaN or infinity came out of the last call that was timed", math.inf)


def check(comparison: Comparison, unit: float, name: str, *, loose: bool = False) -> None:
    """Raise `ParityError` unless errors are at most twice the baseline's, plus one unit in the last place.

    Args:
        comparison: what is judged.
        unit: machine epsilon of the precision, taken at the largest value wanted.
        name: of case and model. NaN never passes.
        loose: whether `ALLOWED_LOOSE` of the largest value is enough, for float32.
    """
    found, baseline = comparison.found, comparison.baseline
    pairs = [("outputs", found.outputs, baseline.outputs, unit * comparison.largest)]
    if found.gradients is not None and baseline.gradients is not None:
        pairs.append(("gradients", found.gradients, baseline.gradients, unit))
    for what, ours, plain, slack in pairs:
        allowed = ALLOWED_RATIO * plain + slack
        if loose:
            allowed = max(allowed, ALLOWED_LOOSE * slack / unit)
        if not ours <= allowed:
            raise ParityError(
                f"{name}: the {what} are off by {ours:.2e} against float64, the baseline's by {plain:.2e}; "
                f"at most {allowed:.2e} are allowed. Nothing was timed.",
                ours / allowed if allowed > 0 else math.inf,
            )
