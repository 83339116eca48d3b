"""Mutants that no test can find, since the function does the same with them, and why that is so."""

_LOAD_BIAS = "tl.load(ptr + offs.to(tl.int64) * stride, mask=offs < SIZE, other={})"
_FEATURE = "offs_c < DIM, head * DIM + offs_c"

EQUIVALENT: dict[str, str] = {
    "folding.fold_low_rank: cast dropped: pos_embedding.to(dtype) -> pos_embedding": (
        "What it is added to has the wider dtype, to which the sum converts it."
    ),
    "mlp.pieces: bound: COLUMNS < PIECE -> COLUMNS <= PIECE": "The same columns, in other pieces.",
    f"mlp.load_bias: other changed: {_LOAD_BIAS.format('0.0')} -> {_LOAD_BIAS.format('1.0')}": (
        "Beyond the hidden layer the second layer's weights are zero; beyond the features nothing is stored."
    ),
    "attention.load_valid: cast dropped: tl.load(ptr + batch).to(tl.int32) -> tl.load(ptr + batch)": (
        "The number is small, and bounds a loop and comparisons in any integer type."
    ),
    "attention.axis_attention_fwd_kernel: constant: 0.0 -> 1.0": (
        "It stands for the class token's key beyond the head's features, where the queries are zero."
    ),
    f"fused_attention.fused_attention_fwd_kernel: branch of a choice dropped: tl.where({_FEATURE}, HEADS * DIM) -> "
    "head * DIM + offs_c": (
        "Beyond a head's features the next head's weights are read in place of zeros, and meet keys that are zero."
    ),
}
