"""A `SepTr` on the parameters of another module: the same objects under the same names, in the same order.

What has parameters or a probability of its own (Linear, LayerNorm, GELU, Dropout, the head) is taken over as a
module, and with it its mode, masks, norms, parametrizations and `eps`. The modules around them are new ones. A
transformer with other layers than these, or with hooks, is taken over whole, to be called as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from septr_fast.adopt.original import heads_of
from septr_fast.algebra.reading import why_written
from septr_fast.block import SepTrBlock
from septr_fast.model import SepTr
from septr_fast.reference import Attention, Transformer

LEAVES = (nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout)
"""Modules that are taken over as they are."""
_OWN = (nn.Identity, nn.AvgPool2d, nn.UpsamplingNearest2d)
_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_LISTED = 4
"""Most parameters that an error lists."""


def share(module: nn.Module, path: str, arguments: dict[str, Any], **options: Any) -> SepTr:
    """A `SepTr` that has the parameters of `module`, its head and its hooks, and draws no random numbers.

    Args:
        module: an instance of the original.
        path: where it is, for errors.
        arguments: of `SepTr`, as `original.arguments` reads them.
        options: further arguments of `SepTr`.

    Raises:
        TypeError: where a part is missing, of another kind or shape, or too much, or has hooks that would never
            be called; it names the path.
    """
    with torch.device("meta"):
        model = SepTr(**arguments, **options)
    model.fc = cast(nn.Linear, module.fc)
    _take(model, module, path)
    _refuse_hooks(model, module, path)
    _refuse_extras(model, module, path)
    _carry_hooks(model, module)
    return model


def _taken(new: Transformer, old: nn.Module, path: str, heads: tuple[int, int]) -> nn.Module:
    """`new` with the layers of `old`, or `old` itself where it is more than these."""
    try:
        _take(new, old, path)
        _refuse_hooks(new, old, path)
        _refuse_extras(new, old, path)
        readable = why_written(new) is None and heads_of(old, path, {"heads": heads[0]}) == heads
    except (TypeError, ValueError):
        readable = False
    return new if readable else old


def _carry_hooks(new: nn.Module, old: nn.Module) -> None:
    for name in [name for name in vars(old) if "_hook" in name]:
        setattr(new, name, getattr(old, name))


def _take(new: nn.Module, old: nn.Module, path: str) -> None:
    """Give `new` and all that it contains the parameters, modules and modes of `old`."""
    new.training = old.training
    for name, parameter in list(new._parameters.items()):
        found = old._parameters.get(name)
        _check_shape(f"{path}.{name}", parameter, found)
        setattr(new, name, found)
    for name, child in list(new._modules.items()):
        found_child = old._modules.get(name)
        where = f"{path}.{name}"
        if child is found_child or isinstance(child, _OWN):
            continue
        if isinstance(child, nn.Dropout) and (found_child is None or isinstance(found_child, nn.Identity)):
            continue
        if child is None or found_child is None:
            raise TypeError(f"{where}: expected {type(child).__name__}, there is none")
        if isinstance(child, Transformer):
            attention = cast(Attention, child.sublayers[0].fn)
            setattr(new, name, _taken(child, found_child, where, (attention.heads, attention.dim_head)))
        elif name == "projection":
            setattr(new, name, found_child)
        elif isinstance(child, LEAVES):
            _check_leaf(where, child, found_child)
            setattr(new, name, found_child)
        else:
            _take(child, found_child, where)
    if isinstance(new, SepTrBlock):
        _carry_hooks(new, old)
    if not isinstance(new, (nn.Sequential, nn.ModuleList)):
        new._parameters = _ordered(new._parameters, old._parameters)
        new._modules = _ordered(new._modules, old._modules)


def _ordered(entries: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """`entries` in the order of `like`, what is not there at the end."""
    return {name: entries[name] for name in like if name in entries} | entries


def _check_leaf(path: str, expected: nn.Module, found: nn.Module) -> None:
    kind = type(expected)
    if not isinstance(found, kind) or type(found).forward is not kind.forward:
        raise TypeError(f"{path}: expected {kind.__name__}, got {type(found).__name__}")
    modes = [(module, module.training) for module in found.modules()]
    for module, _ in modes:
        module.training = False  # A parametrization may change its buffers when it is read in training.
    try:
        for name in ("weight", "bias"):
            _check_shape(f"{path}.{name}", getattr(expected, name, None), getattr(found, name, None))
    finally:
        for module, mode in modes:
            module.training = mode


def _check_shape(path: str, expected: torch.Tensor | None, found: torch.Tensor | None) -> None:
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (expected, found)]
    if shapes[0] != shapes[1]:
        texts = ["none" if shape is None else f"shape {shape}" for shape in shapes]
        raise TypeError(f"{path}: expected {texts[0]}, got {texts[1]}")


def _refuse_extras(new: nn.Module, old: nn.Module, path: str) -> None:
    """Raise `TypeError` where `old` has a parameter or a buffer that is not in `new`."""
    known = dict(_tensors(new))
    extras = [name for name, tensor in _tensors(old) if known.get(name) is not tensor]
    if extras:
        more = f" and {len(extras) - _LISTED} more" if len(extras) > _LISTED else ""
        raise TypeError(f"{path}: it has what SepTr has not: {', '.join(extras[:_LISTED])}{more}")


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _refuse_hooks(new: nn.Module, old: nn.Module, path: str) -> None:
    """Raise `TypeError` for hooks inside of `old` that nobody would call."""
    called = set(new.modules())
    blocks = {name for name, inner in new.named_modules() if isinstance(inner, SepTrBlock)}
    for name, inner in old.named_modules():
        carried = name in blocks or (isinstance(new, SepTr) and not name)
        if carried or inner in called:
            continue
        if any(getattr(inner, kind) for kind in (*_CALL_HOOKS, *_STATE_HOOKS)):
            raise TypeError(f"{path}.{name}: it has hooks, which SepTr would never call; remove them first")
