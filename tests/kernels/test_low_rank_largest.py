"""A low-rank pass whose coefficients and tables' gradients are more than 2³¹ values: its last programs' places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.low_rank import ScoreTables, coefficients, score_arguments, token_factors
from septr_fast.kernels.low_rank_backward import coefficients_backward
from trust.far import far_parts

HEADS, LENGTH = 128, 4096
TOKENS = 1 + LENGTH
META = torch.device("meta")
NO_SCORES = ("query_ptr", "slope_ptr", "table_ptr", "cls_table_ptr", "bias_ptr")
PROBABILITY = 1 / TOKENS
DELTA = PROBABILITY * (2 * LENGTH + 1)
"""A key's gradient is 1 by its own column and, of the grid, 1 by the column of pixels."""


@pytest.fixture(autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter alone runs a single program of a launch")


@pytest.fixture(scope="module")
def tables() -> ScoreTables:
    """Tables without data."""
    shapes = {
        "gram": (1, 1),
        "cross": (TOKENS, 1),
        "square": (TOKENS,),
        "pixel_pixel": (1, HEADS),
        "position_pixel": (TOKENS, HEADS, 1),
        "pixel_bias": (HEADS,),
        "pixel_position": (1, HEADS * TOKENS),
        "position_position": (TOKENS, HEADS, TOKENS),
        "position_bias": (HEADS * TOKENS,),
    }
    return ScoreTables(**{name: torch.empty(shape, device=META) for name, shape in shapes.items()})


@pytest.fixture(scope="module")
def launches(tables: ScoreTables) -> dict[str, launch.Launch]:
    """The launches for the grid tokens of one sequence, by name; tensors without data."""
    factors = token_factors(torch.empty(1, 1, LENGTH, 1, device=META), tables)
    with launch.record(launch.UNKNOWN) as recorded:
        body, front, statistics = coefficients(factors, tables, torch.float32)
        coefficients_backward(body, front, factors, statistics, tables)
    return {one.name: one for one in recorded if one.arguments["first"] == 1}


def run_last(described: launch.Launch, **filled: float) -> dict[str, Tensor]:
    """Run the last program that has a sequence; the packed tensors, zero but for those `filled`.

    Operands are ones in expanded views, but what makes scores is zero: attention is the same to all tokens.
    """
    arguments = dict(described.arguments)
    packed: dict[str, Tensor] = {}
    for name, tensor in described.arguments.items():
        strides = f"{name.removesuffix('_ptr')}_strides"
        if isinstance(tensor, Tensor) and strides in arguments:
            arguments[name] = torch.full((1,), 0.0 if name in NO_SCORES else 1.0)
            arguments[strides] = (0,) * tensor.dim()
        elif isinstance(tensor, Tensor):
            packed[name] = far_parts.zeros(tuple(tensor.shape), torch.float32)
    for name, value in filled.items():
        packed[name].fill_(value)
    last = described.programs // described.config.tiles["PARTS"] - 1
    with far_parts.only(last):
        launch.run(replace(described, programs=1, arguments=arguments | packed), torch.device("cpu"))
    return packed


def test_coefficients(launches: dict[str, launch.Launch]) -> None:
    found = run_last(launches["low_rank_fwd"])
    assert found["rows_ptr"].numel() > 2**31
    row = found["rows_ptr"][-1]
    own = row[(HEADS - 1) * LENGTH : HEADS * LENGTH]
    torch.testing.assert_close(own, torch.full((LENGTH,), PROBABILITY))
    of_class, of_pixels = row[HEADS * TOKENS - 1], row[HEADS * (TOKENS + 1) - 1]
    torch.testing.assert_close(torch.stack([of_class, of_pixels]), torch.tensor([PROBABILITY, LENGTH * PROBABILITY]))
    assert row.count_nonzero() == LENGTH + 2
    assert found["total_ptr"][0, -1, -1] == TOKENS


def test_gradients_of_the_class_key(launches: dict[str, launch.Launch]) -> None:
    found = run_last(launches["low_rank_bwd_class_key"], total_ptr=TOKENS)
    assert found["table_parts_ptr"].numel() > 2**31
    of_table, delta = found["table_parts_ptr"][0, -1, -1], found["delta_ptr"][0, -1, -1]
    torch.testing.assert_close(delta, torch.tensor(DELTA))
    torch.testing.assert_close(of_table[0], torch.tensor(PROBABILITY * (1 - DELTA)))


def test_gradients_of_the_grid_keys(launches: dict[str, launch.Launch]) -> None:
    found = run_last(launches["low_rank_bwd"], total_ptr=TOKENS, delta_ptr=1)
    of_table = found["table_parts_ptr"][0, -1, -1]
    torch.testing.assert_close(of_table[-1], torch.tensor(PROBABILITY))


def test_slopes_of_channels_far_apart_are_copied(tables: ScoreTables) -> None:
    far = torch.empty_strided((3, HEADS * TOKENS), (2**30, 1), device=META)
    pixels, cross, circuits = (torch.empty(*shape, device=META) for shape in ((1, 1, LENGTH, 3), (TOKENS, 3), (3, 3)))
    of_pixels = {"pixel_pixel": far[:, : 3 * HEADS], "pixel_bias": far[0, : 3 * HEADS], "pixel_position": far}
    position_pixel = torch.empty(TOKENS, HEADS, 3, device=META)
    wide = replace(tables, gram=circuits, cross=cross, position_pixel=position_pixel, **of_pixels)
    assert score_arguments(token_factors(pixels, wide), wide)["slope_strides"] == (HEADS * TOKENS, TOKENS, 1)
