"""`accelerate`: a live model of the original class, wherever it is, becomes a `SepTr` on the same parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from septr_fast.adopt import comparison, original
from septr_fast.adopt.sharing import share
from septr_fast.model import SepTr, Size
from septr_fast.passes.backend import check_name
from septr_fast.reference import size_pair


def accelerate(
    model: nn.Module,
    *,
    heads: int | None = None,
    input_size: Size | None = None,
    down_sample_input: Size | None = None,
    first_axis: str | None = None,
    return_cls: bool | None = None,
    formulation: str | Sequence[str | None] | None = None,
    backend: str = "auto",
    check: bool = True,
) -> nn.Module:
    """Put a `SepTr` in the place of every instance of the original class in `model`, or of `model` itself.

    An instance is known by its submodules, of whatever class it is. The `SepTr` has the same Parameter objects under
    the same names in the same order, so that optimizers, averaged copies and checkpoints go on unchanged; modes,
    `requires_grad`, the head, hooks and what changes single layers (pruning, norms,
    parametrizations, `eps`, the probabilities of dropout) are kept; a transformer with other layers, or with hooks,
    is taken over whole and runs as it is written. All instances are read and compared before the
    first is replaced.

    Not carried: other attributes and methods of the instance, compilation, references to it from elsewhere than a
    module's submodules (a list, a closure). Hooks on containers that are not taken over are refused.

    Args:
        model: any module; it is changed.
        heads: attention heads, where the instances store neither heads nor scale.
        input_size: `(height, width)` of a spectrogram; needed where it is pooled and the instance does not store it.
        down_sample_input: `(height, width)` of the pooling, where it is no `AvgPool2d` of the first block.
        first_axis: "width" for a variant that attends along the width first.
        return_cls: whether the class token comes beside the logits; seen from the comparison by default.
        formulation: of `SepTr`.
        backend: of `SepTr`.
        check: compare every instance with its `SepTr` on a small random input, in evaluation and in training. Without
            it a forward that computes something else on the same parameters goes unnoticed.

    Returns:
        `model`, or the `SepTr` where `model` is an instance. What is a `SepTr` of this package stays as it is.

    Raises:
        ValueError: where there is no instance, or an argument contradicts one.
        TypeError: for what is no module; where a module only looks alike, or something cannot be read, naming module
            and difference.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    check_name(backend)
    given: dict[str, Any] = {
        "heads": heads,
        "input_size": None if input_size is None else size_pair(input_size, "input_size"),
        "down_sample_input": None if down_sample_input is None else size_pair(down_sample_input, "down_sample_input"),
        "first_axis": first_axis,
        "return_cls": return_cls,
    }
    given = {name: value for name, value in given.items() if value is not None}
    options = {"formulation": formulation, "backend": backend}
    found = [
        (path or "model", module)
        for path, module in model.named_modules()
        if original.resembles(module) and not isinstance(module, SepTr)
    ]
    if not found and not any(isinstance(module, SepTr) for module in model.modules()):
        raise ValueError(f"model: expected a SepTr of the original class somewhere inside, got {type(model).__name__}")
    replacements = {module: _replacement(module, path, given, options, check) for path, module in found}
    _check_compiled(model, replacements)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)


def _replacement(module: nn.Module, path: str, given: dict[str, Any], options: dict[str, Any], check: bool) -> SepTr:
    """A `SepTr` for `module`, which stays as it is."""
    original.check_forward(module, path)
    arguments = original.arguments(module, path, given)
    returns_cls = given.get("return_cls", getattr(module, "return_cls", False))
    result = share(module, path, arguments, **options)
    if check:
        seen = comparison.check(module, path, arguments)
        if given.get("return_cls", seen) != seen:
            raise ValueError(f"return_cls: {path} returns the class token: {seen}, got {returns_cls}")
        returns_cls = seen
    result.return_cls = returns_cls
    return result


def _check_compiled(model: nn.Module, replacements: dict[nn.Module, SepTr]) -> None:
    """Raise `TypeError` where `torch.compile` has bound an instance, which would go on to run."""
    for path, parent in model.named_modules():
        if parent._modules.get("_orig_mod") in replacements:
            raise TypeError(f"{path or 'model'}: it is compiled; accelerate the module inside first, then compile")
