"""Whole passes with drawn operands, by Triton operators and by plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from support.tolerance import assert_all_as_good
from torch import Tensor, nn

pytest.importorskip("triton")

from septr_fast.kernels import launch

from septr_fast.algebra.direct import fold_direct
from septr_fast.algebra.folded import Direct, Folded, LowRank, Merged, Mlp, to_dtype
from septr_fast.algebra.low_rank import fold_low_rank
from septr_fast.algebra.merged import fold_merged
from septr_fast.algebra.mlp import fold_mlp
from septr_fast.passes import dispatch
from septr_fast.passes.lengths import Lengths, clear
from septr_fast.passes.settings import Settings
from septr_fast.reference import Transformer

ATTENTION = launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "BLOCK_C": 256})
LOW_RANK = launch.Config({"BLOCK_Q": 16, "BLOCK_K": 16, "PARTS": 2})
TILES = {
    **{
        f"{name}{suffix}": ATTENTION
        for name in ("axis_attention_fwd", "axis_attention_bwd_query", "axis_attention_bwd_key")
        for suffix in ("", "_direct")
    },
    "fused_attention_fwd": launch.Config({"BLOCK_Q": 16, "BLOCK_C": 16}),
    "normalize": launch.Config({"BLOCK_M": 64}),
    "normalize_bwd": launch.Config({"BLOCK_L": 16, "SEQUENCES": 4}),
    "class_attention_fwd": launch.Config({"BLOCK_K": 16}),
    "class_attention_bwd": launch.Config({"BLOCK_K": 16, "ROWS": 2}),
    "low_rank_fwd": LOW_RANK,
    "low_rank_bwd": LOW_RANK,
}
"""Small enough that a sequence takes several tiles; the others of the tables are."""


class Tables(nn.Module):
    """Folds the first transformer, as a module so that its parameters can be given for a call."""

    def __init__(self, transformer: Transformer, channels: int, positions: Tensor) -> None:
        super().__init__()
        dim = positions.shape[1]
        self.transformer = transformer
        self.projection = nn.Linear(channels, dim)
        self.cls_token = nn.Parameter(torch.randn(dim))
        self.positions = nn.Parameter(positions)

    def forward(self) -> LowRank:
        return fold_low_rank(self.transformer, self.projection, self.cls_token, self.positions)


Kind = type[Direct] | type[Merged] | type[LowRank]


@dataclass(frozen=True)
class Case:
    """A pass and its operands.

    Attributes:
        kind: the form of the attention.
        axis: "height" or "width".
        heads: number of heads.
        tensors: all operands by name, those of the attention and of the MLP behind `attention.` and `mlp.`.
            In place of the low-rank tables they hold the parameters that `tables` folds: with one channel
            some tables are single numbers, of which no mean error can be taken.
        dtype: of the tokens that come out.
        class_only: whether the class token alone is transformed.
        tables: of the low-rank pass.
        lengths: valid tokens of each sample; in padding the grid that comes out is set to zero.
    """

    kind: Kind
    axis: str
    heads: int
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    class_only: bool = False
    tables: Tables | None = None
    lengths: Lengths | None = None

    def changed(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Case:
        """The same pass with every operand after `change`, and tokens in `dtype`."""
        tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, dtype=dtype or self.dtype)

    def run(self, backend: str) -> dict[str, Tensor]:
        """The grid, where there is one, and the class token."""
        results = self._run(backend)
        if self.lengths is not None and "out" in results:
            results["out"] = clear(results["out"], self.lengths)
        return results

    def _run(self, backend: str) -> dict[str, Tensor]:
        given = self.tensors
        settings = Settings(self.axis, lengths=self.lengths, dtype=self.dtype, backend=backend)
        mlp = Mlp(**_values("mlp.", given, Mlp))
        if self.tables is not None:
            attention = torch.func.functional_call(self.tables, _behind("attention.", given), ())
            results = dispatch.low_rank_pass(given["pixels"], Folded(attention, mlp), settings)
            return dict(zip(("out", "cls_out"), results, strict=True))
        weights = Folded(self.kind(heads=self.heads, **_values("attention.", given, self.kind)), mlp)
        tokens = (given["grid"], given["cls_token"], given["positions"])
        if self.class_only:
            return {"cls_out": dispatch.class_only_pass(*tokens, weights, settings)}
        return dict(zip(("out", "cls_out"), dispatch.axis_pass(*tokens, weights, settings), strict=True))

    def output_gradients(self) -> dict[str, Tensor]:
        """Random gradients of the results."""
        shapes = {name: x.shape for name, x in self.changed(lambda x: x.to("meta")).run("torch").items()}
        device = self.tensors["mlp.out_bias"].device
        return {name: torch.randn(shape).to(device, self.dtype) for name, shape in shapes.items()}


def _behind(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _values(prefix: str, tensors: dict[str, Tensor], kind: type) -> dict[str, Any]:
    """The fields of `kind` out of `tensors`, None where one is absent."""
    names = [field.name for field in fields(kind) if field.name not in ("heads", "eps")]
    return {"eps": 1e-5, **{name: _behind(prefix, tensors).get(name) for name in names}}


def draw(
    kind: Kind,
    axis: str,
    device: torch.device,
    residual: torch.dtype = torch.float32,
    compute: torch.dtype | None = None,
    *,
    scale: float = 1.0,
    shape: tuple[int, int, int] = (2, 2, 13),
    heads: int = 2,
    dim_head: int = 12,
    dim: int = 24,
    mlp_dim: int = 40,
    channels: int = 1,
    class_only: bool = False,
) -> Case:
    """A pass of a transformer with its norms and biases away from their starting values.

    Args:
        kind: form of the attention.
        axis: along which a sequence runs.
        device: of the operands.
        residual: dtype of the tokens.
        compute: dtype of the products, by default that of the tokens.
        scale: of tokens, pixels and positions.
        shape: batch, rows and length.
        heads: number of heads.
        dim_head: features of a head; with one head and `dim_head == dim` the output is not projected.
        dim: features of a token.
        mlp_dim: width of the hidden layer.
        channels: of a pixel.
        class_only: whether the class token alone is transformed.
    """
    batch, rows, length = shape
    compute = compute or residual
    size = (batch, length, rows) if axis == "height" else shape
    transformer = Transformer(dim, heads, dim_head, mlp_dim)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif name.endswith("norm.weight"):
                parameter.normal_(1, 0.25)
        transformer.sublayers[0].fn.to_qkv.weight.mul_(2)
        positions = scale * torch.randn(1 + length, dim)
        tables = None
        if kind is LowRank:
            tables = Tables(transformer, channels, positions)
            attention = {name: x for name, x in tables.named_parameters() if ".layers.0.1." not in name}
            tokens = {"pixels": scale * torch.randn(*size, channels)}
        else:
            fold = fold_direct if kind is Direct else fold_merged
            attention = vars(to_dtype(fold(transformer), compute))
            tokens = {"grid": scale * torch.randn(*size, dim), "cls_token": scale * torch.randn(batch, dim)}
            tokens["positions"] = positions
        layers = vars(to_dtype(fold_mlp(transformer), compute))
    tensors = {name: x.to(residual) for name, x in tokens.items()}
    for prefix, weights in (("attention.", attention), ("mlp.", layers)):
        tensors |= {prefix + name: x.detach() for name, x in weights.items() if isinstance(x, Tensor)}
    tensors = {name: x.to(device) for name, x in tensors.items()}
    return Case(kind, axis, heads, tensors, residual, class_only, tables)


def sharpened(case: Case, factor: float = 20.0) -> Case:
    """The same pass with queries `factor` times as large, so that scores lie far apart."""
    names: dict[Kind, tuple[str, ...]] = {
        Direct: ("qkv_weight", "qkv_bias"),
        Merged: ("query_weight", "query_bias"),
        LowRank: ("transformer.layers.0.0.fn.to_qkv.weight",),
    }
    tensors = dict(case.tensors)
    for name in (f"attention.{name}" for name in names[case.kind]):
        x = tensors[name] = tensors[name].clone()
        x[: len(x) if case.kind is Merged else len(x) // 3] *= factor
    return replace(case, tensors=tensors)


def step(case: Case, backend: str, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results, and every operand's gradient, by name."""
    leaves = case.changed(lambda x: x.detach().requires_grad_())
    results = leaves.run(backend)
    given = [gradients[name].to(result.dtype) for name, result in results.items()]
    found = torch.autograd.grad(list(results.values()), list(leaves.tensors.values()), given)
    return {name: x.detach() for name, x in results.items()} | dict(zip(leaves.tensors, found, strict=True))


def check(case: Case, gradients: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Assert that a pass on kernels is as good as plain PyTorch's in every result; its results."""
    gradients = gradients or case.output_gradients()
    results = step(case, "triton", gradients)
    exact = case.changed(Tensor.double, torch.float64)
    assert_all_as_good(results, step(case, "torch", gradients), step(exact, "torch", gradients))
    return results
