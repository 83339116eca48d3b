"""Mutants that no test can find, since the function does the same with them, and why that is so."""

_LOAD_BIAS = "tl.load(ptr + offs.to(tl.int64) * stride, mask=offs < SIZE, other={})"
_FEATURE = "offs_c < DIM, head * DIM + offs_c"
_SMALL = "The number is small, and bounds a loop and comparisons in any integer type."
_PRODUCT = "Its product with float32 is float32."
_TABLE = "tl.load(tile_ptrs(table_ptr, offs_q, offs_k, table_strides[0], table_strides[2])"
_GRAD = "tl.load(grad_rows + offs_row[:, None] + offs_column[None, :], mask=mask, other=0.0)"

EQUIVALENT: dict[str, str] = {
    "folding.fold_low_rank: cast dropped: pos_embedding.to(dtype) -> pos_embedding": (
        "What it is added to has the wider dtype, to which the sum converts it."
    ),
    "mlp.pieces: bound: COLUMNS < PIECE -> COLUMNS <= PIECE": "The same columns, in other pieces.",
    f"mlp.load_bias: other changed: {_LOAD_BIAS.format('0.0')} -> {_LOAD_BIAS.format('1.0')}": (
        "Beyond the hidden layer the second layer's weights are zero; beyond the features nothing is stored."
    ),
    "attention.load_valid: cast dropped: tl.load(ptr + batch).to(tl.int32) -> tl.load(ptr + batch)": _SMALL,
    "attention_backward.load_padded: cast dropped: tl.load(ptr + batch).to(tl.int32) -> tl.load(ptr + batch)": _SMALL,
    "attention_backward.attention_and_gradient: constant: 0.0 -> 1.0 (2)": (
        "Keys and values behind the last are zero: neither what is summed up to Δ nor the gradient changes."
    ),
    "attention_backward.axis_attention_bwd_query_kernel: statement dropped: grad = load_tile(grad_ptr, offs_q, offs_d, "
    "grad_strides[2], grad_strides[4], QUERIES, HEAD_DIM, EVEN_Q) -> ": (
        "The same values are loaded a second time, for the sake of the registers."
    ),
    "attention_backward.axis_attention_bwd_query_kernel: cast dropped: grad.to(tl.float32) -> grad (2)": _PRODUCT,
    "class_attention_kernels.load_statistics: other changed: tl.load(ptrs, mask=mask_h, other=0.0) -> "
    "tl.load(ptrs, mask=mask_h, other=1.0)": (
        "Queries and gradients of heads behind the last are zero: finite probabilities of theirs add nothing."
    ),
    "class_attention_kernels.class_attention_bwd_kernel: cast dropped: tl.arange(0, BLOCK_D).to(tl.int64) -> "
    "tl.arange(0, BLOCK_D)": "Wherever they become offsets, in load_tokens and store_tokens, they are widened again.",
    "folding.fold_low_rank: cast dropped: cls_token.to(dtype) -> cls_token": (
        "It is joined with positions of the wider dtype, to which joining converts it."
    ),
    f"low_rank_kernels.low_rank_fwd_kernel: other changed: {_TABLE}, mask=mask, other=0.0) -> {_TABLE}, mask=mask, "
    "other=1.0)": "Scores of keys behind the last are replaced, and queries behind the last are not stored.",
    "low_rank_kernels.low_rank_fwd_kernel: cast dropped: from_pixels.to(rows_ptr.dtype.element_ty) -> from_pixels": (
        "A store converts to the tensor's dtype by itself."
    ),
    "low_rank_backward_kernels.low_rank_bwd_class_key_kernel: other dropped: "
    "tl.load(table_ptrs, mask=mask, other=0.0) -> tl.load(table_ptrs, mask=mask)": (
        "Where nothing is loaded the scores, all that it goes into, are replaced."
    ),
    f"low_rank_backward_kernels.low_rank_bwd_class_key_kernel: cast dropped: {_GRAD}.to(tl.float32) -> {_GRAD}": (
        _PRODUCT
    ),
    "low_rank_backward_kernels.low_rank_bwd_class_key_kernel: bound: offs_c < CHANNELS -> offs_c <= CHANNELS": (
        "What it writes besides is the place of the next key's bias, which the kernel that runs after it writes."
    ),
    "low_rank_backward_kernels.low_rank_bwd_kernel: cast dropped: ((first + block) * PARTS + part).to(tl.int64) -> "
    "(first + block) * PARTS + part": (
        "The launcher takes so few parts that their places stay below 2³¹, at 4096 tokens with up to 200 heads."
    ),
    "attention.axis_attention_fwd_kernel: constant: 0.0 -> 1.0": (
        "It stands for the class token's key beyond the head's features, where the queries are zero."
    ),
    f"fused_attention.fused_attention_fwd_kernel: branch of a choice dropped: tl.where({_FEATURE}, HEADS * DIM) -> "
    "head * DIM + offs_c": (
        "Beyond a head's features the next head's weights are read in place of zeros, and meet keys that are zero."
    ),
}
