"""The first transformer's attention on the kernels of `low_rank_kernels`: launchers, forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import launch
from .low_rank_kernels import low_rank_fwd_kernel


@dataclass(frozen=True)
class ScoreTables:
    """What fixes the scores, float32, in any strides; `tokens` = length + 1, the class token in front.

    Attributes:
        gram: `(channels, channels)`; with `cross` and `square` the variance of a token with pixel s,
            `s gram sᵀ + cross · s + square`.
        cross: `(tokens, channels)`.
        square: `(tokens,)`, eps included.
        pixel_pixel: `(channels, heads * channels)`, E.
        position_pixel: `(tokens, heads, channels)`, G.
        pixel_bias: `(heads * channels,)`, e.
        pixel_position: `(channels, heads * tokens)`, F.
        position_position: `(tokens, heads, tokens)`, T.
        position_bias: `(heads * tokens,)`, f.
    """

    gram: Tensor
    cross: Tensor
    square: Tensor
    pixel_pixel: Tensor
    position_pixel: Tensor
    pixel_bias: Tensor
    pixel_position: Tensor
    position_position: Tensor
    position_bias: Tensor

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.position_pixel.shape[1]

    @property
    def length(self) -> int:
        """Grid tokens per sequence."""
        return self.position_pixel.shape[0] - 1

    @property
    def channels(self) -> int:
        """Values of a pixel."""
        return self.position_pixel.shape[2]

    @property
    def columns(self) -> int:
        """Width of a row of coefficients, a multiple of 16."""
        return launch.ceil_div(self.heads * (self.length + 1 + self.channels), 16) * 16


@dataclass(frozen=True)
class TokenFactors:
    """What the scores read of the tokens, float32, in any strides.

    Attributes:
        r: `(sequences, tokens)`, the factor of a token's normalization.
        u: `(sequences, tokens, channels)`, the pixel times r.
        query: `(sequences, tokens, heads, channels)`, what is compared with u.
    """

    r: Tensor
    u: Tensor
    query: Tensor


def token_factors(pixels: Tensor, tables: ScoreTables) -> TokenFactors:
    """The factors of the tokens of `pixels` `(batch, rows, length, channels)`, the class token in front.

    They are a few values per token: compute them once, and cut them along the sequences for `coefficients`.
    """
    s = with_class_token(pixels)
    variance = ((multiply(s, tables.gram) + tables.cross) * s).sum(-1) + tables.square
    r = variance.rsqrt()
    u = s * r.unsqueeze(-1)
    query = (multiply(u, tables.pixel_pixel) + tables.pixel_bias).unflatten(2, (tables.heads, tables.channels))
    return TokenFactors(r, u, torch.addcmul(query, r[..., None, None], tables.position_pixel))


def with_class_token(pixels: Tensor) -> Tensor:
    """Pixels `(batch, rows, length, channels)` as float32 `(batch * rows, tokens, channels)`, zero in front."""
    return F.pad(pixels.float(), (0, 0, 1, 0)).flatten(0, 1)


def multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix`; exact float32 where there is one channel, whatever the precision of products."""
    return x * matrix if len(matrix) == 1 else x @ matrix


def coefficients(factors: TokenFactors, tables: ScoreTables, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients of every token's attention output in `values`.

    Args:
        factors: of the tokens of `sequences` sequences.
        tables: as for `token_factors`.
        dtype: of the coefficients.

    Returns:
        The rows of the grid tokens `(sequences * length, columns)`, of the class tokens `(sequences, columns)`,
        one after the other in one buffer, and what the backward pass needs of the softmax, float32
        `(2, sequences, heads, tokens)`.

    Raises:
        LookupError: where no configuration serves so many channels.
    """
    sequences, tokens = factors.r.shape
    length, heads = tables.length, tables.heads
    rows = factors.r.new_empty(sequences * tokens, tables.columns, dtype=dtype)
    body, front = rows.split([sequences * length, sequences])
    statistics = factors.r.new_empty(2, sequences, heads, tokens)
    for_grid = launch.choose("low_rank_fwd", rows.device, dtype, channel_block(tables))
    for target, first, config in ((body, 1, for_grid), (front, 0, for_class_query(for_grid))):
        queries = length if first else 1
        blocks = launch.ceil_div(queries, config.tiles["BLOCK_Q"])
        arguments = score_arguments(factors, tables) | {
            "rows_ptr": target,
            "highest_ptr": statistics[0],
            "total_ptr": statistics[1],
            "columns": tables.columns,
            "first": first,
            "queries": queries,
            "blocks": blocks,
            "RESIDENT": length <= config.tiles["BLOCK_K"],
        }
        programs = blocks * heads * config.tiles["PARTS"] if sequences else 0
        launch.launch("low_rank_fwd", low_rank_fwd_kernel, programs, config, arguments, device=rows.device)
    return body, front, statistics


def score_arguments(factors: TokenFactors, tables: ScoreTables) -> dict[str, Any]:
    """The kernels' arguments for the scores; the table of the grid's keys is copied, for aligned rows.

    Slopes are contiguous: their kernels multiply channels by strides in 32 bits.
    """
    cls_table, table = tables.position_position[..., 0], tables.position_position[..., 1:].contiguous()
    slope = tables.pixel_position.contiguous().unflatten(1, (tables.heads, -1))
    bias = tables.position_bias.unflatten(0, (tables.heads, -1))
    return {
        "r_ptr": factors.r,
        "u_ptr": factors.u,
        "query_ptr": factors.query,
        "slope_ptr": slope,
        "table_ptr": table,
        "cls_table_ptr": cls_table,
        "bias_ptr": bias,
        "r_strides": factors.r.stride(),
        "u_strides": factors.u.stride(),
        "query_strides": factors.query.stride(),
        "slope_strides": slope.stride(),
        "table_strides": table.stride(),
        "cls_table_strides": cls_table.stride(),
        "bias_strides": bias.stride(),
        "sequences": len(factors.r),
        "length": tables.length,
        "heads": tables.heads,
        "CHANNELS": tables.channels,
        "BLOCK_C": channel_block(tables),
    }


def channel_block(tables: ScoreTables) -> int:
    """The tile width for the channels: a power of two."""
    return 1 << (tables.channels - 1).bit_length()


def for_class_query(config: launch.Config) -> launch.Config:
    """`config` for blocks of one query, the class token's."""
    return replace(config, tiles={**config.tiles, "BLOCK_Q": 1})


def values(position_values: Tensor, pixel_values: Tensor, tables: ScoreTables) -> Tensor:
    """Lay out the values so that `coefficients @ values` is the attention's output without its bias.

    Args:
        position_values: `(dim, heads * tokens)`, of the tokens' constants.
        pixel_values: `(dim, heads * channels)`, of the pixels.
        tables: whose sizes count alone.

    Returns:
        `(columns, dim)`; differentiable.
    """
    of_tokens = position_values.unflatten(1, (tables.heads, -1))
    parts = torch.cat([of_tokens[..., 1:].flatten(1), of_tokens[..., 0], pixel_values], dim=1)
    return F.pad(parts, (0, tables.columns - parts.shape[1])).t()


def values_backward(grad: Tensor, tables: ScoreTables) -> tuple[Tensor, Tensor]:
    """The gradients of `position_values` and `pixel_values` from that of `values`, `(columns, dim)`."""
    heads, length = tables.heads, tables.length
    of_grid, of_class, of_pixels, _ = grad.t().split(
        [heads * length, heads, heads * tables.channels, len(grad) - heads * (length + 1 + tables.channels)], dim=1
    )
    of_tokens = torch.cat([of_class.unsqueeze(2), of_grid.unflatten(1, (heads, length))], dim=2)
    return of_tokens.flatten(1), of_pixels
