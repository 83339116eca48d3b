"""The constructor's arguments that describe a model, read out of the model as it is now.

Whether they describe all of it is found by building what they describe, the plain reference without memory, and
comparing both module by module: what a loaded model would compute otherwise, or could not hold, is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

from septr_fast import reference
from septr_fast.algebra.reading import has_hooks
from septr_fast.model import SepTr, SepTrBlock
from septr_fast.reference import as_python, size_pair

_PLAIN: dict[type[nn.Module], type[nn.Module]] = {SepTr: reference.SepTr, SepTrBlock: reference.SepTrBlock}
_FAST = {plain: fast for fast, plain in _PLAIN.items()}
_HOW = ("training", "backend", "formulation", "recompute")
"""Attributes that say how a module is computed, not what."""
_ELSEWHERE = (
    "arguments of SepTr, read off its first transformer, cannot say that: keep its state dict, and the code that "
    "changes the model"
)

_logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


def constructor_arguments(model: reference.SepTr) -> dict[str, Any]:
    """The arguments of `SepTr` that make a model of the function and the parameters of `model`, as it is now.

    `formulation` and `backend`, which say how it is computed, are left to whoever loads it, and so are hooks, of which
    a warning is logged.

    Raises:
        ValueError: where no arguments make such a model, naming the part of it that they cannot describe.
    """
    arguments = read_arguments(model)
    with torch.device("meta"):
        wanted = reference.SepTr(**arguments)
    if type(model).forward not in _forwards(reference.SepTr):
        raise ValueError(f"model: expected a SepTr, {type(model).__name__} has a forward of its own; {_ELSEWHERE}")
    check_alike(wanted, model)
    return arguments


def check_alike(wanted: nn.Module, model: nn.Module) -> None:
    """Raise `ValueError` unless loading the state of `model` into `wanted` makes the same of it, but for hooks."""
    for reason in _differences(wanted, model):
        raise ValueError(f"model: expected what its constructor makes, got one in which {reason}; {_ELSEWHERE}")
    hooked = [name or type(model).__name__ for name, module in model.named_modules() if has_hooks(module)]
    if hooked:
        _logger.warning("hooks are not saved: those of %s", ", ".join(hooked))


def read_arguments(model: reference.SepTr) -> dict[str, Any]:
    """The arguments of `SepTr` as the first block and its first transformer have them; unchecked."""
    first = _part(model, "transformer.0", reference.SepTrBlock)
    attention = _part(first, "transformer_h.layers.0.0.fn", reference.Attention)
    mlp = "transformer_h.layers.0.1.fn.net"
    pool = first.pool.kernel_size if isinstance(first.pool, nn.AvgPool2d) else None
    dropout = _part(first, f"{mlp}.2", nn.Module)
    found = {
        "channels": first.channels,
        "input_size": list(first.input_size),
        "num_classes": model.fc.out_features if isinstance(model.fc, nn.Linear) else 0,
        "depth": len(model.transformer),
        "heads": attention.heads,
        "mlp_dim": _part(first, f"{mlp}.0", nn.Linear).out_features,
        "dim_head": attention.dim_head,
        "down_sample_input": None if pool is None else list(size_pair(cast(Any, pool), "pool")),
        "dim": first.dim,
        "dropout_tr": dropout.p if isinstance(dropout, nn.Dropout) else 0.0,
        "return_cls": model.return_cls,
        "first_axis": first.first_axis,
    }
    return cast(dict[str, Any], as_python(found))


def _part(module: nn.Module, name: str, kind: type[Module]) -> Module:
    """The submodule `name`, which has to be of `kind` for the arguments to be read."""
    try:
        found = module.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"model: expected {kind.__name__} as {name}, got none; {_ELSEWHERE}") from error
    if not isinstance(found, kind):
        raise ValueError(f"model: expected {kind.__name__} as {name}, got {type(found).__name__}; {_ELSEWHERE}")
    return found


def _differences(wanted: nn.Module, model: nn.Module) -> Iterator[str]:
    """What `model` has otherwise than `wanted`, from the outside to the inside."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, expected in wanted.named_modules():
        if name not in modules:
            yield f"{name} is not there"
            return
        found, named = modules.pop(name), name or "it"
        # Dropout that drops nothing may be gone.
        gone = isinstance(expected, nn.Dropout) and expected.p == 0 and isinstance(found, nn.Identity)
        kind = nn.Identity if gone else _PLAIN.get(type(expected), type(expected))
        if name and not isinstance(found, kind):
            yield f"{named} is {type(found).__name__}, not {kind.__name__}"
        elif "forward" in found.__dict__ or (name and not _is_called_as(kind, found)):
            yield f"{named} has a forward of its own"
        elif not gone:
            yield from _settings_that_differ(named, expected, found)
    for name, module in modules.items():
        above = model.get_submodule(name.rpartition(".")[0])
        if isinstance(above, (nn.Sequential, nn.ModuleList)) or module.state_dict():
            yield f"there is one module more, {name}"
    for name, expected in wanted.named_modules():
        yield from _tensors_that_differ(name or "it", expected, model.get_submodule(name))


def _is_called_as(kind: type[nn.Module], module: nn.Module) -> bool:
    return type(module).forward in _forwards(kind) and type(module).__call__ is kind.__call__


def _forwards(kind: type[nn.Module]) -> list[Callable[..., Any]]:
    """What computes the function of a module of `kind`: its forward, and that of this package."""
    return [each.forward for each in (kind, _FAST.get(kind, kind))]


def _settings_that_differ(name: str, expected: nn.Module, found: nn.Module) -> Iterator[str]:
    """Public attributes of `expected`, like the eps of a norm, that `found` has not, or not so."""
    for setting, value in vars(expected).items():
        if setting.startswith("_") or setting in _HOW or not isinstance(value, bool | int | float | str | tuple | None):
            continue
        if isinstance(expected, reference.SepTr) and setting != "return_cls":
            continue  # What a class of one's own keeps is its own.
        own = getattr(found, setting, None)
        if own != value and not (isinstance(value, tuple) and value == (own,) * len(value)):
            yield f"{setting} of {name} is {own}, not {value}"


def _tensors_that_differ(name: str, expected: nn.Module, found: nn.Module) -> Iterator[str]:
    """Parameters and buffers of both that are missing, too many, of another shape or no plain tensors."""
    wanted, own = ({**module._parameters, **module._buffers} for module in (expected, found))
    shapes = ({key: tuple(x.shape) for key, x in tensors.items() if x is not None} for tensors in (wanted, own))
    expected_shapes, found_shapes = shapes
    for key in dict.fromkeys([*expected_shapes, *found_shapes]):
        if key not in found_shapes:
            yield f"{name} has no {key}"
        elif key not in expected_shapes:
            yield f"{name} has a {key}"
        elif found_shapes[key] != expected_shapes[key]:
            yield f"{key} of {name} has the shape {found_shapes[key]}, not {expected_shapes[key]}"
        elif hasattr(type(own[key]), "__tensor_flatten__"):
            yield f"{key} of {name} is a {type(own[key]).__name__}"
