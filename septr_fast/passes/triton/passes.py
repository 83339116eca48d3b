"""The passes of `septr_fast.passes.dispatch` on Triton operators.

The large work is in the operators of `septr_fast.kernels`; what is of the size of the class tokens stays
plain PyTorch. Weights come folded, as for `septr_fast.passes.torch`. Whether a pass can run here says
`septr_fast.passes.backend`. Launch configurations that the user has measured come before the shipped ones.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from septr_fast.algebra.folded import Direct, Folded, LowRank, Merged, Mlp
from septr_fast.kernels import launch
from septr_fast.kernels.axis_pass_operator import axis_pass as axis_pass_operator
from septr_fast.kernels.class_attention import class_attention
from septr_fast.kernels.low_rank_pass_operator import low_rank_pass as low_rank_pass_operator
from septr_fast.passes.inputs import differentiates
from septr_fast.passes.lengths import keys, mean_over_rows
from septr_fast.passes.settings import Settings
from septr_fast.passes.sublayers import class_query, mlp_hidden, project_attended
from septr_fast.passes.torch.linear import linear
from septr_fast.passes.triton import tuned

launch.use_tuned(tuned.rows)


def axis_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.axis_pass`; the memory that recomputing would save is never taken."""
    attention, mlp = weights
    if isinstance(attention, Merged):
        merged, projection = True, (attention.query_weight, attention.query_bias)
    else:
        attention = cast(Direct, attention)
        merged, projection = False, (attention.qkv_weight, attention.qkv_bias)
    tensors = (grid, cls_token, pos_embedding, *projection, attention.out_weight, attention.out_bias, *_layers(mlp))
    valid = keys(settings.lengths, settings.axis)
    own = (attention.heads, merged, attention.eps, mlp.eps, settings.axis, differentiates(*tensors), valid)
    out, cls_tokens, _, _ = axis_pass_operator(*tensors, *own)
    return out, mean_over_rows(cls_tokens, settings.lengths, settings.axis)


def low_rank_pass(pixels: Tensor, weights: Folded, settings: Settings) -> tuple[Tensor, Tensor]:
    """See `septr_fast.passes.dispatch.low_rank_pass`."""
    attention, mlp = cast(LowRank, weights.attention), weights.mlp
    tables = (
        attention.gram,
        attention.cross,
        attention.square,
        attention.pixel_pixel,
        attention.position_pixel,
        attention.pixel_bias,
        attention.pixel_position,
        attention.position_position,
        attention.position_bias,
        attention.position_values,
        attention.pixel_values,
        attention.out_bias,
        attention.token_weight,
        attention.token_bias,
    )
    tensors = (pixels, *tables, *_layers(mlp))
    dtype = pixels.dtype if settings.dtype is None else settings.dtype
    out, cls_tokens, _, _ = low_rank_pass_operator(*tensors, mlp.eps, settings.axis, dtype, differentiates(*tensors))
    return out, mean_over_rows(cls_tokens, settings.lengths, settings.axis)


def class_only_pass(
    grid: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Folded, settings: Settings
) -> Tensor:
    """See `septr_fast.passes.dispatch.class_only_pass`."""
    attention, mlp, dropout = cast(Direct, weights.attention), weights.mlp, settings.dropped
    cls_token = cls_token + pos_embedding[0]
    normalized, query = class_query(cls_token, attention)
    valid = keys(settings.lengths, settings.axis)
    attended, _ = class_attention(grid, pos_embedding, query, normalized, attention.eps, settings.axis, valid)
    y = cls_token.unsqueeze(1) + F.dropout(project_attended(attended, attention), dropout.attention)
    # Not in the place of `y`: a training step sums in this order, and evaluation has its bits.
    added = F.dropout(linear(mlp_hidden(y, mlp, dropout), mlp.out_weight, mlp.out_bias), dropout.out)
    return mean_over_rows(y + added, settings.lengths, settings.axis)


def _layers(mlp: Mlp) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return mlp.hidden_weight, mlp.hidden_bias, mlp.out_weight, mlp.out_bias
