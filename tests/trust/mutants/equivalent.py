"""Mutants that no test can find, since the function does the same with them, and why that is so."""

_OUTSIDE = "Scores of keys behind the last are replaced, and queries behind the last are not stored."
_NO_HEAD = "Queries and gradients of heads behind the last are zero: what is finite adds nothing to other heads' sums."
_NO_WEIGHT = "It is multiplied with attention weights of zero, or with gradients of scores that are zero."
_BEYOND_WIDTH = "Beyond the width queries and gradients are zero, and nothing is stored."
_NEXT_HEAD = "Beyond a head's features the next head's weights are read in place of zeros, and meet keys that are zero."
_SMALL = "The number is small, and bounds a loop and comparisons in any integer type."
_TILE = "tl.load(tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2]), mask=mask"
_TABLE = "tl.load(table_ptrs, mask=mask"
_GRAD = "tl.load(grad_rows + offs_row[:, None] + offs_column[None, :], mask=mask"
_BIAS = "tl.load(ptr + offs.to(tl.int64) * stride, mask=offs < SIZE"
_VECTOR = "tl.load(ptr + offs.to(tl.int64) * stride, mask=mask"
_CLASS = "tl.load(cls_ptrs, mask=offs_d < WIDTH"
_DELTA = "tl.load(delta_ptr + (sample * rows + row) * heads + offs_h, mask=mask_h"
_FUSED = "fused_attention.fused_attention_fwd_kernel"
_FEATURE = "offs_c < DIM, head * DIM + offs_c"
_LOW_RANK = "low_rank_kernels.low_rank_fwd_kernel"
_LOW_RANK_BACKWARD = "low_rank_backward_kernels.low_rank_bwd_kernel"
_CLASS_KEY = "low_rank_backward_kernels.low_rank_bwd_class_key_kernel"
_CLASS_ATTENTION = "class_attention_kernels"


def _changed(function: str, load: str) -> str:
    return f"{function}: other changed: {load}, other=0.0) -> {load}, other=1.0)"


def _dropped(function: str, load: str) -> str:
    return f"{function}: other dropped: {load}, other=0.0) -> {load})"


EQUIVALENT: dict[str, str] = {
    "folding.fold_low_rank: cast dropped: pos_embedding.to(dtype) -> pos_embedding": (
        "What it is added to has the wider dtype, to which the sum converts it."
    ),
    "folding.fold_low_rank: cast dropped: cls_token.to(dtype) -> cls_token": (
        "It is joined with positions of the wider dtype, to which joining converts it."
    ),
    "folding.read_attention: cast dropped: out.bias.to(dtype) -> out.bias": (
        "It is used once, in a sum with a vector of the wider dtype, to which the sum converts it."
    ),
    "mlp.pieces: bound: BITS < PIECE -> BITS <= PIECE": "The same columns, in other pieces.",
    "mlp.normal_distribution: bound: h < 0 -> h <= 0": "Of zero both tails are one half.",
    _changed("mlp.load_bias", _BIAS): (
        "Beyond the hidden layer the second layer's weights are zero; beyond the features nothing is stored."
    ),
    "attention.load_valid: cast dropped: tl.load(ptr + batch).to(tl.int32) -> tl.load(ptr + batch)": _SMALL,
    "merged_training._MergedPass.backward: sign dropped: -1 -> 1 (2)": (
        "That dimension, the class token's, has one value, and -1 keeps it."
    ),
    "attention.axis_attention_fwd_kernel: constant: 0.0 -> 1.0": (
        "It stands for the class token's key beyond the head's features, where the queries are zero."
    ),
    "attention.axis_attention_fwd_kernel: bound: MEMBERS > 1 -> MEMBERS >= 1": (
        "Of one head the keys are loaded before it in place of in it: the same keys."
    ),
    "attention_backward.load_padded: cast dropped: tl.load(ptr + batch).to(tl.int32) -> tl.load(ptr + batch)": _SMALL,
    _changed("attention_backward.load_lse", "tl.load(ptr + offs, mask=mask"): (
        "The weights of queries behind the last, whose scores are zero, are multiplied with zero."
    ),
    _changed(f"{_CLASS_ATTENTION}.load_statistics", "tl.load(ptrs, mask=mask_h"): _NO_HEAD,
    _changed(f"{_CLASS_ATTENTION}.class_attention_bwd_kernel", _DELTA): _NO_HEAD,
    _changed(f"{_CLASS_ATTENTION}.class_attention_fwd_kernel", _CLASS): _BEYOND_WIDTH,
    _changed(f"{_CLASS_ATTENTION}.class_key_bwd_kernel", _CLASS): _BEYOND_WIDTH,
    f"{_CLASS_ATTENTION}.class_attention_bwd_kernel: cast dropped: tl.arange(0, BLOCK_D).to(tl.int64) -> "
    "tl.arange(0, BLOCK_D)": "Wherever they become offsets, in load_tokens and store_tokens, they are widened again.",
    _changed("low_rank_kernels.load_vector", _VECTOR): f"{_OUTSIDE} In the backward pass: {_NO_WEIGHT}",
    _changed(_LOW_RANK, _TILE): _OUTSIDE,
    _dropped(_LOW_RANK, _TILE): _OUTSIDE,
    _changed(_LOW_RANK, _TABLE): _OUTSIDE,
    _dropped(_LOW_RANK, _TABLE): _OUTSIDE,
    f"{_changed(_LOW_RANK, _TABLE)} (2)": _OUTSIDE,
    f"{_dropped(_LOW_RANK, _TABLE)} (2)": _OUTSIDE,
    _changed(_CLASS_KEY, _TABLE): "Where nothing is loaded the scores, all that it goes into, are replaced.",
    _dropped(_CLASS_KEY, _TABLE): "Where nothing is loaded the scores, all that it goes into, are replaced.",
    _changed(_CLASS_KEY, _GRAD): _NO_WEIGHT,
    f"{_CLASS_KEY}: constant: 0.0 -> 1.0 (4)": (
        "It is part of the gradient of the class token's u, which is multiplied with its pixel, zero, and goes nowhere."
    ),
    _changed(_LOW_RANK_BACKWARD, _TILE): _NO_WEIGHT,
    _changed(_LOW_RANK_BACKWARD, _GRAD): _NO_WEIGHT,
    f"{_FUSED}: constant: 0.0 -> 1.0": ("It stands for the bias beyond the features, where nothing is stored."),
    f"{_FUSED}: bound: offs_c < DIM -> offs_c <= DIM": _NEXT_HEAD,
    f"{_FUSED}: branch of a choice dropped: tl.where({_FEATURE}, HEADS * DIM) -> head * DIM + offs_c": _NEXT_HEAD,
}
