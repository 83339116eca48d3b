"""The passes of `functional` in plain PyTorch, for every device.

The data's way: a pass cuts the grid into chunks of rows (for the height axis: of columns) whose
intermediate results fit a CPU's cache, joins the class token to each row while it copies the chunk,
runs the transformer on `(rows, tokens, dim)`, and writes the chunk back. Nothing of the size of the
whole grid is made besides the grid itself. On other devices and under `torch.compile` a chunk is as
large as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from septr_fast.algebra.folded import NO_DROPOUT, Direct, Dropout, LowRank, Merged, Mlp
from septr_fast.passes.lengths import Lengths, keys, mean_over_rows, within
from septr_fast.passes.observers import makes_graph, records, transforms
from septr_fast.passes.sublayers import class_query, mlp_branch, normalize, project_attended
from septr_fast.passes.torch import freed_memory, merged_training
from septr_fast.passes.torch.chunk_gradients import reader
from septr_fast.passes.torch.linear import linear

CPU_CHUNK_BYTES = 6 << 20
CPU_TRAINING_CHUNK_BYTES = 12 << 20
DEVICE_CHUNK_BYTES = 4 << 30
STREAMED_TOKENS = 1024


def axis_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct | Merged,
    mlp: Mlp,
    *,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    out: Tensor | None = None,
    lengths: Lengths | None = None,
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.axis_pass`."""
    if isinstance(attention, Merged) and dropout == NO_DROPOUT and lengths is None:
        tensors = (grid, cls_token, pos_embedding, *merged_training.weights_of(attention, mlp))
        if merged_training.serves(*tensors) and grid.shape[0] and pos_embedding.shape[0] <= STREAMED_TOKENS:
            return _merged_training_pass(grid, cls_token, pos_embedding, attention, mlp, axis, recompute)
    return _axis_pass(grid, cls_token, pos_embedding, attention, mlp, axis, dropout, recompute, out, lengths)


def _axis_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct | Merged,
    mlp: Mlp,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    out: Tensor | None = None,
    lengths: Lengths | None = None,
) -> tuple[Tensor, Tensor]:
    sublayer = partial(_sublayer, recompute=recompute, draws=dropout != NO_DROPOUT)
    rows = _rows(grid, axis)
    tokens, dim = rows.shape[2] + 1, rows.shape[3]
    widest = attention.query_weight if isinstance(attention, Merged) else attention.qkv_weight
    positions, weights, mlp_weights = reader(pos_embedding), reader(attention), reader(mlp)

    def transform(body: Tensor, cls_token: Tensor, valid: Tensor | None = None) -> Tensor:
        front = cls_token[:, None, None].expand(-1, body.shape[1], 1, dim)
        x = torch.cat([front, body], dim=2) + positions()
        padding = _padding(valid, *x.shape[1:3])
        y = sublayer(lambda x: x + F.dropout(_attention(x, weights(), padding), dropout.attention), x.flatten(0, 1))
        return sublayer(lambda y: y + mlp_branch(y, mlp_weights(), dropout), y).view_as(x)

    valid = keys(lengths, axis)
    chunks = _chunks(rows, tokens * widest.shape[0] * widest.element_size(), cls_token, *_given(valid))
    return _assemble((transform(*chunk) for chunk in chunks), grid.shape[:3], axis, out, lengths)


def low_rank_pass(
    pixels: Tensor,
    attention: LowRank,
    mlp: Mlp,
    *,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    dtype: torch.dtype | None = None,
    lengths: Lengths | None = None,
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.low_rank_pass`."""
    sublayer = partial(_sublayer, recompute=recompute, draws=dropout != NO_DROPOUT)
    rows = _rows(pixels, axis)
    tokens, dim = attention.token_bias.shape
    residual_dtype = pixels.dtype if dtype is None else dtype
    mlp_weights = reader(mlp)

    def attention_sublayer(s: Tensor, padding: Tensor | None) -> Tensor:
        token = linear(s.to(attention.square.dtype), attention.token_weight) + attention.token_bias
        attended = low_rank_attention(s.to(attention.square.dtype), attention, mlp.out_weight.dtype, padding)
        return token.to(residual_dtype) + F.dropout(attended, dropout.attention)

    def transform(body: Tensor, valid: Tensor | None = None) -> Tensor:
        s = F.pad(body, (0, 0, 1, 0))
        y = sublayer(partial(attention_sublayer, padding=_padding(valid, *s.shape[1:3])), s.flatten(0, 1))
        y = sublayer(lambda y: y + mlp_branch(y, mlp_weights(), dropout), y)
        return y.view(*s.shape[:3], dim)

    chunks = _chunks(rows, 4 * tokens * attention.heads * tokens, *_given(keys(lengths, axis)))
    return _assemble((transform(*chunk) for chunk in chunks), pixels.shape[:3], axis, None, lengths)


def class_only_pass(
    grid: Tensor,
    cls_token: Tensor,
    pos_embedding: Tensor,
    attention: Direct,
    mlp: Mlp,
    *,
    axis: str,
    dropout: Dropout = NO_DROPOUT,
    recompute: bool = False,
    lengths: Lengths | None = None,
) -> Tensor:
    """See `septr_fast.passes.dispatch.class_only_pass`."""
    sublayer = partial(_sublayer, recompute=recompute, draws=dropout != NO_DROPOUT)
    rows = _rows(grid, axis)
    cls_token = cls_token + pos_embedding[0]
    positions, weights, mlp_weights = reader(pos_embedding[1:]), reader(attention), reader(mlp)

    def transform(body: Tensor, cls_token: Tensor, valid: Tensor | None = None) -> Tensor:
        y = class_only_attention(body + positions(), cls_token, weights(), valid)
        y = cls_token.unsqueeze(1) + F.dropout(y, dropout.attention)
        return y + mlp_branch(y, mlp_weights(), dropout)

    chunks = _chunks(rows, rows.shape[2] * rows.shape[3] * grid.element_size(), cls_token, *_given(keys(lengths, axis)))
    parts = [sublayer(transform, *chunk) for chunk in chunks]
    return mean_over_rows(_per_row(parts, *rows.shape[:2]), lengths, axis)


def _attention(x: Tensor, weights: Direct | Merged, padding: Tensor | None) -> Tensor:
    if isinstance(weights, Direct):
        return direct_attention(x, weights, padding)
    return merged_attention(x, weights, padding)


def direct_attention(x: Tensor, weights: Direct, padding: Tensor | None = None) -> Tensor:
    """Attention of `x` `(rows, tokens, dim)` with separate queries, keys and values; same shape out.

    `padding` `(rows, tokens)` tells which tokens are keys to nobody.
    """
    qkv = linear(normalize(x, weights.eps, weights.qkv_weight.dtype), weights.qkv_weight, weights.qkv_bias)
    query, key, value = qkv.unflatten(2, (3, weights.heads, -1)).permute(2, 0, 3, 1, 4)
    attended = _attend(query, key, value, padding).transpose(1, 2).flatten(2)
    return attended if weights.out_weight is None else linear(attended, weights.out_weight, weights.out_bias)


def merged_attention(x: Tensor, weights: Merged, padding: Tensor | None = None) -> Tensor:
    """Attention of `x` `(rows, tokens, dim)` by QK and OV circuits; same shape out.

    The heads of a token stand next to one another, so that all heads share one product with the keys.
    `padding` `(rows, tokens)` tells which tokens are keys to nobody.
    """
    rows, tokens, dim = x.shape
    normalized = normalize(x, weights.eps, weights.query_weight.dtype)
    query = linear(normalized, weights.query_weight, weights.query_bias).view(rows, 1, tokens * weights.heads, dim)
    normalized = normalized.unsqueeze(1)
    attended = _attend(query, normalized, normalized, padding).view(rows, tokens, weights.heads * dim)
    return linear(attended, weights.out_weight, weights.out_bias)


def low_rank_attention(s: Tensor, weights: LowRank, dtype: torch.dtype, padding: Tensor | None = None) -> Tensor:
    """Attention of the tokens that pixels `s` `(rows, tokens, channels)` stand for; `(rows, tokens, dim)` out.

    Statistics and scores are computed in the dtype of `s`, the values in `dtype`. `padding` `(rows, tokens)`
    tells which tokens are keys to nobody.
    """
    rows, tokens, channels = s.shape
    heads = weights.heads
    variance = ((s @ weights.gram + weights.cross) * s).sum(-1) + weights.square
    r = variance.rsqrt().unsqueeze(-1)
    u = s * r
    flat = u.flatten(0, 1)
    query = torch.addmm(weights.pixel_bias, flat, weights.pixel_pixel).view(rows, tokens, heads, channels)
    query = torch.addcmul(query, r.unsqueeze(-1), weights.position_pixel)
    table = torch.addmm(weights.position_bias, flat, weights.pixel_position).view(rows, tokens, heads, tokens)
    table = torch.addcmul(table, r.unsqueeze(-1), weights.position_position) * r.view(rows, 1, 1, tokens)
    scores = torch.baddbmm(
        table.view(rows, tokens * heads, tokens), query.view(rows, tokens * heads, channels), u.transpose(1, 2)
    )
    if padding is not None:
        scores = scores.masked_fill(padding.unsqueeze(1), float("-inf"))
    probability = scores.softmax(dim=-1)
    from_pixels = torch.bmm(probability, u).view(rows * tokens, heads * channels)
    from_positions = (probability * r.view(rows, 1, tokens)).view(rows * tokens, heads * tokens)
    out = linear(from_positions.to(dtype), weights.position_values.to(dtype), weights.out_bias.to(dtype))
    return (out + linear(from_pixels.to(dtype), weights.pixel_values.to(dtype))).unflatten(0, (rows, tokens))


def class_only_attention(body: Tensor, cls_token: Tensor, weights: Direct, valid: Tensor | None = None) -> Tensor:
    """What the class token of each row attends to.

    Args:
        body: grid tokens `(batch, rows, length, dim)`, positions added.
        cls_token: `(batch, dim)`, position added.
        weights: folded projections.
        valid: `(batch,)`, how many tokens of a row are keys; None for all.

    Returns:
        The attention's output for the class token, `(batch, rows, dim)`. Keys and values are never projected.
    """
    rows = body.shape[1]
    normalized_cls, query = class_query(cls_token, weights)
    normalized = normalize(body, weights.eps, query.dtype)
    cls_scores = torch.bmm(query, normalized_cls.unsqueeze(2)).unsqueeze(1).expand(-1, rows, -1, -1)
    scores = torch.matmul(query.unsqueeze(1), normalized.transpose(2, 3))
    if valid is not None:
        scores = scores.masked_fill(~within(valid, body.shape[2])[:, None, None], float("-inf"))
    probability = torch.cat([cls_scores, scores], dim=-1).softmax(dim=-1)
    attended = torch.matmul(probability[..., 1:], normalized)
    return project_attended(attended + probability[..., :1] * normalized_cls[:, None, None], weights)


def _attend(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
    """softmax(query keyᵀ) value over `(rows, heads, tokens, dim)`, the scale already in the query.

    `padding` `(rows, tokens)` tells which tokens are keys to nobody.
    """
    if query.is_cuda or key.shape[2] > STREAMED_TOKENS:
        mask = None if padding is None else ~padding[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    heads = query.shape[:2]
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2))
    if padding is not None:
        scores = scores.masked_fill(padding.repeat_interleave(heads[1], 0).unsqueeze(1), float("-inf"))
    return torch.bmm(scores.softmax(dim=-1), value).unflatten(0, heads)


def _given(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)


def _padding(valid: Tensor | None, rows: int, tokens: int) -> Tensor | None:
    """Which tokens of `(samples * rows, tokens)` are padding, the class token in front never; None where none is."""
    if valid is None:
        return None
    return ~F.pad(within(valid, tokens - 1), (1, 0), value=True).repeat_interleave(rows, 0)


def _sublayer(
    function: Callable[..., Tensor], x: Tensor, *args: Tensor, recompute: bool = False, draws: bool = False
) -> Tensor:
    """`function(x, *args)`; with `recompute` it keeps only its inputs for the backward pass.

    `draws` says whether the function draws random numbers, which then have to be the same again. The transforms
    of `torch.func` cannot recompute: under them everything is kept.
    """
    if recompute and torch.is_grad_enabled() and not transforms():
        return checkpoint(function, x, *args, use_reentrant=False, preserve_rng_state=draws)
    return function(x, *args)


def _merged_training_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, attention: Merged, mlp: Mlp, axis: str, recompute: bool
) -> tuple[Tensor, Tensor]:
    """`_axis_pass` with a backward pass of its own, in the same chunks."""
    rows = _rows(grid, axis)
    chunk = _chunk_size(rows, pos_embedding.shape[0] * attention.query_weight.numel() // rows.shape[3] * 4)
    settings = merged_training.Settings(attention.heads, attention.eps, mlp.eps, chunk, recompute)
    weights = merged_training.weights_of(attention, mlp)
    tokens, cls_token = merged_training.run(rows, cls_token, pos_embedding, weights, settings, _merged_rows)
    return _rows(tokens, axis), cls_token


def _merged_rows(
    settings: merged_training.Settings, rows: Tensor, cls_token: Tensor, pos_embedding: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`_axis_pass` over rows that lie in a grid as they are."""
    attention, mlp = Merged(settings.heads, settings.eps, *weights[:4]), Mlp(settings.mlp_eps, *weights[4:])
    return _axis_pass(rows, cls_token, pos_embedding, attention, mlp, "width")


def _rows(grid: Tensor, axis: str) -> Tensor:
    """View `(batch, height, width, ·)` as `(batch, rows, length, ·)`, the length along `axis`."""
    return grid.transpose(1, 2) if axis == "height" else grid


def _chunks(rows: Tensor, bytes_per_row: int, *per_sample: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut `rows` `(batch, rows, …)` into chunks within the device's chunk size, in order.

    With each chunk comes the part of every tensor of `per_sample` `(batch, …)` that belongs to it. Without
    gradients a chunk on a CPU never holds two samples, so that no sample's arithmetic depends on the batch.
    """
    if makes_graph() or rows.shape[0] == 0:
        yield rows, *per_sample
        return
    samples, count = _chunk_size(rows, bytes_per_row)
    for part, *others in zip(*(tensor.split(samples) for tensor in (rows, *per_sample)), strict=True):
        readers = [reader(other) for other in others]
        for chunk in part.split(count, dim=1):
            yield chunk, *(read() for read in readers)


def _chunk_size(rows: Tensor, bytes_per_row: int) -> tuple[int, int]:
    """How many samples and how many of their rows make a chunk."""
    count = rows.shape[1]
    on_cpu, trains = rows.device.type == "cpu", torch.is_grad_enabled()
    if not on_cpu:
        budget = DEVICE_CHUNK_BYTES
    elif trains:
        freed_memory.keep_for_training()
        budget = CPU_TRAINING_CHUNK_BYTES
    else:
        freed_memory.keep()
        budget = CPU_CHUNK_BYTES
    step = max(1, min(budget // bytes_per_row, 32768))
    alone = on_cpu and not trains
    return 1 if alone else max(1, step // count), _ceil_div(count, _ceil_div(count, step))


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _assemble(
    chunks: Iterable[Tensor], grid_shape: torch.Size, axis: str, out: Tensor | None, lengths: Lengths | None
) -> tuple[Tensor, Tensor]:
    """Join `chunks`, tokens `(samples, rows, 1 + length, dim)`, in the order of samples and rows.

    Without gradients they are written into one contiguous grid as they come (`out` where given); with them
    they are joined at the end.

    Returns:
        The grid `(batch, height, width, dim)` and the class tokens' mean over the valid rows, `(batch, dim)`.
    """
    batch, height, width = grid_shape
    count, length = (width, height) if axis == "height" else (height, width)
    written = 0
    bodies: list[Tensor] = []
    class_tokens: list[Tensor] = []
    for tokens in chunks:
        front, body = tokens.split([1, length], dim=2)
        if torch.is_grad_enabled() or records():
            class_tokens.append(front)
            bodies.append(body.flatten(0, 1))
            continue
        class_tokens.append(front.clone())
        if out is None or out.dtype != tokens.dtype:
            out = tokens.new_empty(*grid_shape, tokens.shape[-1])
        sample, row = divmod(written, count)
        _rows(out, axis)[sample : sample + len(body), row : row + body.shape[1]] = body
        written += len(body) * body.shape[1]
    if bodies:
        joined = bodies[0] if len(bodies) == 1 else torch.cat(bodies)
        out = _rows(joined.unflatten(0, (batch, count)), axis)
    assert out is not None
    return out, mean_over_rows(_per_row(class_tokens, batch, count), lengths, axis)


def _per_row(parts: list[Tensor], batch: int, rows: int) -> Tensor:
    """Join class tokens `(samples, rows, …)` of all chunks: `(batch, rows, dim)`."""
    return torch.cat([part.flatten(0, -2) for part in parts]).unflatten(0, (batch, rows))
