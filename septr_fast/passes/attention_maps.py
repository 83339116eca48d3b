"""What each transformer attends to: the softmax probabilities themselves, computed again from its weights.

No formulation of the passes but the direct one has them at hand, and none keeps them. Here the folded query and key
projections of `septr_fast.algebra` are applied to the tokens that enter a transformer, a chunk of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from septr_fast.algebra.direct import fold_direct
from septr_fast.algebra.folded import Direct
from septr_fast.algebra.reading import why_written
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.sublayers import class_query, normalize
from septr_fast.passes.torch.linear import linear
from septr_fast.reference import Attention, PreNorm, Transformer

QUERIES = ("class", "all")

_CHUNK_BYTES = 32 << 20


class AttentionMaps(NamedTuple):
    """Probabilities of one block, float32 or float64; the last dimension is over keys and sums to one.

    Key 0 is the class token, key `1 + i` the token at place `i`; queries are numbered alike, where all are wanted.
    `height` and `width` count tokens, after the pooling.

    Attributes:
        height: of the transformer along the height, `(batch, width, heads, queries, 1 + height)`: one map for each
            column.
        width: of the transformer along the width, `(batch, height, heads, queries, 1 + width)`: one map for each row.
    """

    height: Tensor
    width: Tensor


class MapRecorder:
    """Watches the transformers of one block; `SepTrBlock.transform` calls it with what enters each of them.

    Args:
        queries: "class" for the class token's query alone, "all" for every token's.
        lengths: valid tokens of each sample; None for all.
    """

    def __init__(self, queries: str, lengths: Lengths | None) -> None:
        self.queries, self.lengths = queries, lengths
        self._found: dict[str, Tensor] = {}

    def __call__(
        self, axis: str, transformer: Transformer, grid: Tensor, cls_token: Tensor, pos_embedding: Tensor
    ) -> None:
        """Compute the maps of `transformer` along `axis`; raise `TypeError` where it has no attention to read."""
        weights = fold_direct(transformer) if why_written(transformer) is None else _written_attention(transformer)
        self._found[axis] = maps_along(
            grid, cls_token, pos_embedding, weights, axis=axis, queries=self.queries, lengths=self.lengths
        )

    def maps(self) -> AttentionMaps:
        """The maps of both transformers."""
        return AttentionMaps(**self._found)


def check_queries(queries: str) -> None:
    """Raise `ValueError` unless `queries` is one of `QUERIES`."""
    if queries not in QUERIES:
        raise ValueError(f"queries: expected one of {', '.join(QUERIES)}, got {queries!r}")


def maps_along(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct | PreNorm,
    *,
    axis: str,
    queries: str,
    lengths: Lengths | None = None,
) -> Tensor:
    """Attention probabilities of every sequence along `axis`.

    Args:
        grid: `(batch, height, width, dim)`.
        cls_token: `(batch, dim)`.
        pos_embedding: `(1 + length, dim)`, the class token's position first.
        attention: folded attention sublayer, in the dtype to compute in, or the sublayer itself, to be called.
        axis: "height" or "width", the axis that a sequence runs along.
        queries: "class" or "all".
        lengths: valid tokens of each sample; None for all.

    Returns:
        `(batch, rows, heads, 1 or 1 + length, 1 + length)` in the dtype of `attention`, with zeros for padding,
        as a key, as a query and as a sequence.
    """
    asked = _asker(attention, queries)
    heads, dtype, width = _sizes(attention, pos_embedding)
    rows = grid.transpose(1, 2) if axis == "height" else grid
    batch, count, length = rows.shape[:3]
    positions = pos_embedding.to(dtype)
    tokens = 1 + length
    maps = positions.new_zeros(batch, count, heads, 1 if queries == "class" else tokens, tokens)
    for sample, (own_rows, own_length) in enumerate(_extents(batch, count, length, axis, lengths)):
        front = cls_token[sample].to(positions.dtype) + positions[0]
        step = _rows_per_chunk(positions, heads, width, 1 + own_length, queries)
        for first in range(0, own_rows, step):
            last = min(first + step, own_rows)
            body = rows[sample, first:last, :own_length].to(positions.dtype) + positions[1 : 1 + own_length]
            sequences = torch.cat([front.expand(last - first, 1, -1), body], dim=1)
            probabilities = asked(sequences).softmax(dim=-1)
            maps[sample, first:last, :, : probabilities.shape[2], : 1 + own_length] = probabilities
    return maps


def _extents(batch: int, count: int, length: int, axis: str, lengths: Lengths | None) -> list[tuple[int, int]]:
    """How many sequences of each sample are real, and how many tokens of each."""
    if lengths is None:
        return [(count, length)] * batch
    valid: list[int] = lengths.valid.tolist()
    return [(count, value) if lengths.axis == axis else (value, length) for value in valid]


def _sizes(attention: Direct | PreNorm, positions: Tensor) -> tuple[int, torch.dtype, int]:
    """Heads, the dtype to compute in, and features of the queries of all heads."""
    if isinstance(attention, Direct):
        return attention.heads, attention.qkv_weight.dtype, attention.qkv_weight.shape[0] // 3
    inner = cast(Attention, attention.fn)
    return inner.heads, positions.dtype, inner.heads * inner.dim_head


def _asker(attention: Direct | PreNorm, queries: str) -> Callable[[Tensor], Tensor]:
    """What gives the scores of `sequences` `(rows, tokens, dim)`."""
    if isinstance(attention, PreNorm):
        return partial(_called_scores, sublayer=attention, queries=queries)
    return partial(_class_scores if queries == "class" else _scores, attention=attention)


def _written_attention(transformer: nn.Module) -> PreNorm:
    """The attention of a transformer that is called; raise `TypeError` where it computes no probabilities."""
    sublayer = transformer.sublayers[0] if isinstance(transformer, Transformer) else transformer
    attention = sublayer.fn if isinstance(sublayer, PreNorm) else sublayer
    if not isinstance(attention, Attention) or type(attention).forward is not Attention.forward:
        raise TypeError(f"attention_maps: expected the attention of SepTr, got {type(attention).__name__}")
    return cast(PreNorm, sublayer)


def _rows_per_chunk(positions: Tensor, heads: int, width: int, tokens: int, queries: str) -> int:
    """Sequences whose intermediate results, scores and probabilities take about `_CHUNK_BYTES`."""
    asked = 1 if queries == "class" else tokens
    values = tokens * (2 * positions.shape[1] + (0 if queries == "class" else 2 * width) + 2 * heads * asked)
    return max(1, _CHUNK_BYTES // (values * positions.element_size()))


def _class_scores(sequences: Tensor, attention: Direct) -> Tensor:
    """Scores of the class token, the same in every sequence, with all tokens: `(rows, heads, 1, tokens)`."""
    query = class_query(sequences[:1, 0], attention)[1][0]
    normalized = normalize(sequences, attention.eps, query.dtype)
    return torch.matmul(normalized, query.t()).transpose(1, 2).unsqueeze(2)


def _scores(sequences: Tensor, attention: Direct) -> Tensor:
    """Scores of all tokens of `sequences` `(rows, tokens, dim)` with one another: `(rows, heads, tokens, tokens)`."""
    width = attention.qkv_weight.shape[0] // 3
    normalized = normalize(sequences, attention.eps, attention.qkv_weight.dtype)
    projected = linear(normalized, attention.qkv_weight[: 2 * width], attention.qkv_bias[: 2 * width])
    query, key = projected.unflatten(2, (2, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    return torch.matmul(query, key.transpose(2, 3))


def _called_scores(sequences: Tensor, sublayer: PreNorm, queries: str) -> Tensor:
    """As `_class_scores` or `_scores`, by the modules of `sublayer` as they are."""
    attention = cast(Attention, sublayer.fn)
    query, key, _ = attention.to_qkv(sublayer.norm(sequences)).unflatten(2, (3, attention.heads, -1)).unbind(2)
    query = query[:, :1] if queries == "class" else query
    return torch.matmul(query.transpose(1, 2), key.permute(0, 2, 3, 1)) * attention.dim_head**-0.5
