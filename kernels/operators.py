"""What all registered operators share."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def refuse_second_derivative(backward: Any, name: str) -> None:
    """Let the derivative of the operator `backward` raise an error that names the operator `name`."""

    def refuse(_ctx: Any, *_gradients: Tensor) -> None:
        raise RuntimeError(
            f'{name} cannot be differentiated twice on Triton kernels; build the model with backend="torch" for that'
        )

    backward.register_autograd(refuse)


def along(grid: Tensor, axis: str) -> Tensor:
    """View `(batch, height, width, …)` as `(batch, rows, length, …)`, the length along `axis`."""
    if axis not in ("height", "width"):
        raise ValueError(f"axis: expected height or width, got {axis!r}")
    return grid.transpose(1, 2) if axis == "height" else grid
