"""Positions for spectrograms of another size: tables interpolated along their axis, alone or in a state dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from septr_fast.algebra.folded import accumulation_dtype
from septr_fast.reference import check_sizes

_TABLES = ("pos_embedding_h", "pos_embedding_w")

State = TypeVar("State", bound=Mapping[str, Tensor])


def resize_table(table: Tensor, length: int) -> Tensor:
    """Interpolate the positions of one axis; that of the class token, in front, is kept.

    Linear, because a new position is then a mean of its two neighbours and overshoots neither. Not by aligned
    corners, because a token stands for an interval of the axis: the old intervals and the new ones cover the same
    whole, and a position is that of its interval's middle. Beyond the outermost middles the outermost position holds.

    Args:
        table: `(1, 1, 1 + old length, dim)`, floating point.
        length: tokens along the axis, the class token left out.

    Returns:
        `(1, 1, 1 + length, dim)` in the dtype of `table`, computed in float32 at least; `table` itself where it has
        that length.

    Raises:
        ValueError: for a table of another shape, or a length below 1.

    Example:
        >>> resize_table(torch.tensor([9.0, 0.0, 1.0]).view(1, 1, 3, 1), 4).flatten().tolist()
        [9.0, 0.0, 0.25, 0.75, 1.0]
    """
    (length,) = check_sizes(length=length)
    if table.dim() != 4 or table.shape[:2] != (1, 1) or table.shape[2] < 2:
        raise ValueError(f"table: expected positions (1, 1, 1 + length, dim), got {tuple(table.shape)}")
    if table.shape[2] == 1 + length:
        return table
    front, positions = table.split([1, table.shape[2] - 1], dim=2)
    along = positions[0].transpose(1, 2).to(accumulation_dtype(table.dtype))
    resized = F.interpolate(along, size=length, mode="linear", align_corners=False).transpose(1, 2)
    return torch.cat([front, resized[None].to(table.dtype)], dim=2)


def resize_state(state_dict: State, model: nn.Module) -> State:
    """A state dict whose positions have the lengths of `model`, ready for a strict `model.load_state_dict`.

    Nothing else is changed: what is missing, too much or of another width is left for `load_state_dict` to refuse.

    Args:
        state_dict: of a SepTr for spectrograms of any size, under the original's keys; a prefix that `model` has too
            does not matter. It stays as it is.
        model: a `SepTr`, of this package or the original's, or a module that contains one.

    Returns:
        A shallow copy with resized tables; the other tensors are the same objects.
    """
    resized = copy.copy(state_dict)
    replaced = {
        key: resize_table(state_dict[key], wanted.shape[2] - 1)
        for key, wanted in model.state_dict().items()
        if key.rpartition(".")[2] in _TABLES and key in state_dict and _differ_in_length(state_dict[key], wanted)
    }
    resized.update(replaced)  # type: ignore[attr-defined]
    return resized


def _differ_in_length(table: Tensor, wanted: Tensor) -> bool:
    """Whether `table` holds positions like `wanted`, `(1, 1, 1 + length, dim)`, of another length."""
    shapes = [tuple(tensor.shape) for tensor in (table, wanted)]
    alike = all(len(shape) == 4 and shape[:2] == (1, 1) and shape[2] > 1 for shape in shapes)
    return alike and table.is_floating_point() and table.shape[3] == wanted.shape[3] and shapes[0] != shapes[1]
