"""The models that are compared, each made from the size of a spectrogram and the number of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import counting
from benchmarks.suite.baselines import Patches
from septr_fast import SepTr

Build = Callable[[tuple[int, int], int], nn.Module]

_UNDECAYED = ("cls_token", "distillation_token", "position_embeddings")
"""Parameters of ViT and AST that their authors take no weight decay for, beside norms and biases."""


@dataclass(frozen=True)
class Contestant:
    """A model by its name.

    Attributes:
        name: as it is asked for and shown.
        what: its sizes in words.
        build: from mels and frames, and the number of classes, with new weights.
        heavy: whether it is left to a GPU unless it is asked for.
    """

    name: str
    what: str
    build: Build
    heavy: bool = False


def _septr(pool: int, size: tuple[int, int], classes: int, **sizes: Any) -> nn.Module:
    pooled = None if pool == 1 else (pool, pool)
    return SepTr(input_size=size, num_classes=classes, down_sample_input=pooled, **sizes)


def _patches(kind: str, patch: int, size: tuple[int, int], classes: int) -> nn.Module:
    return Patches(kind, size, 1, classes, tiny=True, patch=patch)


NARROW: dict[str, Any] = {"depth": 2, "dim": 64, "mlp_dim": 128}
"""The sizes of `examples/train.py`."""
CONTESTANTS = (
    Contestant("SepTr 4x4", "the default model on means of 4x4", partial(_septr, 4)),
    Contestant("SepTr 4x4, shallow", "one block in place of three, on means of 4x4", partial(_septr, 4, depth=1)),
    Contestant("SepTr 4x4, narrow", "64 wide, two blocks, on means of 4x4", partial(_septr, 4, **NARROW)),
    Contestant("SepTr 2x2, narrow", "64 wide, two blocks, on means of 2x2", partial(_septr, 2, **NARROW)),
    Contestant("SepTr 2x2", "the default model on means of 2x2", partial(_septr, 2), heavy=True),
    Contestant("SepTr", "the default model, nothing pooled", partial(_septr, 1), heavy=True),
    Contestant("AST-Ti/16", "192 wide, 12 layers, patches of 16x16 that overlap", partial(_patches, "AST", 16)),
    Contestant("ViT-Ti/16", "192 wide, 12 layers, patches of 16x16", partial(_patches, "ViT", 16)),
    Contestant("ViT-Ti/8", "192 wide, 12 layers, patches of 8x8", partial(_patches, "ViT", 8)),
)


def named(names: tuple[str, ...]) -> tuple[Contestant, ...]:
    """The contestants of these names, in this order.

    Raises:
        ValueError: for another name.
    """
    known = {one.name: one for one in CONTESTANTS}
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"models: expected some of {', '.join(map(repr, known))}, got {missing[0]!r}")
    return tuple(known[name] for name in dict.fromkeys(names))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; norms, biases, tokens and positions without, in all models alike."""
    if isinstance(model, SepTr):
        return model.parameter_groups(weight_decay)
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        groups[parameter.dim() < 2 or name.endswith(_UNDECAYED)].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Floating-point operations of the products of a forward pass of one clip, two for a multiply-add."""
    if isinstance(model, SepTr):
        return model.plan().flops(1)
    device = next(model.parameters()).device
    with torch.no_grad():
        return counting.flops(lambda: model(torch.zeros(1, 1, *size, device=device)))
