"""Parts of SepTr under one interface: tokens and a class token in, both out, for the reference and for `SepTr`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.suite.cases import ATTENTION, BLOCK, TRANSFORMER
from septr_fast import SepTr, SepTrBlock, reference
from septr_fast.algebra.fold import fold
from septr_fast.algebra.folded import Folded, Merged
from septr_fast.passes import backend, dispatch
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import chunks
from septr_fast.passes.torch.attention import merged_attention
from septr_fast.passes.torch.linear import linear

Outputs = tuple[Tensor, Tensor]


def block_config(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a block inside the model of `config`: tokens in, tokens out, pooled already."""
    with torch.device("meta"):
        first = SepTr(**config).plan().steps[0].shape
    widths = {"heads": first.heads, "dim_head": first.dim_head, "mlp_dim": first.mlp_dim, "dim": first.dim}
    return {"channels": first.dim, "input_size": (first.length, first.rows), **widths}


class Part(nn.Module):
    """One part of a block.

    Args:
        group: which part.
        block: of the reference, of a baseline or of this package.
        backend: of this package's parts.
    """

    def __init__(self, group: str, block: reference.SepTrBlock, backend: str = "auto") -> None:
        super().__init__()
        self.block = block
        run: Callable[[Tensor, Tensor], Outputs] = block
        if group == TRANSFORMER:
            run = partial(_own_transformer, block, backend) if isinstance(block, SepTrBlock) else block.along_width
        elif group != BLOCK:
            axis = next(axis for axis, name in ATTENTION.items() if name == group)
            ours = isinstance(block, SepTrBlock)
            run = partial(_own_attention, block, axis, backend) if ours else partial(_plain_attention, block, axis)
        self.run = run

    def forward(self, x: Tensor, cls_token: Tensor) -> Outputs:
        """Run the part.

        Args:
            x: for a block `(batch, dim, height, width)`, otherwise the grid `(batch, height, width, dim)`.
            cls_token: `(batch, 1, 1, dim)`.

        Returns:
            Both after the part; of an attention the class token of every sequence.
        """
        return self.run(x, cls_token)


def inputs(group: str, config: dict[str, Any], batch: int, device: torch.device, dtype: torch.dtype) -> Outputs:
    """Random tokens and class tokens for a part."""
    block = block_config(config)
    (height, width), dim = block["input_size"], block["dim"]
    shape = (batch, dim, height, width) if group == BLOCK else (batch, height, width, dim)
    return torch.randn(shape).to(device, dtype), torch.randn(batch, 1, 1, dim).to(device, dtype)


def _plain_attention(block: reference.SepTrBlock, axis: str, grid: Tensor, cls_token: Tensor) -> Outputs:
    """Normalization and attention along `axis`, as the reference does it."""
    rows = grid.transpose(1, 2) if axis == "height" else grid
    front = cls_token.expand(-1, rows.shape[1], -1, -1)
    out = getattr(block, f"transformer_{axis[0]}").sublayers[0](torch.cat([front, rows], dim=2))
    return out[:, :, 1:].transpose(1, 2) if axis == "height" else out[:, :, 1:], out[:, :, 0]


def _own_attention(block: reference.SepTrBlock, axis: str, name: str, grid: Tensor, cls_token: Tensor) -> Outputs:
    """Normalization and attention along `axis`, merged, as this package does it."""
    transformer = getattr(block, f"transformer_{axis[0]}")
    weights = cast(Merged, _kept(transformer, grid.dtype).attention)
    if backend.choose(name, "axis_pass", grid.device, products=grid.dtype) == "triton":
        return _triton_attention(weights, axis, grid, cls_token[:, 0, 0])
    rows = grid.transpose(1, 2) if axis == "height" else grid
    size = rows.shape[2] * weights.query_weight.shape[0] * grid.element_size()
    limit = chunks.CPU_CHUNK_BYTES if grid.device.type == "cpu" else chunks.DEVICE_CHUNK_BYTES
    out, cls_out = torch.empty_like(grid), grid.new_empty(*rows.shape[:2], rows.shape[3])
    written = out.transpose(1, 2) if axis == "height" else out
    for start in range(0, rows.shape[1], max(1, limit // (size * len(rows)))):
        chunk = slice(start, start + max(1, limit // (size * len(rows))))
        front = cls_token.expand(-1, rows[:, chunk].shape[1], -1, -1)
        tokens = torch.cat([front, rows[:, chunk]], dim=2)
        attended = merged_attention(tokens.flatten(0, 1), weights, None)
        attended = linear(attended, weights.out_weight, weights.out_bias).view_as(tokens)
        written[:, chunk], cls_out[:, chunk] = attended[:, :, 1:], attended[:, :, 0]
    return out, cls_out


def _triton_attention(weights: Merged, axis: str, grid: Tensor, cls_token: Tensor) -> Outputs:
    from septr_fast.kernels.axis_attention_operator import axis_attention
    from septr_fast.kernels.normalization import normalize

    hat, cls_hat = normalize(grid, None, weights.eps, grid.dtype), F.layer_norm(cls_token, cls_token.shape[-1:])
    query, cls_query = (F.linear(x, weights.query_weight, weights.query_bias) for x in (hat, cls_hat))
    attended = axis_attention(query, hat, None, cls_query, cls_hat, None, weights.heads, axis)[:2]
    out, cls_out = (F.linear(x, weights.out_weight, weights.out_bias) for x in attended)
    return out, cls_out


def _own_transformer(block: SepTrBlock, name: str, grid: Tensor, cls_token: Tensor) -> Outputs:
    """The transformer along the width."""
    weights, positions = _kept(block.transformer_w, grid.dtype), block.pos_embedding_w[0, 0]
    out, front = dispatch.axis_pass(grid, cls_token[:, 0, 0], positions, weights, Settings("width", backend=name))
    return out, front[:, None, None]


def _kept(transformer: reference.Transformer, dtype: torch.dtype) -> Folded:
    """Merged weights, folded once: parts are timed in inference."""
    if "kept" not in vars(transformer):
        with torch.no_grad():
            vars(transformer)["kept"] = fold(transformer, "merged", dtype)
    kept: Folded = vars(transformer)["kept"]
    return kept
