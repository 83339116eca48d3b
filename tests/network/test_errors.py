"""Wrong calls: each names the argument, what came and what was expected, before any work is done."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from septr_fast import SepTr, SepTrBlock
from septr_fast.algebra.fold import fold
from septr_fast.checkpoints import constructor_arguments
from septr_fast.passes import dispatch
from septr_fast.passes.settings import Settings

SIZES: dict[str, Any] = {"input_size": (6, 8), "depth": 1, "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}

CONSTRUCTOR = [
    ({"depth": 0}, "depth: expected a positive int, got 0"),
    ({"depth": -1}, "depth: expected a positive int, got -1"),
    ({"depth": 1.0}, "depth: expected a positive int, got 1.0"),
    ({"channels": 0}, "channels: expected a positive int, got 0"),
    ({"heads": 0}, "heads: expected a positive int, got 0"),
    ({"dim": True}, "dim: expected a positive int, got True"),
    ({"dim_head": "8"}, "dim_head: expected a positive int, got '8'"),
    ({"mlp_dim": 0}, "mlp_dim: expected a positive int, got 0"),
    ({"num_classes": -1}, "num_classes: expected a positive int, or 0 for features, got -1"),
    ({"input_size": (6, 8, 1)}, "input_size: expected a positive int or two of them (height, width), got (6, 8, 1)"),
    ({"input_size": (6, 0)}, "input_size: expected a positive int or two of them (height, width), got (6, 0)"),
    ({"input_size": None}, "input_size: expected a positive int or two of them (height, width), got None"),
    ({"input_size": (6.0, 8)}, "input_size: expected a positive int or two of them (height, width), got (6.0, 8)"),
    ({"down_sample_input": 0}, "down_sample_input: expected a positive int or two of them"),
    ({"down_sample_input": (7, 1)}, "down_sample_input: pooling (7, 1) leaves nothing of input_size (6, 8)"),
    ({"dropout_tr": 1.5}, "dropout_tr: expected a probability, got 1.5"),
    ({"first_axis": "time"}, "first_axis: expected one of height, width, got 'time'"),
    ({"formulation": "fast"}, "formulation: expected one of direct, merged, low-rank, class-only, got 'fast'"),
    ({"formulation": ["direct"]}, "formulation: expected one name or 2, got 1"),
    ({"formulation": ["class-only", None]}, "formulation: class-only is not possible for transformer 0 of 2"),
    ({"formulation": [None, "low-rank"]}, "formulation: low-rank is not possible for transformer 1 of 2"),
    ({"backend": "cuda"}, "backend: expected one of auto, torch, triton, got 'cuda'"),
]


@pytest.mark.parametrize(("arguments", "message"), CONSTRUCTOR, ids=lambda value: str(value)[:40])
def test_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SepTr(**{**SIZES, **arguments})


def half_built() -> SepTr:
    model = SepTr(**SIZES)
    model.fc.half()
    return model


def moved() -> SepTr:
    model = SepTr(**SIZES)
    model.transformer[0].to("meta")
    return model


INPUTS = [
    (SepTr(**SIZES), [[0.0]], TypeError, "x: expected a tensor (batch, channels, height, width), got list"),
    (SepTr(**SIZES), torch.zeros(1, 6, 8), ValueError, "x: expected (batch, 1, 6, 8), got 3 dimensions, (1, 6, 8)"),
    (SepTr(**SIZES), torch.zeros(()), ValueError, "x: expected (batch, 1, 6, 8), got 0 dimensions, ()"),
    (SepTr(**SIZES), torch.zeros(2, 3, 6, 8), ValueError, "x: expected 1 channels, (batch, 1, 6, 8), got 3"),
    (
        SepTr(**SIZES),
        torch.zeros(2, 1, 8, 6),
        ValueError,
        "x: expected input_size (6, 8), (batch, 1, 6, 8), got (8, 6)",
    ),
    (
        SepTr(**SIZES),
        torch.zeros(2, 1, 6, 9),
        ValueError,
        "x: expected input_size (6, 8), (batch, 1, 6, 8), got (6, 9)",
    ),
    (SepTr(**SIZES), torch.zeros(2, 1, 6, 8).double(), TypeError, "x: expected torch.float32, the dtype of"),
    (SepTr(**SIZES), torch.zeros(2, 1, 6, 8).int(), TypeError, "x: expected torch.float32, the dtype of"),
    (SepTr(**SIZES).double(), torch.zeros(2, 1, 6, 8), TypeError, "x: expected torch.float64, the dtype of"),
    (SepTr(**SIZES), torch.zeros(2, 1, 6, 8, device="meta"), TypeError, "x: expected a tensor on cpu, where"),
    (half_built(), torch.zeros(2, 1, 6, 8), TypeError, "one dtype and device, got torch.float16 on cpu, torch.float32"),
    (
        moved(),
        torch.zeros(2, 1, 6, 8),
        TypeError,
        "parameters: expected one dtype and device, got torch.float32 on cpu",
    ),
]


@pytest.mark.parametrize(("model", "x", "kind", "message"), INPUTS, ids=lambda value: str(value)[:48].split("(\n")[0])
def test_input(model: nn.Module, x: Any, kind: type[Exception], message: str) -> None:
    with FlopCounterMode(display=False) as counter, pytest.raises(kind, match=re.escape(message)):
        model(x)
    assert counter.get_total_flops() == 0


def test_integers_are_refused_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"x: expected torch\.float32"):
        SepTr(**SIZES)(torch.zeros(2, 1, 6, 8, dtype=torch.int64))


BLOCK: dict[str, Any] = {"channels": 8, "input_size": (6, 8), "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}
CLASS_TOKENS = [
    (torch.zeros(8), ValueError, "cls_token: expected (1 or batch, 1, 1, 8) for a batch of 3, got (8,)"),
    (
        torch.zeros(2, 1, 1, 8),
        ValueError,
        "cls_token: expected (1 or batch, 1, 1, 8) for a batch of 3, got (2, 1, 1, 8)",
    ),
    (
        torch.zeros(3, 1, 1, 4),
        ValueError,
        "cls_token: expected (1 or batch, 1, 1, 8) for a batch of 3, got (3, 1, 1, 4)",
    ),
    (torch.zeros(3, 1, 1, 8).double(), TypeError, "cls_token: expected torch.float32, the dtype of the parameters"),
    (torch.zeros(3, 1, 1, 8, device="meta"), TypeError, "cls_token: expected a tensor on cpu"),
]


@pytest.mark.parametrize(("cls_token", "kind", "message"), CLASS_TOKENS, ids=lambda value: str(value)[:40])
def test_block_class_token(cls_token: torch.Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        SepTrBlock(**BLOCK)(torch.zeros(3, 8, 6, 8), cls_token)


def test_block_input() -> None:
    with pytest.raises(ValueError, match=re.escape("x: expected 8 channels, (batch, 8, 6, 8), got 1")):
        SepTrBlock(**BLOCK)(torch.zeros(3, 1, 6, 8), torch.zeros(1, 1, 1, 8))
    with pytest.raises(ValueError, match="formulation: expected one name or 2, got 4"):
        SepTrBlock(**BLOCK, formulation=["direct"] * 4)


def test_passes_name_their_arguments() -> None:
    transformer = SepTrBlock(**BLOCK).transformer_h
    weights = fold(transformer, "merged", torch.float32)
    grid, cls_token, positions = torch.zeros(2, 6, 4, 8), torch.zeros(2, 8), torch.zeros(7, 8)
    for arguments, message in (
        ((grid, cls_token, positions, weights, "depth"), "axis: expected one of height, width, got 'depth'"),
        (
            (grid, cls_token, positions, weights, "width"),
            "pos_embedding: expected 5 positions for sequences of 4",
        ),
        ((grid[0], cls_token, positions, weights, "height"), "grid: expected (batch, height, width, dim), got"),
        ((grid, cls_token[0], positions, weights, "height"), "cls_token: expected (2, 8), got (8,)"),
        ((grid, cls_token, positions[:, :4], weights, "height"), "pos_embedding: expected width 8, got 4"),
    ):
        *tensors, axis = arguments
        with pytest.raises(ValueError, match=re.escape(message)):
            dispatch.axis_pass(*tensors, Settings(axis))


def test_checkpoint_of_another_size_is_refused() -> None:
    state = SepTr(**{**SIZES, "input_size": (6, 9)}).state_dict()
    with pytest.raises(RuntimeError, match=r"transformer\.0\.pos_embedding_w"):
        SepTr(**SIZES).load_state_dict(state)


@pytest.mark.parametrize("of", ["numpy", "tensor"])
def test_numbers_are_numbers(of: str) -> None:
    """Integers of NumPy and of PyTorch, as `labels.max() + 1` gives them; what is kept is Python's own."""
    make = np.int64 if of == "numpy" else torch.tensor
    sizes = {"channels": 1, "num_classes": 5, "depth": 1, "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}
    model = SepTr(**{name: make(size) for name, size in sizes.items()}, input_size=(make(4), make(6)))
    found = constructor_arguments(model)
    assert json.loads(json.dumps(found)) == {**found, **sizes, "input_size": [4, 6]}
    assert model(torch.zeros(1, 1, 4, 6)).shape == (1, 5)
    for wrong in (make(0), make(-1), make(2) == 2, 2.0, True, None):
        with pytest.raises(ValueError, match="depth: expected a positive int"):
            SepTr(depth=wrong)


def test_features_alone() -> None:
    model = SepTr(input_size=(4, 6), num_classes=0, depth=1, heads=2, mlp_dim=8, dim_head=4, dim=8, return_cls=True)
    features, cls_token = model(torch.zeros(2, 1, 4, 6))
    assert features.shape == (2, 8)
    assert torch.equal(features, cls_token)
    assert model.plan().num_classes == 0
