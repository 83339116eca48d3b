"""What `SepTr` is compared with: the reference with PyTorch's fused attention, the merged algebra, ViT and AST."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring.timing import seconds
from septr_fast import reference

KERNELS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
TRIALS = 3
PATCH = 16
"""Height and width of a patch of ViT and AST, as published."""


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


class MergedAttention(FusedAttention):
    """`reference.Attention` by QK and OV circuits on `scaled_dot_product_attention`, with the same parameters.

    Keys and values of all heads are the tokens themselves; the heads of a token stand next to one another, so
    that all of them share the keys. In evaluation the circuits are those that `fold` has kept.
    """

    def __init__(self, attention: reference.Attention) -> None:
        super().__init__(attention)
        self.register_buffer("query_weight", None, persistent=False)
        self.register_buffer("out_weight", None, persistent=False)

    def fold(self) -> None:
        """Keep the circuits of the present weights."""
        with torch.no_grad():
            self.query_weight, self.out_weight = self.circuits()

    def circuits(self) -> tuple[Tensor, Tensor]:
        """Weights `(heads * dim, dim)` of the queries and `(dim, heads * dim)` of the output."""
        query, key, value = rearrange(self.to_qkv.weight, "(qkv h d) c -> qkv h d c", qkv=3, h=self.heads)
        query_weight = torch.einsum("hdk,hdc->hkc", key, query * self.dim_head**-0.5).flatten(0, 1)
        if isinstance(self.to_out, nn.Identity):
            return query_weight, value[0]
        out = rearrange(self.to_out[0].weight, "c (h d) -> h c d", h=self.heads)
        return query_weight, rearrange(out @ value, "h c k -> c (h k)")

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token of `x` `(..., tokens, dim)` attends to, in the shape of `x`."""
        keep = self.query_weight is not None and not self.training
        query_weight, out_weight = (self.query_weight, self.out_weight) if keep else self.circuits()
        key = x.flatten(0, -3).unsqueeze(1)
        rows, _, tokens, dim = key.shape
        query = F.linear(key, query_weight).view(rows, 1, tokens * self.heads, dim)
        attended = F.scaled_dot_product_attention(query, key, key, scale=1.0)
        bias = getattr(self.to_out[0], "bias", None) if isinstance(self.to_out, nn.Sequential) else None
        return F.linear(attended.view(rows, tokens, self.heads * dim), out_weight, bias).view_as(x)


def with_attention(model: nn.Module, kind: type[FusedAttention]) -> nn.Module:
    """Change every attention of a reference model or block to `kind`; parameters keep their names and values."""
    for module in list(model.modules()):
        if isinstance(module, reference.PreNorm) and isinstance(module.fn, reference.Attention):
            module.fn = kind(module.fn)
    return model


def fold(model: nn.Module) -> nn.Module:
    """Keep the circuits of every `MergedAttention` in `model`, for evaluation."""
    for module in model.modules():
        if isinstance(module, MergedAttention):
            module.fold()
    return model


def fastest_attention(
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    training: bool = False,
) -> SDPBackend:
    """The fastest kernel of `scaled_dot_product_attention` on this device, by trial.

    Args:
        query_shape: `(rows, heads, tokens, dim_head)`.
        key_shape: of keys and values, likewise.
        dtype: of all three.
        device: where they are.
        training: whether the backward pass counts too.
    """
    query = torch.randn(query_shape, device=device).to(dtype).requires_grad_(training)
    key = torch.randn(key_shape, device=device).to(dtype).requires_grad_(training)

    def attend() -> None:
        out = F.scaled_dot_product_attention(query, key, key)
        if training:
            out.backward(out)

    times: dict[SDPBackend, float] = {}
    reason = RuntimeError("no kernel was tried")
    for kernel in KERNELS:
        try:
            with sdpa_kernel(kernel), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attend()
                times[kernel] = min(seconds(attend, device) for _ in range(TRIALS))
        except RuntimeError as error:
            reason = error
    if not times:
        raise reason
    return min(times, key=lambda kernel: times[kernel])


class Patches(nn.Module):
    """ViT or AST from `transformers`, random weights, on spectrograms `(batch, channels, height, width)`.

    Args:
        kind: "ViT" or "AST".
        size: height and width of a spectrogram, in frequency bins and frames.
        channels: of a spectrogram; AST takes 1.
        num_classes: number of classes.
        tiny: the sizes named Ti/16 (192 wide, 3 heads) in place of B/16 (768 wide, 12 heads); of the published
            sizes Ti is the one nearest to the default SepTr's 8.9 million parameters.
        layers: number of transformer layers.
        fused: attend by `scaled_dot_product_attention`, not by plain products and a softmax.
        patch: height and width of a patch.
    """

    def __init__(
        self,
        kind: str,
        size: tuple[int, int],
        channels: int,
        num_classes: int,
        *,
        tiny: bool,
        layers: int = 12,
        fused: bool = True,
        patch: int = PATCH,
    ) -> None:
        super().__init__()
        from transformers import ASTConfig, ASTForAudioClassification, ViTConfig, ViTForImageClassification

        width, heads = (192, 3) if tiny else (768, 12)
        common: dict[str, Any] = {
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "intermediate_size": 4 * width,
            "num_labels": num_classes,
            "patch_size": patch,
            "attn_implementation": "sdpa" if fused else "eager",
        }
        self.transposed = kind == "AST"
        if self.transposed:
            config = ASTConfig(num_mel_bins=size[0], max_length=size[1], **common)
            self.model: nn.Module = ASTForAudioClassification(config)
        else:
            self.model = ViTForImageClassification(ViTConfig(image_size=size, num_channels=channels, **common))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(batch, num_classes)`."""
        logits: Tensor = self.model(x[:, 0].transpose(1, 2) if self.transposed else x).logits
        return logits


def why_no_patches(kind: str, size: tuple[int, int], channels: int) -> str | None:
    """What keeps ViT or AST from spectrograms of `size`, or None."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        return "the package transformers is not installed"
    if min(size) < PATCH:
        return f"a patch of {PATCH} x {PATCH} is larger than a spectrogram of {size[0]} x {size[1]}"
    if kind == "AST" and channels != 1:
        return f"AST takes one channel, not {channels}"
    return None
