"""A module and the `SepTr` in its place on one random input, in float64 on the CPU, leaving no trace.

Positions are cut to a few tokens for it, so that it costs next to nothing; a module that depends on its size is
compared at full size. Then the module runs once more as in training, all known dropout off: what it does there and
not in evaluation (dropout of another place, stochastic depth) would be lost. The head is left out: both share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from septr_fast.adopt.sharing import LEAVES, share
from septr_fast.algebra.reading import WEIGHT_HOOKS
from septr_fast.reference import size_pair

Output = tuple[Tensor, ...]

TOLERANCE = 1e-8
"""Largest difference that passes, relative to the norm of the module's result."""
_TOKENS = (3, 2)
_SEED = 20220617


class _Head(nn.Module):
    """In place of the classifier: what comes out is told from the class token by its shape."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=-1)


def check(module: nn.Module, path: str, arguments: dict[str, Any]) -> bool:
    """Compare `module` with a `SepTr` of `arguments` that shares its parameters.

    Parameters, buffers, modes and random states stay as they are, and no hook of the user is called.

    Args:
        module: an instance of the original.
        path: where it is, for errors.
        arguments: of `SepTr`, as `original.arguments` reads them.

    Returns:
        Whether it returns the class token beside the logits.

    Raises:
        TypeError: where results differ, or the module fails; it names the path.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        raise TypeError(f"{path}: expected parameters with values to compare, got some on the meta device")
    pool, size = _pool(arguments), arguments["input_size"]
    full = size[0] // pool[0], size[1] // pool[1]
    small = min(full[0], _TOKENS[0]), min(full[1], _TOKENS[1])
    with _undisturbed(module):
        reason, returns_cls = _difference(module, path, arguments, small)
        if reason is not None and small != full:
            reason, returns_cls = _difference(module, path, arguments, full)
    if reason is not None:
        raise TypeError(f"{path}: expected what SepTr computes, {reason}")
    return returns_cls


def _difference(
    module: nn.Module, path: str, arguments: dict[str, Any], tokens: tuple[int, int]
) -> tuple[str | None, bool]:
    """What differs on a grid of `tokens`, None for nothing, and whether the class token is returned."""
    pool = _pool(arguments)
    cut = tokens[0] * pool[0], tokens[1] * pool[1]
    shell = _shell(module, tokens)
    generator = torch.Generator("cpu").manual_seed(_SEED)
    x = torch.randn(2, arguments["channels"], *cut, generator=generator, dtype=torch.float64, device="cpu")
    try:
        _set_modes(shell, within_training=False)
        results = [_run(shell, x)]
        _set_modes(shell, within_training=True)
        results.append(_run(shell, x))
    except Exception as error:
        return f"got {type(error).__name__} on a random input: {error}", False
    returns_cls = len(results[0]) == 2
    other = share(shell, path, {**arguments, "input_size": cut}, return_cls=returns_cls, backend="torch")
    _set_modes(shell, within_training=False)
    wanted = _run(other, x)
    for result, mode in zip(results, ("evaluation", "training"), strict=True):
        shapes, expected = ([tuple(part.shape) for part in parts] for parts in (result, wanted))
        if shapes != expected:
            return f"got other results in {mode}: for one logit, shapes {shapes} in place of {expected}", returns_cls
        worst = max(_relative(part, whole) for part, whole in zip(wanted, result, strict=True))
        if not worst <= TOLERANCE:
            return f"got other results on a random input in {mode}, a relative difference of {worst:.1e}", returns_cls
    return None, returns_cls


def _pool(arguments: dict[str, Any]) -> tuple[int, int]:
    return size_pair(arguments["down_sample_input"] or 1, "down_sample_input")


def _relative(result: Tensor, wanted: Tensor) -> float:
    return ((result - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def _shell(module: nn.Module, tokens: tuple[int, int]) -> nn.Module:
    """`module` with its own parameters and layers, but positions of the first `tokens`, no hooks and another head."""
    shell = _copy(module, {})
    shell._modules["fc"] = _Head()
    for block in shell.get_submodule("transformer").children():
        for name, count in zip(("pos_embedding_h", "pos_embedding_w"), tokens, strict=True):
            positions = cast(nn.Parameter, block._parameters[name])
            block._parameters[name] = nn.Parameter(positions.detach()[:, :, : count + 1])
    return shell


def _copy(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of `module` and of all inside, on the same parameters, without hooks but those that set weights."""
    if module in made:
        return made[module]
    shell = made[module] = type(module).__new__(type(module))  # Parametrized modules refuse copy.copy.
    vars(shell).update(vars(module))
    vars(shell)["_parameters"] = dict(module._parameters)
    vars(shell)["_buffers"] = dict(module._buffers)
    vars(shell)["_modules"] = {
        name: None if child is None else _copy(child, made) for name, child in module._modules.items()
    }
    for name in [name for name in vars(shell) if name.endswith("_hooks")]:
        kept = {key: hook for key, hook in getattr(module, name).items() if isinstance(hook, WEIGHT_HOOKS)}
        setattr(shell, name, OrderedDict(kept))
    return shell


def _run(module: nn.Module, x: Tensor) -> Output:
    """The tensors that `module` returns with its parameters and buffers in float64 on the CPU."""
    copies: dict[Tensor, Tensor] = {}
    named = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for tensor in named.values():
        copies[tensor] = tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else None)
    result = functional_call(module, {name: copies[tensor] for name, tensor in named.items()}, (x,))
    parts = result if isinstance(result, tuple) else (result,)
    if not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"expected one or two tensors, got {type(result).__name__}")
    return parts


def _set_modes(module: nn.Module, *, within_training: bool) -> None:
    """Evaluation for all, or training for all but the layers that a `SepTr` takes over, parametrizations included."""
    for inner in module.modules():
        inner.training = within_training
    for layer in [inner for inner in module.modules() if isinstance(inner, LEAVES)]:
        for inner in layer.modules():
            inner.training = False


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Without gradients, autocast and default devices; modes, derived weights and random states are put back."""
    modules = list(module.modules())
    training = [inner.training for inner in modules]
    derived = [{name: value for name, value in vars(inner).items() if isinstance(value, Tensor)} for inner in modules]
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            torch.device("cpu"),
            torch.autocast("cpu", None, False),
        ):
            yield
    finally:
        for inner, mode, tensors in zip(modules, training, derived, strict=True):
            inner.training = mode
            vars(inner).update(tensors)
