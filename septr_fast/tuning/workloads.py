"""Passes in inference and in training on random tokens: what launch configurations are measured and checked on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

import septr_fast.kernels as kernels
from septr_fast.algebra.fold import Tokens, fold
from septr_fast.algebra.folded import Direct, Folded, LowRank, Merged, Mlp
from septr_fast.algebra.plan import TransformerShape
from septr_fast.model import SepTr
from septr_fast.passes import dispatch
from septr_fast.passes.settings import Settings
from septr_fast.reference import Transformer

PASSES = {"direct": "axis_pass", "merged": "axis_pass", "low-rank": "low_rank_pass", "class-only": "class_only_pass"}
"""The pass of `septr_fast.passes.dispatch` that runs each formulation."""

Weights = Direct | Merged | LowRank | Mlp


@dataclass(frozen=True)
class Workload:
    """One pass and its operands.

    Attributes:
        shape: of the transformer.
        formulation: of the attention.
        tokens: `(batch, height, width, dim)`, or pixels `(batch, height, width, channels)` for "low-rank".
        cls_token: `(batch, dim)`.
        pos_embedding: `(1 + length, dim)`.
        attention: folded weights.
        mlp: folded weights, in the dtype of the products.
    """

    shape: TransformerShape
    formulation: str
    tokens: Tensor
    cls_token: Tensor
    pos_embedding: Tensor
    attention: Direct | Merged | LowRank
    mlp: Mlp

    @property
    def name(self) -> str:
        """Readable, and unique among the workloads of `workloads`."""
        shape, dtypes = self.shape, (self.cls_token.dtype, self.mlp.out_weight.dtype)
        kinds = ", residual stream ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes[::-1]))
        return (
            f"{self.formulation} along the {shape.axis}, {len(self.tokens)} x {shape.rows} x {shape.length} tokens "
            f"of {shape.dim}, {shape.heads} heads of {shape.dim_head}, {kinds}"
        )

    @property
    def pass_name(self) -> str:
        """The function of `septr_fast.passes.dispatch`."""
        return PASSES[self.formulation]

    def run(self, backend: str = "triton") -> dict[str, Tensor]:
        """Results in inference and in training, and gradients, by name.

        The gradients of the results are such that every dtype holds them exactly.
        """
        operands = self._operands()
        with torch.no_grad():
            inferred = {f"{name} in inference": x for name, x in self._with(operands)._forward(backend).items()}
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in operands.items()}
        results = self._with(leaves)._forward(backend)
        generator = torch.Generator(self.tokens.device).manual_seed(1)
        directions = [
            (torch.randint(-127, 128, x.shape, generator=generator, device=x.device) / 64).to(x.dtype)
            for x in results.values()
        ]
        gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), directions, allow_unused=True)
        found = {f"gradient of {name}": x for name, x in zip(leaves, gradients, strict=True) if x is not None}
        return {**inferred, **{name: x.detach() for name, x in results.items()}, **found}

    def exact(self) -> dict[str, Tensor]:
        """What `run` should give, computed in float64 on plain PyTorch."""
        return self._with({name: tensor.double() for name, tensor in self._operands().items()}).run("torch")

    def redrawn(self) -> Workload:
        """The same pass on other random operands."""
        dtypes = self.cls_token.dtype, self.mlp.out_weight.dtype
        return _draw(self.formulation, self.shape, *dtypes, len(self.tokens), self.tokens.device)

    def _operands(self) -> dict[str, Tensor]:
        own = {"tokens": self.tokens, "cls_token": self.cls_token, "pos_embedding": self.pos_embedding}
        if self.formulation == "low-rank":
            own = {"tokens": self.tokens}
        return {**own, **_tensors("attention", self.attention), **_tensors("mlp", self.mlp)}

    def _with(self, operands: Mapping[str, Tensor]) -> Workload:
        """The same pass with other operands, named as in `_operands`."""

        def part(owner: str, weights: Any) -> Any:
            names = [field.name for field in fields(weights) if f"{owner}.{field.name}" in operands]
            return replace(weights, **{name: operands[f"{owner}.{name}"] for name in names})

        own: dict[str, Any] = {name: tensor for name, tensor in operands.items() if "." not in name}
        return replace(self, **own, attention=part("attention", self.attention), mlp=part("mlp", self.mlp))

    def _forward(self, backend: str) -> dict[str, Tensor]:
        weights = Folded(self.attention, self.mlp)
        dtype = torch.promote_types(self.cls_token.dtype, self.tokens.dtype)
        settings = Settings(self.shape.axis, dtype=dtype, backend=backend)
        if self.formulation == "low-rank":
            grid, cls_token = dispatch.low_rank_pass(self.tokens, weights, settings)
            return {"grid": grid, "cls_token": cls_token}
        operands = (self.tokens, self.cls_token, self.pos_embedding)
        if self.formulation == "class-only":
            return {"cls_token": dispatch.class_only_pass(*operands, weights, settings)}
        grid, cls_token = dispatch.axis_pass(*operands, weights, settings)
        return {"grid": grid, "cls_token": cls_token}


def workloads(
    config: Mapping[str, Any], dtypes: Sequence[torch.dtype], batch: int, device: torch.device
) -> Iterator[Workload]:
    """The passes of a model that Triton runs: those planned, and the merged and the direct form of each.

    In 16 bits what is planned comes with a float32 residual stream too, as under autocast.

    Args:
        config: constructor arguments of `SepTr`; the depth counts for nothing.
        dtypes: of the products.
        batch: number of spectrograms.
        device: where the tensors are.
    """
    seen: dict[tuple[str, TransformerShape], bool] = {}
    for forced in (None, "merged", "direct"):
        with torch.device("meta"):
            model = SepTr(**{**config, "depth": 2, "formulation": forced})
        for step in model.plan().steps:
            channels = step.shape.channels if step.formulation == "low-rank" else None
            key = step.formulation, replace(step.shape, channels=channels, last=step.formulation == "class-only")
            seen.setdefault(key, forced is None)
    for (formulation, shape), planned in seen.items():
        for dtype in dtypes:
            for residual in dict.fromkeys((dtype, torch.float32) if planned else (dtype,)):
                if _why_not(formulation, shape, residual, dtype) is None:
                    yield _draw(formulation, shape, residual, dtype, batch, device)


def _why_not(formulation: str, shape: TransformerShape, residual: torch.dtype, dtype: torch.dtype) -> str | None:
    """What keeps a pass from Triton, whatever the device."""
    name, head_dim = PASSES[formulation], shape.dim if formulation == "merged" else shape.dim_head
    if name not in kernels.PASSES:
        return f"{name} has no kernel"
    limit = {"dim": shape.dim, "head_dim": head_dim, "heads": shape.heads, "dropout": False}
    return kernels.limit(name, dtypes=(residual, dtype), **limit)


def _draw(
    formulation: str,
    shape: TransformerShape,
    residual: torch.dtype,
    dtype: torch.dtype,
    batch: int,
    device: torch.device,
) -> Workload:
    height, width = (shape.length, shape.rows) if shape.axis == "height" else (shape.rows, shape.length)
    features = shape.channels if formulation == "low-rank" and shape.channels is not None else shape.dim
    with torch.device(device), torch.no_grad():
        transformer = Transformer(shape.dim, shape.heads, shape.dim_head, shape.mlp_dim)
        cls_token, pos = torch.randn(batch, shape.dim), torch.randn(1 + shape.length, shape.dim)
        tokens = torch.randn(batch, height, width, features)
        made_of = Tokens(nn.Linear(features, shape.dim), cls_token[0], pos) if formulation == "low-rank" else None
        attention, mlp = fold(transformer, formulation, dtype, made_of)
    return Workload(shape, formulation, tokens.to(residual), cls_token.to(residual), pos.to(residual), attention, mlp)


def _tensors(owner: str, weights: Weights) -> dict[str, Tensor]:
    """The tensors of folded weights by the name of their owner and their own."""
    return {f"{owner}.{name}": value for name, value in vars(weights).items() if isinstance(value, Tensor)}
