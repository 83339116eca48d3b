"""Offsets of more than 32 bits are right in every kernel, and one that is not is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from septr_fast.kernels import launch
from trust.far import far_parts
from trust.mutants import planting
from trust.outcome import ShortForm
from trust.parts import addressing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


def test_addressing(short_form: ShortForm) -> None:
    outcome = short_form(addressing)
    assert outcome.wrong == []
    assert outcome.tried >= 200
    tried = outcome.figures["launches by kernel"]
    assert len(tried) >= 40
    assert {f"{name}, parts" for name in far_parts.KERNELS} < set(tried)


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


@pytest.fixture(scope="module")
def moments() -> list[addressing.Moment]:
    """The launches of the short form."""
    torch.manual_seed(0)
    return addressing.moments(rows=1, heads=1)


NARROW_PARTS = [
    ("normalization.normalize_kernel", "offs_m"),
    ("mlp_backward.mlp_bwd_kernel", "offs_m"),
    ("attention_backward.axis_attention_bwd_query_kernel", "pid"),
    ("class_attention_kernels.class_attention_fwd_kernel", "tl.program_id(0)"),
    ("low_rank_kernels.low_rank_fwd_kernel", "(offs_q - first)"),
    ("low_rank_kernels.low_rank_fwd_kernel", "(part * size + step)"),
    ("low_rank_backward_kernels.low_rank_bwd_class_key_kernel", "(part * tokens + offs_q)"),
    ("low_rank_backward_kernels.low_rank_bwd_class_key_kernel", "((first + block) * PARTS + part)"),
    ("low_rank_backward_kernels.low_rank_bwd_kernel", "(part * tokens + offs_q)"),
    ("low_rank_backward_kernels.low_rank_bwd_kernel", "((first + block) * PARTS + part)"),
]


@pytest.mark.parametrize(("function", "offset"), NARROW_PARTS, ids=[" ".join(fault) for fault in NARROW_PARTS])
def test_narrow_offsets_of_parts_are_found(function: str, offset: str, moments: list[addressing.Moment]) -> None:
    dropped = f"{function}: cast dropped: {offset}.to(tl.int64) -> "
    (mutant,) = (mutant for mutant in planting.everything() if mutant.name.startswith(dropped))
    launches = [one for one in moments if one.described.kernel.__name__ == mutant.function]
    assert launches
    for one in launches:
        assert far_parts.fault(one.described, one.tensors) is None
        with planting.applied(mutant):
            assert "int32 overflow in mul" in str(far_parts.fault(one.described, one.tensors)), one.name


def test_every_packed_buffer_is_stretched(moments: list[addressing.Moment]) -> None:
    """Of what no stride can spread only the numbers of valid tokens, one for each sample, are left."""
    left = set()
    for one in moments:
        arguments = {**one.described.arguments, **one.described.config.tiles}
        packed = {name for name in one.tensors if f"{name.removesuffix('_ptr')}_strides" not in arguments}
        for stretch in far_parts.KERNELS.get(one.described.name, ()):
            buffers = stretch(arguments).buffers
            packed -= {name for name, parts in buffers.items() if parts.use != "aside"}
        left |= packed - ({"grad_cls_v_ptr"} if arguments.get("SHARED") else set())
    assert left == {"valid_ptr"}
