"""The model's first transformer from the pixels on kernels: attention by tables, MLP, and their gradients.

A token is `s A + c`, a pixel's channels times the projection plus a constant of its position, so that scores
and values follow from tables (`septr_fast.algebra.folded.LowRank`). For a chunk of rows:

    coefficients = softmax of the scores, scaled      kernels, (n · length + n, columns)
    branch = coefficients values + bias              vendor's product
    y = s A + c + branch, z = y + MLP(y)             kernel

Besides the pixels only `y` is kept for the backward pass, which computes the coefficients again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .low_rank import ScoreTables, TokenFactors, coefficients, token_factors, values, values_backward
from .low_rank_backward import coefficients_backward, token_factors_backward
from .operators import along
from .passes import Layers, add_mlp, add_mlp_backward, add_up, branch_gradient, chunks, parts, sequences
from .products import column_sums, outer


@dataclass(frozen=True)
class Tables:
    """What fixes the pass: score tables, values and tokens in float32, the MLP in the dtype of the products.

    Attributes:
        scores: see `low_rank.ScoreTables`.
        position_values: `(dim, heads * tokens)`.
        pixel_values: `(dim, heads * channels)`.
        out_bias: `(dim,)`.
        token_weight: `(dim, channels)`, the projection A transposed.
        token_bias: `(tokens, dim)`, the constants c, the class token's in front.
        layers: the MLP.
    """

    scores: ScoreTables
    position_values: Tensor
    pixel_values: Tensor
    out_bias: Tensor
    token_weight: Tensor
    token_bias: Tensor
    layers: Layers

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, in the order of the operator's arguments."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**vars(self.scores), **{k: v for k, v in own.items() if isinstance(v, Tensor)}, **vars(self.layers)}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.layers.mlp_weight.dtype


def forward(
    pixels: Tensor, tables: Tables, eps: float, axis: str, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run the pass.

    Args:
        pixels: `(batch, height, width, channels)`, any strides.
        tables: what fixes the pass.
        eps: added to the variance of a token before the MLP.
        axis: "height" or "width", the axis that a sequence runs along.
        dtype: of the tokens that come out.
        keep: whether to return what the backward pass needs.

    Returns:
        The grid `(batch, height, width, dim)`, the class token of every sequence `(batch, rows, dim)`, and
        with `keep` what both were between attention and MLP.
    """
    rows = along(pixels, axis)
    batch, count = rows.shape[:2]
    dim = len(tables.out_bias)
    out = torch.empty(*pixels.shape[:3], dim, dtype=dtype, device=pixels.device)
    cls_out = out.new_empty(batch, count, dim)
    middle, cls_middle = (torch.empty_like(out), torch.empty_like(cls_out)) if keep else (None, None)
    cls_branch = torch.empty_like(cls_out, dtype=tables.dtype)
    matrix, bias = _value_matrix(tables), tables.out_bias.to(tables.dtype)
    factors = token_factors(rows, tables.scores)
    for chunk in chunks(rows, tables.scores.columns, tables.dtype):
        body, front, _ = coefficients(_cut(factors, sequences(chunk, count)), tables.scores, tables.dtype)
        branch = torch.addmm(bias, body, matrix).view(*rows[chunk].shape[:3], dim)
        cls_branch[chunk] = torch.addmm(bias, front, matrix).view(cls_branch[chunk].shape)
        kept = None if middle is None else along(middle, axis)[chunk]
        tokens = _tokens(rows[chunk].float(), tables, dtype)
        add_mlp(tokens, None, branch, tables.layers, eps, kept, along(out, axis)[chunk])
    kept = None if cls_middle is None else cls_middle.unsqueeze(2)
    cls_token = tables.token_bias[:1].to(dtype).expand(batch, count, 1, dim)
    add_mlp(cls_token, None, cls_branch.unsqueeze(2), tables.layers, eps, kept, cls_out.unsqueeze(2))
    return out, cls_out, middle, cls_middle


def backward(
    grad_out: Tensor,
    grad_cls_out: Tensor,
    pixels: Tensor,
    tables: Tables,
    eps: float,
    axis: str,
    middle: Tensor,
    cls_middle: Tensor,
    pixels_gradient: bool,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Gradients of `forward`, from those of its first two results (any strides) and what it kept.

    Returns:
        The gradient of the pixels, or None without `pixels_gradient`, and those of the tables by name in float32.
    """
    rows, grad_rows, middle_rows = (along(x, axis) for x in (pixels, grad_out, middle))
    sums = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in tables.tensors.items()}
    matrix, grad_matrix = _value_matrix(tables), torch.zeros_like(_value_matrix(tables), dtype=torch.float32)
    added = {**sums, "matrix": grad_matrix, "token_bias": sums["token_bias"][1:]}
    grad_pixels = torch.zeros_like(rows, dtype=torch.float32) if pixels_gradient else None
    grad_cls_middle = torch.empty_like(cls_middle)
    through, grad = (x.unsqueeze(2) for x in (cls_middle, grad_cls_out))
    add_up(sums, add_mlp_backward(through, grad, tables.layers, eps, grad_cls_middle.unsqueeze(2)))
    factors = token_factors(rows, tables.scores)
    grad_factors = _empty_like(factors)
    for chunk in chunks(rows, tables.scores.columns, tables.dtype):
        numbers = sequences(chunk, rows.shape[1])
        cut = _cut(factors, numbers)
        body, front, statistics = coefficients(cut, tables.scores, tables.dtype)
        grad_middle, grad_branch, found = branch_gradient(
            middle_rows[chunk], grad_rows[chunk], grad_cls_middle[chunk], tables.layers, eps
        )
        grad_body, grad_front = (grad.flatten(0, -2) for grad in parts(grad_branch, grad_middle.shape))
        grad_scores = coefficients_backward(
            grad_body @ matrix.t(), grad_front @ matrix.t(), cut, statistics, tables.scores
        )
        for field in fields(TokenFactors):
            getattr(grad_factors, field.name)[numbers] = getattr(grad_scores[0], field.name)
        found |= zip(("pixel_position", "position_position", "position_bias"), grad_scores[1:], strict=True)
        grad_tokens = grad_middle.float().flatten(0, 2)
        found["out_bias"] = column_sums(grad_branch)
        found["matrix"] = outer(body, grad_body) + outer(front, grad_front)
        found["token_bias"] = grad_middle.sum((0, 1), dtype=torch.float32)
        found["token_weight"] = grad_tokens.t() @ rows[chunk].float().flatten(0, 2)
        add_up(added, found)
        if grad_pixels is not None:
            grad_pixels[chunk] = (grad_tokens @ tables.token_weight).view(grad_pixels[chunk].shape)
    sums["token_bias"][0] += grad_cls_middle.sum((0, 1), dtype=torch.float32)
    sums["position_values"], sums["pixel_values"] = values_backward(grad_matrix, tables.scores)
    of_tables, through_scores = token_factors_backward(grad_factors, rows, factors, tables.scores, pixels_gradient)
    sums |= of_tables
    if grad_pixels is None or through_scores is None:
        return None, sums
    return along((grad_pixels + through_scores).to(pixels.dtype), axis).contiguous(), sums


def _tokens(pixels: Tensor, tables: Tables, dtype: torch.dtype) -> Tensor:
    """The tokens `s A + c` of float32 pixels `(…, length, channels)`, rounded once."""
    constant, matrix = tables.token_bias[1:], tables.token_weight.t()
    tokens = torch.empty(*pixels.shape[:-1], matrix.shape[1], dtype=dtype, device=pixels.device)
    if len(matrix) == 1:
        return torch.addcmul(constant, pixels, matrix, out=tokens)
    return torch.add(pixels @ matrix, constant, out=tokens)


def _value_matrix(tables: Tables) -> Tensor:
    """The values as coefficients take them, `(columns, dim)`, in the dtype of the products."""
    return values(tables.position_values, tables.pixel_values, tables.scores).to(tables.dtype)


def _cut(factors: TokenFactors, numbers: slice) -> TokenFactors:
    return TokenFactors(factors.r[numbers], factors.u[numbers], factors.query[numbers])


def _empty_like(factors: TokenFactors) -> TokenFactors:
    return TokenFactors(*(torch.empty_like(tensor) for tensor in (factors.r, factors.u, factors.query)))
