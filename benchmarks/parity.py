"""Nothing is timed before it is shown to compute the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALLOWED_RATIO = 2.0


class ParityError(AssertionError):
    """A model computes something else than the baseline."""


@dataclass(frozen=True)
class Errors:
    """Largest errors against float64.

    Attributes:
        logits: of the logits.
        gradients: of the gradient of the cross-entropy in all parameters, relative to its largest value;
            None for inference.
    """

    logits: float
    gradients: float | None


@dataclass(frozen=True)
class Exact:
    """What the baseline computes in float64."""

    logits: Tensor
    gradient: Tensor | None


def _outcome(model: nn.Module, x: Tensor, labels: Tensor, training: bool) -> tuple[Tensor, Tensor | None]:
    """Logits, and for training the gradient in all parameters as one vector, both in float64."""
    if not training:
        with torch.no_grad():
            return model(x).double(), None
    logits = model(x)
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters()))
    return logits.detach().double(), torch.cat([gradient.flatten() for gradient in gradients]).double()


def exact(baseline: nn.Module, x: Tensor, labels: Tensor, training: bool) -> Exact:
    """Run a float64 copy of `baseline` on `x`."""
    return Exact(*_outcome(copy.deepcopy(baseline).double(), x.double(), labels, training))


def errors(model: nn.Module, x: Tensor, labels: Tensor, wanted: Exact) -> Errors:
    """How far `model` is from `wanted`."""
    logits, gradient = _outcome(model, x, labels, wanted.gradient is not None)
    difference = (logits - wanted.logits).abs().max().item()
    if gradient is None or wanted.gradient is None:
        return Errors(difference, None)
    scale = wanted.gradient.abs().max()
    return Errors(difference, ((gradient - wanted.gradient).abs().max() / scale).item())


def check(found: Errors, baseline: Errors, wanted: Exact, name: str) -> None:
    """Raise `ParityError` unless `found` is at most twice `baseline`, plus one unit in the last place.

    The unit is float32's at the largest reference value; NaN never passes.
    """
    unit = torch.finfo(torch.float32).eps
    largest = wanted.logits.abs().max().item()
    pairs = [("logits", found.logits, baseline.logits, unit * largest)]
    if found.gradients is not None and baseline.gradients is not None:
        pairs.append(("gradients", found.gradients, baseline.gradients, unit))
    for what, ours, plain, slack in pairs:
        if not ours <= ALLOWED_RATIO * plain + slack:
            raise ParityError(
                f"{name}: the {what} are off by {ours:.2e} against float64, the baseline's by {plain:.2e}; "
                f"at most {ALLOWED_RATIO:g} times that and {slack:.1e} are allowed. Nothing was timed."
            )
