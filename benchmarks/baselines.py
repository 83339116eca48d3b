"""The reference made faster by what PyTorch brings: attention in one kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from septr_fast import reference


class FusedAttention(nn.Module):
    """`reference.Attention` on `scaled_dot_product_attention`, with the layers of `attention`."""

    def __init__(self, attention: reference.Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.dim_head = attention.dim_head
        self.to_qkv = attention.to_qkv
        self.to_out = attention.to_out

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token of `x` `(..., tokens, dim)` attends to, in the shape of `x`."""
        sequences = x.flatten(0, -3)
        query, key, value = rearrange(self.to_qkv(sequences), "r n (qkv h d) -> qkv r h n d", qkv=3, h=self.heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out(rearrange(attended, "r h n d -> r n (h d)"))
        return out.view_as(x)


def with_fused_attention(model: reference.SepTr) -> reference.SepTr:
    """Change every attention of `model` to `FusedAttention`; parameters keep their names and values."""
    for module in list(model.modules()):
        if isinstance(module, reference.PreNorm) and isinstance(module.fn, reference.Attention):
            module.fn = FusedAttention(module.fn)
    return model


def attention_kernel(
    rows: int, heads: int, tokens: int, dim_head: int, dtype: torch.dtype, device: torch.device
) -> str:
    """Which kernel `scaled_dot_product_attention` takes for `(rows, heads, tokens, dim_head)` with gradients."""
    shape = (rows, heads, tokens, dim_head)
    query, key, value = (torch.empty(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    return SDPBackend(torch._fused_sdp_choice(query, key, value)).name
