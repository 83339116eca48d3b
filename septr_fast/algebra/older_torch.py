"""What differs between versions of PyTorch, and from which version on each of these functions may go.

The oldest that is supported is in `setup.py`; docs/versions.md says what was tried.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def replace(item: Item, **changes: Any) -> Item:
    """`dataclasses.replace`, which the compiler of PyTorch 2.6 and before cannot trace. May go from 2.7 on."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}  # type: ignore[arg-type]
    return type(item)(**{**values, **changes})


def exports() -> bool:
    """Whether an exporter makes a graph. PyTorch 2.6 and before have no flag for it. May go from 2.7 on."""
    if hasattr(torch.compiler, "_is_exporting_flag"):
        return bool(torch.compiler._is_exporting_flag)
    trace = getattr(getattr(torch, "export", None), "_trace", None)
    return getattr(trace, "_EXPORT_FLAGS", None) is not None


def saves_by_hooks() -> bool:
    """Whether somebody else's hooks take what is saved for the backward pass; true where that cannot be told.

    PyTorch 2.7 and before cannot tell. May go from 2.8 on.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None
