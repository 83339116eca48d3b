"""Triton operators of `septr_fast`, installed as `septr_fast.kernels`.

Importing this package needs neither Triton nor a GPU. A kernel file imports no module of `septr_fast`.

Operators, each registered in `torch.ops.septr_fast` when its module is imported: `axis_pass_operator.axis_pass`,
`low_rank_pass_operator.low_rank_pass`, `class_attention.class_attention`, and attention by itself,
`axis_attention_operator.axis_attention`.
"""

from __future__ import annotations

import torch

PASSES: frozenset[str] = frozenset({"axis_pass", "low_rank_pass", "class_only_pass"})
"""Names of the passes of `septr_fast.passes.dispatch` that have a Triton operator."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256
"""Most features of a token or of a head."""
MOST_CLASS_HEADS = 64
"""Most heads of a class-only pass."""
LEAST_CAPABILITY = (8, 0)
"""Of the GPU."""


def limit(
    pass_name: str,
    *,
    dtypes: tuple[torch.dtype, ...],
    dim: int,
    head_dim: int,
    heads: int,
    dropout: bool,
    along_padding: bool = False,
) -> str | None:
    """What of a pass the kernels cannot do; None if they can.

    Args:
        pass_name: name of a function of `septr_fast.passes.dispatch`.
        dtypes: of the tokens and of the products.
        dim: features of a token.
        head_dim: features of a head, `dim` in the merged form.
        heads: number of heads.
        dropout: whether values are dropped.
        along_padding: whether the sequences of a low-rank pass are padded themselves.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            return f"Triton kernels compute in float32, float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if max(dim, head_dim) > WIDEST:
        return f"Triton kernels take up to {WIDEST} features of a token and of a head, not {max(dim, head_dim)}"
    if pass_name == "class_only_pass":
        return None if heads <= MOST_CLASS_HEADS else f"Triton kernels take up to {MOST_CLASS_HEADS} heads, not {heads}"
    if along_padding:
        return "Triton kernels run a low-rank pass along the axis that is not padded"
    return "Triton kernels have no dropout" if dropout else None
