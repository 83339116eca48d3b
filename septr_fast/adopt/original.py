"""What a live instance of the original class says about itself: is it one, and which arguments made it.

Nothing of the original is imported. It is known by its submodules, whose names are those of the state dict, and by
what its attention stores, `heads` or `scale`. What neither shapes nor attributes tell has to be given.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from septr_fast.reference import size_pair, whole

_ATTENTION = "layers.0.0.fn"
_HIDDEN = "layers.0.1.fn.net.0"
_TRANSFORMERS = ("transformer_h", "transformer_w")


def resembles(module: nn.Module) -> bool:
    """Whether `module` has blocks with positions along both axes, as `SepTr` has."""
    blocks = module._modules.get("transformer")
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        return False
    return any(hasattr(block, "pos_embedding_h") and hasattr(block, "pos_embedding_w") for block in blocks)


def check_forward(module: nn.Module, path: str) -> None:
    """Raise `TypeError` unless the forward of `module` is its class's and takes a spectrogram and nothing else."""
    if "forward" in vars(module):
        raise TypeError(f"{path}: expected the forward of its class, got one that was set on the instance")
    _, *parameters = inspect.signature(type(module).forward).parameters.values()
    named = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if len(named) > 1:
        raise TypeError(f"{path}: expected a forward that takes spectrograms alone, got one of ({', '.join(named)})")


def arguments(module: nn.Module, path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `SepTr` that give the parameters and the function of `module`, probabilities left out.

    Args:
        module: a module that `resembles` the original.
        path: where it is, for errors.
        given: of "heads", "input_size", "down_sample_input" and "first_axis" what the caller says.

    Raises:
        TypeError: where a part is missing or something can neither be read nor is given; it names the path.
        ValueError: where what is given contradicts the module.
    """
    blocks = list(module.get_submodule("transformer").named_children())
    names = [f"{path}.transformer.{name}" for name, _ in blocks]
    first = blocks[0][1]
    cls_token = _tensor(module, "cls_token", path)
    heads, dim_head = _heads([block for _, block in blocks], names, given)
    pool = _pool(first, names[0], given)
    axis = getattr(first, "first_axis", None)
    fc = _part(module, "fc", path)
    return {
        "channels": _width(first, "projection", names[0], "in_features"),
        "input_size": _input_size(module, first, names[0], pool, given),
        "num_classes": fc.out_features if isinstance(fc, nn.Linear) else 1,
        "depth": len(blocks),
        "heads": heads,
        "mlp_dim": _mlp_dim([block for _, block in blocks]) or cls_token.shape[-1],
        "dim_head": dim_head,
        "down_sample_input": pool,
        "dim": cls_token.shape[-1],
        "first_axis": _agreed("first_axis", axis, given, names[0]) or "height",
    }


def _part(module: nn.Module, name: str, path: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise TypeError(f"{path}.{name}: expected a module as SepTr has it, there is none") from None


def _width(module: nn.Module, name: str, path: str, side: str = "out_features") -> int:
    """How many features go into or come out of a linear layer, or of what stands in its place."""
    found = _part(module, name, path)
    features = whole(getattr(found, side, None))
    if not features:
        raise TypeError(f"{path}.{name}: expected Linear, got {type(found).__name__}")
    return features


def _mlp_dim(blocks: list[nn.Module]) -> int | None:
    """The width of the first hidden layer that says it; None where none does."""
    for block in blocks:
        for name in _TRANSFORMERS:
            with suppress(TypeError):
                return _width(block, f"{name}.{_HIDDEN}", "")
    return None


def _tensor(module: nn.Module, name: str, path: str) -> Tensor:
    found = module._parameters.get(name)
    if found is None or found.dim() != 4:
        raise TypeError(
            f"{path}.{name}: expected a parameter of 4 dimensions, got {None if found is None else tuple(found.shape)}"
        )
    return found


def _agreed(name: str, stored: Any, given: Mapping[str, Any], path: str) -> Any:
    """What is stored or given, None where neither is; raise `ValueError` where they differ."""
    if stored is not None and name in given and given[name] != stored:
        raise ValueError(f"{name}: {path} has {stored}, got {given[name]}")
    return given.get(name) if stored is None else stored


def _heads(blocks: list[nn.Module], paths: list[str], given: Mapping[str, Any]) -> tuple[int, int]:
    """Heads and their width, as most attentions tell them."""
    found: Counter[tuple[int, int]] = Counter()
    first_error: Exception | None = None
    for block, path in zip(blocks, paths, strict=True):
        for name in _TRANSFORMERS:
            try:
                found[heads_of(_part(block, name, path), f"{path}.{name}", given)] += 1
            except (TypeError, ValueError) as error:
                first_error = first_error or error
    if first_error is not None and not found:
        raise first_error
    return found.most_common(1)[0][0]


def heads_of(transformer: nn.Module, path: str, given: Mapping[str, Any]) -> tuple[int, int]:
    """Heads and their width as the attention of `transformer` stores them; heads may be `given`.

    Raises:
        TypeError: where they cannot be read.
        ValueError: where what is given is not what is stored.
    """
    return _heads_of(_part(transformer, _ATTENTION, path), f"{path}.{_ATTENTION}", given)


def _heads_of(attention: nn.Module, path: str, given: Mapping[str, Any]) -> tuple[int, int]:
    width = _width(attention, "to_qkv", path) // 3
    scale = getattr(attention, "scale", None)
    scale = scale if isinstance(scale, float) and scale > 0 else None
    heads = getattr(attention, "heads", None)
    if heads is None and scale is not None:
        heads = width // max(1, round(scale**-2))
    heads = _agreed("heads", heads, given, path)
    if heads is None:
        raise TypeError(f"{path}: it stores neither heads nor scale; say how many: accelerate(model, heads=...)")
    if not whole(heads) or width % heads:
        raise TypeError(f"{path}: expected heads that divide the {width} features of its queries, got {heads}")
    heads, dim_head = int(heads), width // int(heads)
    if scale is not None and abs(scale * dim_head**0.5 - 1) > 1e-6:
        raise TypeError(f"{path}: expected the scale {dim_head**-0.5} of {heads} heads of {dim_head}, got {scale}")
    return heads, dim_head


def _poolings(block: nn.Module) -> Iterator[nn.AvgPool2d]:
    for name, child in block.named_children():
        if name not in _TRANSFORMERS:
            yield from (module for module in child.modules() if isinstance(module, nn.AvgPool2d))


def _pool(block: nn.Module, path: str, given: Mapping[str, Any]) -> tuple[int, int] | None:
    sizes = {_pair(module.kernel_size, path, "pooling") for module in _poolings(block)}
    if len(sizes) > 1:
        raise TypeError(f"{path}: expected one average pooling, got {sorted(sizes)}")
    pool: tuple[int, int] | None = _agreed("down_sample_input", sizes.pop() if sizes else None, given, path)
    return pool


def _pair(value: Any, path: str, name: str) -> tuple[int, int]:
    try:
        return size_pair(value, name)
    except ValueError as error:
        raise TypeError(f"{path}: {error}") from None


def _input_size(
    module: nn.Module, block: nn.Module, path: str, pool: tuple[int, int] | None, given: Mapping[str, Any]
) -> tuple[int, int]:
    height, width = (_tensor(block, f"pos_embedding_{side}", path).shape[2] - 1 for side in "hw")
    value: Any = next((one.input_size for one in (module, block) if hasattr(one, "input_size")), None)
    stored = None if value is None else _pair(value, path, "input_size")
    factor = (1, 1) if pool is None else pool
    size: tuple[int, int] | None = _agreed("input_size", stored, given, path)
    if size is None and factor == (1, 1):
        size = height, width
    if size is None:
        most = tuple((n + 1) * f - 1 for n, f in zip((height, width), factor, strict=True))
        raise TypeError(
            f"{path}: positions for {height} x {width} tokens of {factor[0]} x {factor[1]} pixels fit an input_size "
            f"from {(height * factor[0], width * factor[1])} to {most}; say which: accelerate(model, input_size=...)"
        )
    if (size[0] // factor[0], size[1] // factor[1]) != (height, width):
        raise TypeError(
            f"{path}: expected positions for input_size {size} pooled by {factor}, got {height} x {width} of them"
        )
    return size
