"""The learning rate of every step: a linear warm-up, then half a cosine down to zero."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, highest: float, warm_up: float) -> float:
    """The learning rate of step `step` of `steps`, counted from 0.

    It is a pure function of the step, so that nothing of it has to be saved.

    Args:
        step: 0 to `steps - 1`.
        steps: of the whole run.
        highest: where the warm-up ends.
        warm_up: its share of all steps, at least 0 and below 1.

    Raises:
        ValueError: for a step outside of the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step: expected 0 up to {steps - 1}, got {step}")
    rising = math.ceil(warm_up * steps)
    if step < rising:
        return highest * (step + 1) / rising
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
