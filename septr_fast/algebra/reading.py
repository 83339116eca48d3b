"""Parameters read out of the modules that hold them, and whether these modules are what folding takes them for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.module_tracker import ModuleTracker

from septr_fast.algebra.folded import Dropout, accumulation_dtype
from septr_fast.reference import Attention, FeedForward, PreNorm, Transformer

_GLOBAL_HOOKS = (
    modules._global_forward_pre_hooks,
    modules._global_forward_hooks,
    modules._global_backward_pre_hooks,
    modules._global_backward_hooks,
)
WEIGHT_HOOKS = (BasePruningMethod, WeightNorm, SpectralNorm)
"""What PyTorch registers to set a weight when its layer is called."""


Kinds = tuple[type[nn.Module], ...]
Part = tuple[str, nn.Module | None, Kinds, bool | None]
"""Name, module, what it has to be, and whether it has to have a bias."""

_LINEAR, _DROPOUT = (nn.Linear,), (nn.Dropout, nn.Identity)
_OUT: tuple[tuple[str, Kinds], ...] = (("layers.0.0.fn.to_out.0", _LINEAR), ("layers.0.0.fn.to_out.1", _DROPOUT))
_NET: tuple[tuple[str, Kinds], ...] = (
    ("layers.0.1.fn.net.0", _LINEAR),
    ("layers.0.1.fn.net.1", (nn.GELU,)),
    ("layers.0.1.fn.net.2", _DROPOUT),
    ("layers.0.1.fn.net.3", _LINEAR),
    ("layers.0.1.fn.net.4", _DROPOUT),
)


def why_written(transformer: nn.Module) -> str | None:
    """Why the weights of `transformer` cannot be folded, so that it is called as it is written; None if they can.

    They can where every module is what the original is built of, with no hooks and no forward of its own: of an
    adapter, a quantized layer or another activation they would show nothing. Pruning, norms and parametrizations of
    weights are followed, and dropout may be gone.
    """
    for part in _parts(transformer):
        reason = _why_not(*part)
        if reason is not None:
            return reason
    return _why_not_heads(cast(Transformer, transformer))


def why_not_linear(name: str, linear: nn.Module) -> str | None:
    """Why `linear` cannot be read as a linear layer with a bias; None if it can."""
    return _why_not(name, linear, _LINEAR, True)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling `module` calls hooks, other than those that set the weight of a linear layer."""
    return every_module_is_hooked() or has_hooks(module)


def every_module_is_hooked() -> bool:
    """Whether hooks are registered for all modules, other than those by which PyTorch's counters follow their names."""
    if not any(_GLOBAL_HOOKS):
        return False
    hooks = (hook for registered in _GLOBAL_HOOKS for hook in registered.values())
    return any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)


def has_hooks(module: nn.Module) -> bool:
    """As `is_hooked`, of those that are registered for `module` itself."""
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    before = module._forward_pre_hooks.values()
    return any(not (isinstance(module, nn.Linear) and isinstance(hook, WEIGHT_HOOKS)) for hook in before)


def _parts(transformer: nn.Module) -> Iterator[Part]:
    """The modules that a transformer is called with, from the outside to the inside."""
    yield "the transformer", transformer, (Transformer,), None
    layers = _child(transformer, "layers")
    layer = _child(layers, "0")
    attention_sublayer, mlp_sublayer = _child(layer, "0"), _child(layer, "1")
    attention, mlp = _child(attention_sublayer, "fn"), _child(mlp_sublayer, "fn")
    yield "layers", layers, (nn.ModuleList,), None
    yield "layers.0", layer, (nn.ModuleList,), None
    yield "layers.0.0", attention_sublayer, (PreNorm,), None
    yield "layers.0.0.norm", _child(attention_sublayer, "norm"), (nn.LayerNorm,), True
    yield "layers.0.0.fn", attention, (Attention,), None
    yield "layers.0.0.fn.to_qkv", _child(attention, "to_qkv"), _LINEAR, False
    to_out = _child(attention, "to_out")
    alone = (nn.Identity,) if cast(Attention, attention).heads == 1 else ()
    yield "layers.0.0.fn.to_out", to_out, (*alone, nn.Sequential), None
    if isinstance(to_out, nn.Sequential):
        yield from _in_turn(to_out, _OUT)
    yield "layers.0.1", mlp_sublayer, (PreNorm,), None
    yield "layers.0.1.norm", _child(mlp_sublayer, "norm"), (nn.LayerNorm,), True
    yield "layers.0.1.fn", mlp, (FeedForward,), None
    net = _child(mlp, "net")
    yield "layers.0.1.fn.net", net, (nn.Sequential,), None
    yield from _in_turn(cast(nn.Sequential, net), _NET)


def _in_turn(modules: nn.Sequential, expected: tuple[tuple[str, Kinds], ...]) -> Iterator[Part]:
    """What `modules` calls, and what is `expected` of it."""
    found = list(modules._modules.values())
    for index, (name, kinds) in enumerate(expected):
        module = found[index] if index < len(found) else None
        yield name, module, kinds, True if kinds is _LINEAR else None
    for module in found[len(expected) :]:
        yield "one layer more", module, (), None


def _child(module: nn.Module | None, name: str) -> nn.Module | None:
    return None if module is None else module._modules.get(name)


_PLAIN_WEIGHTS = (nn.Parameter, Tensor, type(None))


def _why_not(name: str, module: nn.Module | None, kinds: Kinds, biased: bool | None) -> str | None:
    """What keeps `module` from being read as one of `kinds`; None for nothing."""
    if module is None:
        return f"{name} is not there"
    kind = type(module)
    if kind not in kinds and not any(_is_called_as(module, each) for each in kinds):
        return f"{name} is {type(module).__name__}" + "".join(f", not {kind.__name__}" for kind in kinds[-1:])
    if "forward" in module.__dict__:
        return f"{name} has a forward of its own"
    if is_hooked(module):
        return f"{name} has hooks"
    if biased is not None and (module._parameters.get("bias", module) is not None) is not biased:
        return f"{name} has {'no' if biased else 'a'} bias"
    weight = type(module._parameters.get("weight"))
    if weight not in _PLAIN_WEIGHTS and hasattr(weight, "__tensor_flatten__"):
        return f"{name} has a weight of {weight.__name__}"
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return f"{name} approximates GELU by {module.approximate}"
    return None


def _is_called_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    own = type(module)
    return isinstance(module, kind) and own.forward is kind.forward and own.__call__ is kind.__call__


def _why_not_heads(transformer: Transformer) -> str | None:
    """What keeps the weights of the attention from being read as those of its heads."""
    attention = cast(Attention, transformer.sublayers[0].fn)
    width, rows = attention.heads * attention.dim_head, attention.to_qkv.out_features
    return None if rows == 3 * width else f"to_qkv gives {rows} values, not 3 for each of {width} in its heads"


def read_widths(transformer: nn.Module) -> tuple[int, int, int] | None:
    """Heads, their width and that of the hidden layer; None where other modules do not tell."""
    try:
        attention, mlp = (sublayer.fn for sublayer in cast(Transformer, transformer).sublayers)
        hidden = cast(nn.Linear, cast(FeedForward, mlp).net[0])
        return cast(Attention, attention).heads, cast(Attention, attention).dim_head, hidden.out_features
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def weight_of(linear: nn.Linear) -> Tensor:
    """The weight that `linear` would use: pruning and norms by hooks set it only when the module is called."""
    for hook in linear._forward_pre_hooks.values():
        if isinstance(hook, WEIGHT_HOOKS):
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
    return weights.out_bias + weights.out_weight @ value_bias


def read_dropout(transformer: Transformer) -> Dropout:
    """The probabilities that the dropout modules of `transformer` hold, as each is set at this moment."""
    attention, feed_forward = (sublayer.fn for sublayer in transformer.sublayers)
    to_out = cast(Attention, attention).to_out
    _, _, hidden, _, out = cast(FeedForward, feed_forward).net
    modules = (to_out if isinstance(to_out, nn.Identity) else to_out[1], hidden, out)
    return Dropout(*(module.p if isinstance(module, nn.Dropout) and module.training else 0.0 for module in modules))
