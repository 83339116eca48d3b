"""Offsets of more than 32 bits are right in every kernel, and one that is not is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from septr_fast.kernels import launch
from trust import addressing, far_parts, planting
from trust.outcome import silent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


def test_addressing() -> None:
    outcome = addressing.run(full=False, progress=silent)
    assert outcome.wrong == []
    assert outcome.tried >= 60
    assert len(outcome.figures["launches by kernel"]) >= 14


@triton.jit
def narrow_kernel(x_ptr, out_ptr, x_strides, out_strides, BLOCK: tl.constexpr):
    """Copies rows, multiplying 32-bit numbers."""
    row, offs = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_strides[0] + offs * x_strides[1])
    tl.store(out_ptr + row.to(tl.int64) * out_strides[0] + offs * out_strides[1], x)


@triton.jit
def wrapping_kernel(x_ptr, out_ptr, x_strides, out_strides, BLOCK: tl.constexpr):
    """Copies rows, cutting offsets to 32 bits."""
    row, offs = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + (row * x_strides[0]).to(tl.int32) + offs * x_strides[1])
    tl.store(out_ptr + row * out_strides[0] + offs * out_strides[1], x)


def moment(kernel: object) -> addressing.Moment:
    x, out = torch.randn(3, 4), torch.full((3, 4), float("nan"))
    arguments = {"x_ptr": x, "out_ptr": out, "x_strides": x.stride(), "out_strides": out.stride()}
    described = launch.Launch("copy", kernel, 3, arguments, launch.Config({"BLOCK": 4}))
    return addressing.Moment("copy", described, {"x_ptr": x, "out_ptr": out})


FAULTS = [(narrow_kernel, "int32 overflow in mul"), (wrapping_kernel, "out of bounds")]


@pytest.mark.parametrize(("kernel", "found"), FAULTS, ids=["product", "cast"])
def test_narrow_offsets_are_found(kernel: object, found: str) -> None:
    one = moment(kernel)
    expected = addressing.replayed(one, one.tensors)[0]
    assert torch.equal(expected["out_ptr"], one.tensors["x_ptr"])
    assert found in str(addressing.fault(one, expected, "x_ptr", 0))
    assert addressing.fault(one, expected, "out_ptr", 0) is None


def test_other_values_are_found() -> None:
    one = moment(narrow_kernel)
    expected = addressing.replayed(one, one.tensors)[0]
    changed = replace(one, tensors={**one.tensors, "x_ptr": one.tensors["x_ptr"] + 1})
    assert "other values in x_ptr, out_ptr" in str(addressing.fault(changed, expected, "out_ptr", 0))


def test_narrow_offsets_of_parts_are_found() -> None:
    dropped = "normalization.normalize_kernel: cast dropped: offs_m.to(tl.int64) -> offs_m"
    mutant = next(mutant for mutant in planting.everything() if mutant.name == dropped)
    (found,) = (one for one in addressing.moments(rows=1, heads=1) if one.name == "normalize")
    assert far_parts.fault(found.described, found.tensors) is None
    with planting.applied(mutant):
        assert "int32 overflow in mul" in str(far_parts.fault(found.described, found.tensors))
