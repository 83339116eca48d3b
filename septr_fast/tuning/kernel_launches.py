"""What the kernel report compiles: the launches of whole models, recorded on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from septr_fast.kernels import launch
from septr_fast.kernels.launch import Config, Launch
from septr_fast.model import SepTr

NARROW: dict[str, Any] = {
    "input_size": (128, 216),
    "num_classes": 50,
    "depth": 1,
    "heads": 4,
    "mlp_dim": 64,
    "dim_head": 64,
    "dim": 64,
}
"""A published model of head dim 64, for ESC-50."""

MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "head dim 64": NARROW,
    "head dim 64, merged": {**NARROW, "formulation": "merged"},
    "head dim 64, direct": {**NARROW, "formulation": "direct"},
}
"""Constructor arguments of `SepTr` by what the report calls them; together they reach every formulation."""

MIXED = ("default", "head dim 64")
"""Those that are run with a residual stream in float32 too, one of each width that the tables have."""

BATCH = 8


def launches(
    config: Mapping[str, Any], dtype: torch.dtype, arch: int, batch: int = BATCH, mixed: bool = True
) -> list[Launch]:
    """The launches of steps of training and of passes without gradients.

    Where products are in 16 bits the model is run with a residual stream in `dtype` and, if `mixed`, with one in
    float32 as under autocast. Attention is run in every form that the tables hold, chosen or not.

    Args:
        config: constructor arguments of `SepTr`.
        dtype: of the products.
        arch: compute capability.
        batch: number of spectrograms.
        mixed: whether to run it with a residual stream in float32 too.
    """
    with recording(arch) as recorded:
        for residual_dtype in dict.fromkeys((dtype, torch.float32) if mixed else (dtype,)):
            with torch.device("meta"):
                model = SepTr(**config, backend="triton").to(residual_dtype)
            for form in _attention_forms(arch, dtype, model.blocks[0].dim):
                with launch.override({"attention_form": Config({"FUSED": form})}):
                    class_token(model, dtype, batch).sum().backward()
                    with torch.no_grad():
                        class_token(model, dtype, batch)
    return recorded


@contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """Collect what the operators would launch on architecture `arch`; tensors may be on the meta device."""
    with launch.record(arch) as recorded, _OwnImplementations():  # type: ignore[no-untyped-call]
        yield recorded


def _attention_forms(arch: int, dtype: torch.dtype, dim: int) -> tuple[int, ...]:
    """0 for products apart from the attention, and 1 where the tables hold the kernel that fuses them."""
    try:
        launch.lookup("fused_attention_fwd", arch, dtype.itemsize, dim)
    except LookupError:
        return (0,)
    return (0, 1)


def class_token(model: SepTr, dtype: torch.dtype, batch: int) -> Tensor:
    """What `model` classifies, `(batch, dim)`, with products in `dtype`."""
    first = model.blocks[0]
    x = torch.empty(batch, first.channels, *first.input_size, dtype=model.cls_token.dtype, device="meta")
    grid, cls_token = first.pixels(x), model.cls_token[0, 0]
    for index, block in enumerate(model.blocks):
        steps = block.planned(shared_cls_token=index == 0, last=index == len(model.blocks) - 1)
        grid, cls_token = block.transform(grid, cls_token, steps, dtype=dtype)
    return cls_token


class _OwnImplementations(TorchDispatchMode):
    """Runs the project's operators themselves on meta tensors, which would only infer shapes otherwise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "septr_fast":
            return func(*args, **(kwargs or {}))
        with self:
            return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
