"""The backward pass of the first transformer's attention on the kernels of `low_rank_backward_kernels`: launchers."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from . import launch
from .low_rank import (
    ScoreTables,
    TokenFactors,
    channel_block,
    for_class_query,
    multiply,
    score_arguments,
    with_class_token,
)
from .low_rank_backward_kernels import low_rank_bwd_class_key_kernel, low_rank_bwd_kernel

LARGEST_PARTS = 1 << 24
"""Values in all parts of the gradient of a table, unless a single one has more."""


def coefficients_backward(
    grad_body: Tensor, grad_front: Tensor, factors: TokenFactors, statistics: Tensor, tables: ScoreTables
) -> tuple[TokenFactors, Tensor, Tensor, Tensor]:
    """The gradients of `coefficients`, float32.

    Args:
        grad_body: `(sequences * length, columns)`, in any strides.
        grad_front: `(sequences, columns)`, in any strides.
        factors: of the tokens.
        statistics: `(2, sequences, heads, tokens)`, what `coefficients` gave.
        tables: as for `coefficients`.

    Returns:
        The gradients of the factors, and of `tables` those of `pixel_position`, `position_position` and
        `position_bias`. Those of several cuts along the sequences add up.

    Raises:
        LookupError: where no configuration serves so many channels.
    """
    sequences, tokens = factors.r.shape
    length, heads, features = tables.length, tables.heads, 1 + tables.channels
    chosen = launch.choose("low_rank_bwd", grad_body.device, grad_body.dtype, channel_block(tables))
    parts = max(1, min(chosen.tiles["PARTS"], LARGEST_PARTS // tables.position_position.numel()))
    for_grid = replace(chosen, tiles={**chosen.tiles, "PARTS": parts})
    key_blocks = launch.ceil_div(length, for_grid.tiles["BLOCK_K"])
    query_blocks = 1 + launch.ceil_div(length, for_grid.tiles["BLOCK_Q"])
    empty = factors.r.new_empty
    delta = empty(sequences, heads, tokens)
    factor_parts = empty(key_blocks + 1 + query_blocks, heads, sequences, tokens, features)
    query_parts = empty(key_blocks, sequences, tokens, heads, tables.channels)
    table_parts = empty(parts, tokens, heads, tokens)
    slope_parts = empty(query_blocks, parts, heads, tokens, features)
    for grad, first, config in ((grad_body, 1, for_grid), (grad_front, 0, for_class_query(for_grid))):
        blocks = query_blocks - 1 if first else 1
        arguments = score_arguments(factors, tables) | {
            "highest_ptr": statistics[0],
            "total_ptr": statistics[1],
            "grad_ptr": grad,
            "delta_ptr": delta,
            "factor_parts_ptr": factor_parts,
            "table_parts_ptr": table_parts,
            "slope_parts_ptr": slope_parts,
            "grad_strides": grad.stride(),
            "first": first,
            "queries": length if first else 1,
            "blocks": blocks,
            "key_blocks": key_blocks,
        }
        kernel, device = low_rank_bwd_class_key_kernel, grad.device
        launch.launch("low_rank_bwd_class_key", kernel, blocks * heads * parts, config, arguments, device=device)
        class_key = ("cls_table_ptr", "cls_table_strides")
        arguments = {name: value for name, value in arguments.items() if name not in class_key}
        arguments["query_parts_ptr"] = query_parts
        programs = key_blocks * blocks * heads * parts
        launch.launch("low_rank_bwd", low_rank_bwd_kernel, programs, config, arguments, device=device)
    grad_factors, grad_slope = factor_parts.sum((0, 1)), slope_parts.sum((0, 1))
    return (
        TokenFactors(grad_factors[..., 0], grad_factors[..., 1:], query_parts.sum(0)),
        grad_slope[..., 1:].permute(2, 0, 1).flatten(1),
        table_parts.sum(0),
        grad_slope[..., 0].flatten(),
    )


def token_factors_backward(
    grad: TokenFactors, pixels: Tensor, factors: TokenFactors, tables: ScoreTables, pixels_gradient: bool = True
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The gradients of `token_factors`.

    Args:
        grad: of the factors, float32.
        pixels: `(batch, rows, length, channels)`.
        factors: what `token_factors` gave.
        tables: as for `token_factors`.
        pixels_gradient: whether the gradient of `pixels` is asked for.

    Returns:
        The gradients of `gram`, `cross`, `square`, `pixel_pixel`, `position_pixel` and `pixel_bias` by name,
        float32, and that of `pixels` in its dtype, or None.
    """
    s, r, query = with_class_token(pixels), factors.r.unsqueeze(-1), grad.query.flatten(2)
    grad_u = grad.u + multiply_transposed(query, tables.pixel_pixel)
    grad_r = grad.r + (query * tables.position_pixel.flatten(1)).sum(-1) + (grad_u * s).sum(-1)
    grad_variance = (-0.5 * grad_r).unsqueeze(-1) * r**3
    weighted = grad_variance * s
    gradients = {
        "gram": weighted.flatten(0, 1).t() @ s.flatten(0, 1),
        "cross": weighted.sum(0),
        "square": grad_variance.sum(0).squeeze(-1),
        "pixel_pixel": factors.u.flatten(0, 1).t() @ query.flatten(0, 1),
        "position_pixel": (query * r).sum(0).view_as(tables.position_pixel),
        "pixel_bias": query.sum((0, 1)),
    }
    if not pixels_gradient:
        return gradients, None
    slope = multiply(s, tables.gram) + multiply_transposed(s, tables.gram) + tables.cross
    grad_s = grad_u * r + grad_variance * slope
    return gradients, grad_s[:, 1:].reshape(pixels.shape).to(pixels.dtype)


def multiply_transposed(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrixᵀ`; exact float32 where there is one channel, whatever the precision of products."""
    return (x * matrix).sum(-1, keepdim=True) if len(matrix) == 1 else x @ matrix.t()
