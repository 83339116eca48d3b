"""The quick interpreter computes what the slow one does, to the bit, and refuses what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

OPERATORS = ("add", "sub", "mul", "truediv", "and", "lt", "ne")
ROOT = Path(__file__).resolve().parents[2]
POINTERS = ("forth", "back", "in front", "compared")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int32, torch.int64)
NUMBERS = (3, -2, 1 << 40, -0.0, 2.5)
SLOW = """
from unittest import mock
from support.kernels import interpreter, quick_interpreter
with mock.patch.object(quick_interpreter, "install"):
    interpreter.install()
import json
import os
from helpers.test_quick_interpreter import every_result
print(json.dumps(every_result()))
"""


@pytest.fixture(autouse=True, scope="module")
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


@triton.jit
def applied(left, right, OPERATION: tl.constexpr):
    if OPERATION == "add":
        value = left + right
    elif OPERATION == "sub":
        value = left - right
    elif OPERATION == "mul":
        value = left * right
    elif OPERATION == "truediv":
        value = left / right
    elif OPERATION == "and":
        value = left & right
    elif OPERATION == "lt":
        value = left < right
    else:
        value = left != right
    return value


@triton.jit
def operator_kernel(left_ptr, right_ptr, out_ptr, OPERATION: tl.constexpr, NUMBER: tl.constexpr, FIRST: tl.constexpr):
    columns = tl.arange(0, 8)
    for turn in range(2):
        rows = turn * 4 + tl.arange(0, 4)
        left = tl.load(left_ptr + rows)[:, None]
        if NUMBER is None:
            value = applied(left, tl.load(right_ptr + turn * 8 + columns)[None, :], OPERATION)
        elif FIRST:
            value = applied(NUMBER, left, OPERATION)
        else:
            value = applied(left, NUMBER, OPERATION)
        one = applied(tl.load(left_ptr + turn), tl.load(right_ptr + turn), OPERATION)
        tl.store(out_ptr + rows[:, None] * 8 + columns[None, :], value.to(tl.float64))
        tl.store(out_ptr + 64 + turn, one.to(tl.float64))


@triton.jit
def pointer_kernel(left_ptr, right_ptr, out_ptr, OPERATION: tl.constexpr):
    offs, pointers = tl.arange(0, 4), left_ptr + 8 + tl.arange(0, 4)
    for turn in range(2):
        if OPERATION == "forth":
            moved, one = pointers + turn, left_ptr + turn
        elif OPERATION == "back":
            moved, one = pointers - turn * offs, left_ptr + 8 - turn
        elif OPERATION == "in front":
            moved, one = turn * offs + pointers, turn + left_ptr
        else:
            moved, one = pointers[:, None] - offs[None, :] > pointers[:, None], left_ptr < pointers
        if OPERATION == "compared":
            tl.store(out_ptr + turn * 16 + offs[:, None] * 4 + offs[None, :], moved.to(tl.float64))
        else:
            tl.store(out_ptr + turn * 8 + offs, tl.load(moved).to(tl.float64))
            tl.store(out_ptr + 64 + turn, tl.load(one).to(tl.float64))


def result(operation: str, left: torch.dtype, right: torch.dtype | None, number: object, first: bool) -> object:
    """What the kernel writes, twice 32 values and two, in words; of an error its kind."""
    torch.manual_seed(1)
    one, other = ((torch.randn(16) * 3 + 4).to(dtype) for dtype in (left, left if right is None else right))
    out = torch.zeros(66, dtype=torch.float64)
    try:
        if operation in POINTERS:
            pointer_kernel[(1,)](one, other, out, OPERATION=operation)
        else:
            operator_kernel[(1,)](one, other, out, OPERATION=operation, NUMBER=number, FIRST=first)
    except triton.runtime.errors.InterpreterError as error:
        return str(error)[:40]
    return out.numpy().tobytes().hex()


def every_result() -> dict[str, object]:
    """Of every operator with every two types, and with every type and number on both sides; of moved pointers."""
    two = ((one, other, None, False) for one, other in itertools.product(DTYPES, DTYPES))
    with_number = ((one, None, number, first) for one in DTYPES for number in NUMBERS for first in (False, True))
    cases = [(operation, *case) for case in (*two, *with_number) for operation in OPERATORS]
    cases += [(operation, dtype, None, None, False) for dtype in DTYPES for operation in POINTERS]
    return {str(case): result(*case) for case in cases}


def test_operators_do_as_the_slow_ones() -> None:
    found_by = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT)))}
    run = subprocess.run([sys.executable, "-c", SLOW], env=found_by, capture_output=True, text=True, check=True)
    expected, found = json.loads(run.stdout), every_result()
    assert len(set(expected.values())) > 150
    assert {case: value for case, value in found.items() if value != expected[case]} == {}
