"""The tracer, the guard bands and the poison find planted faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.kernels.poison import guarded, poisoned_empty
from support.kernels.tracing import trace_accesses

triton = pytest.importorskip("triton")
tl = triton.language


@pytest.fixture(autouse=True, scope="module")
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


@triton.jit
def copy_kernel(
    x_ptr, out_ptr, columns, load_end, store_end, stride_x, stride_out, STEP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + offs, mask=offs < load_end, other=0.0)
    tl.store(out_ptr + row * STEP * stride_out + offs, x, mask=offs < store_end)


@triton.jit
def rewrite_kernel(out_ptr):
    tl.store(out_ptr + tl.program_id(0), 1.0)
    tl.store(out_ptr + tl.program_id(0), 2.0)


def copy(
    x: torch.Tensor, out: torch.Tensor, *, load_end: int | None = None, store_end: int | None = None, step: int = 1
) -> None:
    rows, columns = x.shape
    copy_kernel[(rows,)](
        x,
        out,
        columns,
        load_end=load_end or columns,
        store_end=store_end or columns,
        stride_x=x.stride(0),
        stride_out=out.stride(0),
        STEP=step,
        BLOCK=16,
    )


@pytest.mark.parametrize("bounds", ["elements", "storage"])
def test_a_right_kernel_is_clean_and_its_bytes_are_counted(bounds: str) -> None:
    x, out = torch.randn(3, 10), torch.empty(3, 12, dtype=torch.float16)[:, :10]
    with trace_accesses(bounds) as trace:
        copy(x, out)
        copy(x[:1].expand(3, 10), out)
    trace.assert_clean()
    assert torch.equal(out, x[:1].half().expand(3, 10))
    plain, expanded = trace.launches
    assert plain.kernel == "copy_kernel"
    assert plain.loads.total_bytes == plain.loads.unique_bytes == 120
    assert plain.stores.total_bytes == plain.stores.unique_bytes == 60
    assert (expanded.loads.total_bytes, expanded.loads.unique_bytes) == (120, 40)


def test_a_trace_without_a_launch_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no kernel"), trace_accesses() as trace:
        trace.assert_clean()


@pytest.mark.parametrize("bounds", ["elements", "storage"])
@pytest.mark.parametrize("side", ["load", "store"])
def test_accesses_out_of_bounds_are_found_and_left_out(side: str, bounds: str) -> None:
    with trace_accesses(bounds) as trace:
        copy(torch.randn(2, 10), torch.empty(2, 10), **{f"{side}_end": 11})
    with pytest.raises(AssertionError, match=f"copy_kernel: {side} of 1 values out of bounds in program 1"):
        trace.assert_clean()


@pytest.mark.parametrize("side", ["load", "store"])
def test_gaps_of_a_view_are_out_of_bounds(side: str) -> None:
    x, out = torch.randn(2, 16)[:, :10], torch.zeros(2, 16)
    with trace_accesses() as trace:
        copy(x, out[:, :10], **{f"{side}_end": 11})
    with pytest.raises(AssertionError, match=rf"{side} of 1 values out of bounds in program 0"):
        trace.assert_clean()
    assert out[:, 10:].eq(0).all()


def test_a_pointer_stays_in_its_own_argument() -> None:
    packed = torch.randn(2, 20)
    with trace_accesses() as trace:
        copy(packed[:, :10], packed[:, 10:], load_end=11)
    with pytest.raises(AssertionError, match="load of 1 values out of bounds"):
        trace.assert_clean()


def test_write_conflicts_are_found() -> None:
    with trace_accesses() as trace:
        copy(torch.randn(3, 10), torch.empty(3, 10), step=0)
    assert len(trace.launches[0].write_conflicts) == 10
    with pytest.raises(AssertionError, match="10 addresses written by two programs"):
        trace.assert_clean()


def test_a_program_may_write_twice() -> None:
    with trace_accesses() as trace:
        rewrite_kernel[(3,)](torch.empty(3))
    trace.assert_clean()
    assert (trace.launches[0].stores.total_bytes, trace.launches[0].stores.unique_bytes) == (24, 12)


def test_races_are_found() -> None:
    x = torch.randn(3, 10)
    with trace_accesses() as trace:
        copy(x, x)
        copy(x[:2], x[1:])
    assert not trace.launches[0].problems()
    assert len(trace.launches[1].races) == 10


def write_all(out: torch.Tensor) -> None:
    out.fill_(1)


def leave_one(out: torch.Tensor) -> None:
    out.fill_(1)[-1, -1] = float("nan")


def overrun(offset: int) -> Callable[[torch.Tensor], None]:
    def write(out: torch.Tensor) -> None:
        out.fill_(1).as_strided((1,), (1,), out.storage_offset() + offset).fill_(1)

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strides", [None, (16, 1), (1, 7), (40, 3)], ids=str)
def test_guard_bands(dtype: torch.dtype, strides: tuple[int, int] | None) -> None:
    def verdict(write: Callable[[torch.Tensor], None]) -> None:
        output = guarded((3, 10), dtype, strides)
        assert output.tensor.stride() == (strides or (10, 1))
        write(output.tensor)
        output.check()

    verdict(write_all)
    with pytest.raises(AssertionError, match="1 of 30 values are not written"):
        verdict(leave_one)
    last = sum(size * stride for size, stride in zip((2, 9), strides or (10, 1), strict=True))
    for outside in (-1, last + 1, *([10] if strides == (16, 1) else []), *([1] if strides == (40, 3) else [])):
        with pytest.raises(AssertionError, match=f"{dtype.itemsize} bytes outside"):
            verdict(overrun(outside))


def test_a_kernel_that_overruns_touches_the_guard() -> None:
    output = guarded((2, 10))
    copy(torch.randn(2, 16)[:, :10], output.tensor, store_end=11)
    with pytest.raises(AssertionError, match="4 bytes outside"):
        output.check()


def test_empty_tensors_are_poisoned_for_a_while() -> None:
    like = torch.zeros(4)
    with poisoned_empty():
        made = [
            torch.empty(4),
            torch.empty((2, 2), dtype=torch.bfloat16),
            torch.empty_like(like),
            torch.empty_strided((2, 2), (1, 2)),
            like.new_empty(4),
            like.new_empty_strided((2, 2), (1, 2)),
        ]
        assert torch.empty(3, dtype=torch.int32).dtype == torch.int32
        assert torch.empty(3, device="meta").is_meta
    assert all(x.isnan().all() for x in made)
    assert "poisoned" not in torch.empty.__qualname__ + like.new_empty.__qualname__


def test_poisoned_outputs_show_what_is_not_written() -> None:
    with poisoned_empty():
        out = torch.empty(2, 10)
        copy(torch.randn(2, 10), out, store_end=9)
    assert out[:, :9].isfinite().all()
    assert out[:, 9].isnan().all()
