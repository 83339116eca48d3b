"""Parameters read out of the modules that hold them, and whether these modules are what folding takes them for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from septr_fast.algebra.folded import Dropout, accumulation_dtype
from septr_fast.reference import Attention, FeedForward, Transformer


def check_foldable(transformer: Transformer) -> None:
    """Raise `TypeError` where a module that is read as a weight is not what it was built as.

    An adapter, a quantized layer or another activation in its place would have no effect.
    """
    attention, feed_forward = (sublayer.fn for sublayer in transformer.sublayers)
    expect(attention, Attention, "attention")
    expect(feed_forward, FeedForward, "MLP")
    net = tuple(cast(FeedForward, feed_forward).net)
    expect(cast(Attention, attention).to_qkv, nn.Linear, "to_qkv")
    to_out = cast(Attention, attention).to_out
    if not isinstance(to_out, nn.Identity):
        expect(to_out[0], nn.Linear, "to_out.0")
        expect(to_out[1], nn.Dropout, "to_out.1")
    for index, kind in enumerate((nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.Dropout)):
        expect(net[index], kind, f"net.{index}")
    if cast(nn.GELU, net[1]).approximate != "none":
        raise TypeError("net.1: expected the exact GELU, got the approximation by tanh")
    for sublayer in transformer.sublayers:
        expect(sublayer.norm, nn.LayerNorm, "norm")


def expect(module: nn.Module, kind: type[nn.Module], name: str) -> None:
    """Raise `TypeError` unless `module`, called `name`, is called as one of `kind` is."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise TypeError(
            f"{name}: expected {kind.__name__}, whose parameters are folded with others, got {type(module).__name__}"
        )


def weight_of(linear: nn.Linear) -> Tensor:
    """The weight that `linear` would use: pruning and norms by hooks set it only when the module is called."""
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm)):
            hook(linear, None)
    return linear.weight


@dataclass(frozen=True)
class AttentionWeights:
    """The parameters of one attention sublayer in the accumulation dtype, the scale in the queries."""

    heads: int
    dim_head: int
    eps: float
    gamma: Tensor
    beta: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out_weight: Tensor | None
    out_bias: Tensor | None

    def per_head(self, weight: Tensor) -> Tensor:
        """View rows `(heads * dim_head, ...)` as `(heads, dim_head, ...)`."""
        return weight.unflatten(0, (self.heads, self.dim_head))


def read_attention(transformer: Transformer) -> AttentionWeights:
    """The parameters of the attention sublayer of `transformer`."""
    sublayer = transformer.sublayers[0]
    norm, attention = sublayer.norm, cast(Attention, sublayer.fn)
    dtype = accumulation_dtype(norm.weight.dtype)
    query, key, value = weight_of(attention.to_qkv).to(dtype).chunk(3)
    out = None if isinstance(attention.to_out, nn.Identity) else cast(nn.Linear, attention.to_out[0])
    return AttentionWeights(
        heads=attention.heads,
        dim_head=attention.dim_head,
        eps=norm.eps,
        gamma=norm.weight.to(dtype),
        beta=norm.bias.to(dtype),
        query=query * attention.dim_head**-0.5,
        key=key,
        value=value,
        out_weight=None if out is None else weight_of(out).to(dtype),
        out_bias=None if out is None else out.bias.to(dtype),
    )


def folded_out_bias(weights: AttentionWeights) -> Tensor:
    """`b_o + W_o W_v β`: what the output holds whatever is attended to, `(dim,)`."""
    value_bias = weights.value @ weights.beta
    if weights.out_weight is None or weights.out_bias is None:
        return value_bias
    return torch.addmv(weights.out_bias, weights.out_weight, value_bias)


def read_dropout(transformer: Transformer) -> Dropout:
    """The probabilities that the dropout modules of `transformer` hold, as each is set at this moment."""
    attention, feed_forward = (sublayer.fn for sublayer in transformer.sublayers)
    to_out = cast(Attention, attention).to_out
    _, _, hidden, _, out = cast(FeedForward, feed_forward).net
    modules = (to_out if isinstance(to_out, nn.Identity) else to_out[1], hidden, out)
    return Dropout(*(module.p if isinstance(module, nn.Dropout) and module.training else 0.0 for module in modules))
