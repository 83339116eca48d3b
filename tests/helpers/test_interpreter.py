"""The interpreter's shims are right, and still needed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from support.kernels.interpreter import cut_to_tf32, permuted_programs, product_in_turn

triton = pytest.importorskip("triton")
tl = triton.language


@pytest.fixture(autouse=True, scope="module")
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


@triton.jit
def convert_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < size, other=0.0)
    tl.store(out_ptr + offs, x.to(out_ptr.dtype.element_ty), mask=offs < size)


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    product = tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs), input_precision=PRECISION)
    tl.store(out_ptr + offs, product)


@triton.jit
def poison_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs, mask=offs < size))


@triton.jit
def scalar_other_kernel(x_ptr, out_ptr, size):
    tl.store(out_ptr, tl.load(x_ptr, mask=size > 1, other=0.0))
    tl.store(out_ptr + 1, tl.load(x_ptr, mask=size > 1))


@triton.jit
def overflow_kernel(out_ptr, stride, OPERATION: tl.constexpr):
    row = tl.program_id(0) + 3
    if OPERATION == "multiply":
        offset = row * stride
    elif OPERATION == "add":
        offset = stride + stride
    elif OPERATION == "subtract":
        offset = -2 - stride
    else:
        offset = row.to(tl.int64) * stride
    tl.store(out_ptr, offset)


@triton.jit
def bfloat16_kernel(x_ptr, out_ptr, OPERATION: tl.constexpr):
    offs = tl.arange(0, 16)
    x = tl.load(x_ptr + offs)
    if OPERATION == "add":
        x = x + x
    elif OPERATION == "scale":
        x = x * 2.0
    elif OPERATION == "negate":
        x = -x
    elif OPERATION == "exp":
        x = tl.exp(x)
    elif OPERATION == "abs":
        x = tl.abs(x)
    elif OPERATION == "compare":
        x = tl.where(x > x, x, x)
    elif OPERATION == "sum":
        x = x + tl.sum(x, axis=0)
    elif OPERATION == "fma":
        x = tl.fma(x, x, x)
    tl.store(out_ptr + offs, x)


@triton.jit
def moved_kernel(x_ptr, out_ptr):
    offs = tl.arange(0, 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    x = tl.load(x_ptr + offs, mask=offs < 15, other=1.5)
    x = tl.where(offs > 0, tl.trans(x), tl.zeros((4, 4), tl.bfloat16))
    x = tl.reshape(tl.broadcast_to(tl.reshape(x, (1, 16)), (2, 16)), (32,))
    tl.store(out_ptr + tl.arange(0, 32), x)


def launch_convert(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=dtype)
    convert_kernel[(1,)](x, out, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))
    return out


def test_float32_becomes_bfloat16_as_in_torch() -> None:
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    x = torch.from_numpy((high[:, None] + low).reshape(-1).view(np.float32))
    result, expected = launch_convert(x, torch.bfloat16), x.bfloat16()
    assert torch.equal(result.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(result.view(torch.int16)[numbers], expected.view(torch.int16)[numbers])


def test_bfloat16_becomes_float32_exactly() -> None:
    x = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)
    assert torch.equal(launch_convert(x, torch.float32).view(torch.int32), x.float().view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int32], ids=str)
def test_other_types_to_bfloat16_and_back(dtype: torch.dtype) -> None:
    x = (torch.randn(512) * 1000).to(dtype)
    assert torch.equal(launch_convert(x, torch.bfloat16), x.float().bfloat16())
    there = x.float().bfloat16()
    assert torch.equal(launch_convert(there, dtype), there.to(dtype))


def test_bfloat16_is_moved() -> None:
    x = torch.randn(16).bfloat16()
    out = torch.empty(32, dtype=torch.bfloat16)
    moved_kernel[(1,)](x, out)
    expected = torch.cat([x[:15], torch.tensor([1.5]).bfloat16()]).view(4, 4).T.reshape(-1).clone()
    expected[0] = 0
    assert torch.equal(out, expected.repeat(2))


@pytest.mark.parametrize("operation", ["add", "scale", "negate", "exp", "abs", "compare", "sum", "fma"])
def test_bfloat16_arithmetic_is_refused(operation: str) -> None:
    x = torch.randn(16).bfloat16()
    with pytest.raises(Exception, match=r"bfloat16|bf16"):
        bfloat16_kernel[(1,)](x, torch.empty_like(x), OPERATION=operation)
    values = x.float()
    bfloat16_kernel[(1,)](values, torch.empty_like(values), OPERATION=operation)


def launch_dot(a: torch.Tensor, b: torch.Tensor, precision: str) -> torch.Tensor:
    out = torch.empty(a.shape)
    dot_kernel[(1,)](a, b, out, PRECISION=precision, BLOCK=a.shape[0])
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_products_accumulate_in_float32(dtype: torch.dtype) -> None:
    a, b = (torch.randn(64, 64).mul(8).to(dtype) for _ in range(2))
    oracle = a.double() @ b.double()
    error = (launch_dot(a, b, "tf32").double() - oracle).abs().max()
    assert error <= 64 * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs()).max()


@pytest.mark.parametrize("left", ["contiguous", "transposed"])
@pytest.mark.parametrize("right", ["contiguous", "transposed"])
@pytest.mark.parametrize("terms", [3, 16, 40])
def test_products_are_summed_in_turn(terms: int, left: str, right: str) -> None:
    """As a GPU does, whatever the processor and wherever the operands lie."""
    a, b = (torch.randn(sizes) for sizes in ((16, terms), (terms, 32)))
    expected = torch.zeros(16, 32)
    for column, row in zip(a.T, b, strict=True):
        expected = expected + column[:, None] * row
    a, b = (x.T.contiguous().T if how == "transposed" else x for x, how in ((a, left), (b, right)))
    assert np.array_equal(product_in_turn(a.numpy(), b.numpy()), expected.numpy())


def test_a_product_and_its_transpose_have_the_same_bits() -> None:
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    transposed = launch_dot(b.T.contiguous(), a.T.contiguous(), "ieee")
    assert torch.equal(launch_dot(a, b, "ieee"), transposed.T)
    assert np.array_equal(launch_dot(a, b, "ieee").numpy(), product_in_turn(a.numpy(), b.numpy()))


def test_tf32_cut() -> None:
    step = 2.0**-10
    values = [1 + step - 2**-23, -(1 + 2 * step - 2**-23), 1 + step, float("inf"), 3 * step]
    assert cut_to_tf32(np.array(values, np.float32)).tolist() == [1, -(1 + step), 1 + step, float("inf"), 3 * step]
    assert np.isnan(cut_to_tf32(np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32))).all()


def test_tf32_products_cut_their_operands() -> None:
    a, b = torch.randn(32, 32), torch.randn(32, 32)
    cut_a, cut_b = (torch.from_numpy(cut_to_tf32(x.numpy())) for x in (a, b))
    assert torch.equal(launch_dot(a, b, "tf32"), launch_dot(cut_a, cut_b, "ieee"))
    assert not torch.equal(launch_dot(a, b, "tf32"), launch_dot(a, b, "ieee"))
    assert torch.equal(launch_dot(a, b, "tf32x3"), launch_dot(a, b, "ieee"))
    oracle = a.double() @ b.double()
    assert 1e-5 < (launch_dot(a, b, "tf32") - oracle).abs().max() < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_undefined_floats_are_poisoned(dtype: torch.dtype) -> None:
    x, out = torch.ones(16, dtype=dtype), torch.zeros(16, dtype=dtype)
    poison_kernel[(1,)](x, out, 5, BLOCK=16)
    assert out[:5].eq(1).all()
    assert out[5:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8], ids=str)
def test_undefined_integers_are_poisoned(dtype: torch.dtype) -> None:
    x, out = torch.ones(16, dtype=dtype), torch.zeros(16, dtype=dtype)
    poison_kernel[(1,)](x, out, 5, BLOCK=16)
    assert out[:5].eq(1).all()
    assert out[5:].gt(50).all()


def test_single_values_keep_an_other_of_zero() -> None:
    x, out = torch.ones(1), torch.ones(2)
    scalar_other_kernel[(1,)](x, out, 1)
    assert out[0] == 0
    assert out[1].isnan()


@pytest.mark.parametrize("operation", ["multiply", "add", "subtract"])
def test_overflow_of_int32_is_an_error(operation: str) -> None:
    out = torch.empty(1, dtype=torch.int64)
    with pytest.raises(Exception, match="int32 overflow"):
        overflow_kernel[(1,)](out, 2**31 - 1, OPERATION=operation)


def test_int64_does_not_overflow() -> None:
    out = torch.empty(1, dtype=torch.int64)
    overflow_kernel[(1,)](out, 2**31 - 1, OPERATION="widen")
    assert out.item() == 3 * (2**31 - 1)


@triton.jit
def loop_kernel(out_ptr, size):
    total = 0
    for i in range(0, size):
        total += i
    tl.store(out_ptr, total)


def test_an_argument_bounds_a_loop() -> None:
    out = torch.empty(1, dtype=torch.int32)
    loop_kernel[(1,)](out, 5)
    assert out.item() == 10


@triton.jit
def order_kernel(out_ptr, clock_ptr):
    time = tl.load(clock_ptr)
    tl.store(out_ptr + 3 * tl.program_id(0) + tl.program_id(1), time)
    tl.store(clock_ptr, time + 1)


def launch_order() -> list[int]:
    out, clock = torch.full((12,), -1), torch.zeros(1, dtype=torch.int64)
    order_kernel[(4, 3)](out, clock)
    return out.tolist()


def test_programs_run_in_another_order_once_each() -> None:
    with permuted_programs(1):
        first, second = launch_order(), launch_order()
    with permuted_programs(1):
        again = launch_order()
    assert sorted(first) == sorted(second) == launch_order() == list(range(12))
    assert first == again
    assert first != second
    assert first != list(range(12))


PREAMBLE = """
import numpy as np, torch, triton, triton.language as tl
@triton.jit
def convert(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load(x_ptr).to(out_ptr.dtype.element_ty))
@triton.jit
def add(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load(x_ptr) + tl.load(x_ptr))
@triton.jit
def dot(a_ptr, out_ptr, PRECISION: tl.constexpr):
    offs = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    a = tl.load(a_ptr + offs)
    tl.store(out_ptr + offs, tl.dot(a, a, input_precision=PRECISION))
@triton.jit
def undefined(x_ptr, out_ptr):
    offs = tl.arange(0, 2)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs, mask=offs < 1))
@triton.jit
def multiply(out_ptr, stride):
    tl.store(out_ptr, (tl.program_id(0) + 2) * stride)
ones = torch.full((16, 16), 1.0)
"""

DEFECTS = {
    "casts to bfloat16 truncate": """
        out = torch.empty(1, dtype=torch.bfloat16)
        convert[(1,)](torch.tensor([1 + 0.75 * 2**-7]), out)
        assert out.item() == 1
    """,
    "bfloat16 adds bit patterns": """
        out = torch.empty(1, dtype=torch.bfloat16)
        add[(1,)](torch.ones(1).bfloat16(), out)
        assert out.item() != 2
    """,
    "bfloat16 products are of bit patterns": """
        out = torch.empty(16, 16)
        dot[(1,)](ones.bfloat16(), out, PRECISION="ieee")
        assert out.min() > 1e6
    """,
    "TF32 is float32": """
        out = torch.empty(16, 16)
        dot[(1,)](ones + 2.0**-20, out, PRECISION="tf32")
        assert (out > 16).all()
    """,
    "undefined values are zeros": """
        out = torch.ones(2)
        undefined[(1,)](torch.ones(2), out)
        assert out[1] == 0
    """,
    "int32 wraps": """
        out = torch.empty(1, dtype=torch.int64)
        np.seterr(all="ignore")
        multiply[(1,)](out, 2**31 - 1)
        assert out.item() == -2
    """,
}


@pytest.fixture(scope="module")
def stock_verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each of `DEFECTS` under the interpreter as it is shipped."""
    body = PREAMBLE
    for name, code in DEFECTS.items():
        body += f"try:\n{textwrap.indent(textwrap.dedent(code), '    ')}\n"
        body += f"    print('{name}', 'as ever', sep=': ')\n"
        body += f"except Exception as error:\n    print('{name}', repr(error), sep=': ')\n"
    script = tmp_path_factory.mktemp("stock") / "stock.py"
    script.write_text(body)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_stock_interpreter_still_needs_its_shim(defect: str, stock_verdicts: dict[str, str]) -> None:
    assert stock_verdicts[defect] == "as ever", "the shim can go, or the check is out of date"
