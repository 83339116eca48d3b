"""What the kernel report compiles: the launches of whole models, recorded on tensors without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from septr_fast.kernels import axis_pass, class_attention, launch
from septr_fast.kernels.launch import Launch
from septr_fast.model import SepTr
from septr_fast.plan import Step

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

BATCH = 8


def launches(config: Mapping[str, Any], dtype: torch.dtype, arch: int, batch: int = BATCH) -> list[Launch]:
    """The launches of a pass forward and backward.

    Args:
        config: constructor arguments of `SepTr`.
        dtype: of the parameters and the spectrograms.
        arch: compute capability.
        batch: number of spectrograms.
    """
    with torch.device("meta"):
        model = SepTr(**config)
    with launch.record(arch) as recorded, _OwnImplementations():  # type: ignore[no-untyped-call]
        for step in model.plan().steps:
            if step.formulation == "class-only":
                _class_only(step, dtype, batch)
            elif step.formulation != "low-rank":
                _axis(step, dtype, batch)
    return recorded


class _OwnImplementations(TorchDispatchMode):
    """Runs the project's operators themselves on meta tensors, which would only infer shapes otherwise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "septr_fast":
            return func(*args, **(kwargs or {}))
        with self:
            return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))


def _axis(step: Step, dtype: torch.dtype, batch: int) -> None:
    shape, merged = step.shape, step.formulation == "merged"
    sizes = (shape.length, shape.rows) if shape.axis == "height" else (shape.rows, shape.length)
    attended = shape.heads * (shape.dim if merged else shape.dim_head)

    def tensor(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    weights = axis_pass.Weights(
        query_weight=tensor(attended if merged else 3 * attended, shape.dim),
        query_bias=tensor(attended if merged else 3 * attended),
        out_weight=tensor(shape.dim, attended),
        out_bias=tensor(shape.dim),
        hidden_weight=tensor(shape.mlp_dim, shape.dim),
        hidden_bias=tensor(shape.mlp_dim),
        mlp_weight=tensor(shape.dim, shape.mlp_dim),
        mlp_bias=tensor(shape.dim),
    )
    settings = axis_pass.Settings(shape.heads, merged, 1e-5, 1e-5, shape.axis)
    inputs = (tensor(batch, *sizes, shape.dim), tensor(batch, shape.dim), tensor(shape.tokens, shape.dim))
    out, cls_out, middle, cls_middle = axis_pass.forward(*inputs, weights, settings, keep=True)
    assert middle is not None
    assert cls_middle is not None
    axis_pass.backward(out, cls_out, *inputs, weights, settings, middle, cls_middle)


def _class_only(step: Step, dtype: torch.dtype, batch: int) -> None:
    shape = step.shape
    sizes = (shape.length, shape.rows) if shape.axis == "height" else (shape.rows, shape.length)
    operands = ((batch, *sizes, shape.dim), (shape.tokens, shape.dim), (batch, shape.heads, shape.dim))
    tensors = [torch.empty(size, dtype=dtype, device="meta", requires_grad=True) for size in operands]
    cls_hat = torch.empty(batch, shape.dim, dtype=dtype, device="meta", requires_grad=True)
    attended, _ = class_attention.class_attention(*tensors, cls_hat, 1e-5, shape.axis)
    attended.sum().backward()
