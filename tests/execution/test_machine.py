"""What executes compiled kernels on a CPU: single instructions against NumPy, and that it finds what must not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.execution import arithmetic
from support.execution.faults import FaultError
from support.execution.instructions import steps
from support.execution.machine import Machine
from support.execution.memory import GlobalMemory
from support.execution.parsing import parse

THREADS = 64
HEAD = """.visible .entry kernel(
    .param .u64 .ptr .global .align 16 kernel_param_0,
    .param .u64 .ptr .global .align 16 kernel_param_1,
    .param .u32 kernel_param_2
)
.reqntid 64
{
    .reg .pred %p<9>;
    mov.u32 %r0, %tid.x;
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b64 %rd2, [kernel_param_1];
    ld.param.b32 %r9, [kernel_param_2];
    shl.b32 %r1, %r0, 2;
    cvt.u64.u32 %rd3, %r1;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
"""
MIRROR = "mov.b32 %r2, 252; sub.s32 %r3, %r2, %r1;"
"""The place in shared memory of the thread that has the same number from the end."""


def run(body: str, given: np.ndarray, size: int = THREADS, number: int = 0, programs: int = 1) -> np.ndarray:
    """What a kernel with this body writes to a tensor of `size` values of four bytes."""
    out = np.zeros(size, np.uint32)
    text = HEAD + body.replace(";", ";\n").replace(":;", ":") + "\n}"
    program = parse(text)
    memory = GlobalMemory([(given.ctypes.data, given.nbytes), (out.ctypes.data, out.nbytes)])
    values = [given.ctypes.data, out.ctypes.data, number]
    Machine(program, steps(program), 1024, memory, values, range(programs)).run()
    return out


def numbers() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**32, THREADS, np.uint32)


THROUGH_SHARED = f"ld.global.b32 %r4, [%rd4]; st.shared.b32 [%r1], %r4; bar.sync 0; {MIRROR} ld.shared.b32 %r5, [%r3]; "


def test_values_go_through_shared_memory() -> None:
    given = numbers()
    assert (run(f"{THROUGH_SHARED} st.global.b32 [%rd5], %r5; ret;", given) == given[::-1]).all()


COPY = "cp.async.ca.shared.global [%r1], [%rd4], 4; cp.async.commit_group; "
LANDED = f"{COPY} cp.async.wait_group 0; "
FAULTS = {
    "another wrote": (THROUGH_SHARED.replace("bar.sync 0;", ""), "reads what another wrote"),
    "another read": (f"{THROUGH_SHARED} st.shared.b32 [%r1], %r5;", "overwrites what another read"),
    "two values at one place": ("mov.b32 %r2, 0; st.shared.b32 [%r2], %r0;", "different values"),
    "a value over another's": (
        f"{MIRROR} st.shared.b32 [%r1], %r1; st.shared.b32 [%r3], %r1;",
        "overwrites what another wrote",
    ),
    "nothing was written": ("ld.shared.b32 %r4, [%r1];", "nothing was written"),
    "beyond shared memory": ("st.shared.b32 [%r1+769], %r0;", "shared memory"),
    "the last value and one": ("st.shared.b32 [%r1+772], %r0;", "out of bounds"),
    "beyond a tensor": ("ld.global.b32 %r4, [%rd4+4];", "global memory out of bounds"),
    "before a tensor": ("ld.global.b32 %r4, [%rd4+-4];", "global memory out of bounds"),
    "between two values": ("ld.global.b32 %r4, [%rd4+2];", "global memory"),
    "a barrier of some": (
        "setp.lt.u32 %p1, %r0, 40; @%p1 bra $IN; bra $OUT; $IN:; bar.sync 0; $OUT:; ret;",
        "without some",
    ),
    "lanes of some": (
        "setp.lt.u32 %p1, %r0, 40; @%p1 shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1;",
        "a warp takes part without",
    ),
    "before its copy has landed": (f"{COPY} ld.shared.b32 %r4, [%r1];", "before its copy has landed"),
    "waited for what was not committed": (
        LANDED.replace("cp.async.commit_group;", "") + "ld.shared.b32 %r4, [%r1];",
        "before its copy has landed",
    ),
    "waited for all but one": (
        COPY + "cp.async.wait_group 1; ld.shared.b32 %r4, [%r1];",
        "before its copy has landed",
    ),
    "a copy to what another reads": (
        f"{THROUGH_SHARED} {COPY}",
        "overwrites what another",
    ),
    "the copy of another": (f"{LANDED} {MIRROR} ld.shared.b32 %r5, [%r3];", "reads what another wrote"),
    "over a copy": (f"{COPY} st.shared.b32 [%r1], %r0;", "before a copy to it has landed"),
    "what was never written": ("add.s32 %r7, %r8, %r0;", "before it is written"),
    "for ever": ("$AGAIN:; bra $AGAIN;", "for ever"),
}


@pytest.mark.parametrize(("body", "what"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(body: str, what: str) -> None:
    with pytest.raises(FaultError, match=what):
        run(body, numbers())


def test_what_is_waited_for_is_there() -> None:
    given = numbers()
    body = f"{LANDED} bar.sync 0; {MIRROR} ld.shared.b32 %r5, [%r3]; st.global.b32 [%rd5], %r5; ret;"
    assert (run(body, given) == given[::-1]).all()


def test_threads_go_their_own_ways_and_meet() -> None:
    """Each adds its number as often as its number says, odd ones once more by another way."""
    body = """mov.b32 %r2, 0; mov.b32 %r3, 0;
    $LOOP:
    setp.ge.u32 %p1, %r3, %r0; @%p1 bra $DONE; add.s32 %r2, %r2, %r0; add.s32 %r3, %r3, 1; bra $LOOP;
    $DONE:
    and.b32 %r4, %r0, 1; setp.eq.b32 %p2, %r4, 0; @%p2 bra $EVEN; add.s32 %r2, %r2, 1000; bra $MEET;
    $EVEN:
    add.s32 %r2, %r2, %r9;
    $MEET:
    st.global.b32 [%rd5], %r2; ret;"""
    thread = np.arange(THREADS)
    assert (run(body, numbers(), number=7) == thread * thread + np.where(thread % 2, 1000, 7)).all()


def test_programs_run_side_by_side() -> None:
    body = """mov.u32 %r2, %ctaid.x; mul.lo.s32 %r3, %r2, 256; cvt.u64.u32 %rd6, %r3; add.s64 %rd7, %rd5, %rd6;
    st.shared.b32 [%r1], %r2; bar.sync 0; mov.b32 %r5, 252; sub.s32 %r6, %r5, %r1; ld.shared.b32 %r7, [%r6];
    st.global.b32 [%rd7], %r7; ret;"""
    assert (run(body, numbers(), 3 * THREADS, programs=3) == np.repeat(np.arange(3), THREADS)).all()


def test_lanes_hand_values_on() -> None:
    given = numbers()
    body = "ld.global.b32 %r4, [%rd4]; shfl.sync.bfly.b32 %r5, %r4, 5, 31, -1; st.global.b32 [%rd5], %r5; ret;"
    assert (run(body, given) == given[np.arange(THREADS) ^ 5]).all()


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_products_of_matrices_from_shared_memory(kind: str) -> None:
    """16 x 16 by 16 x 8, both loaded as kernels load them; the second one row by row, so transposed on the way."""
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[kind]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator).to(dtype) for size in ((16, 16), (16, 8)))
    given = np.zeros(THREADS * 4, np.uint32)
    given[:128] = left.contiguous().view(torch.int32).numpy().reshape(-1).view(np.uint32)
    given[128:192] = right.contiguous().view(torch.int32).numpy().reshape(-1).view(np.uint32)
    body = f"""shl.b32 %r2, %r0, 4; cvt.u64.u32 %rd6, %r2; add.s64 %rd7, %rd1, %rd6;
    ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd7]; st.shared.v4.b32 [%r2], {{%r10, %r11, %r12, %r13}}; bar.sync 0;
    and.b32 %r3, %r0, 31; and.b32 %r4, %r3, 15; shl.b32 %r5, %r4, 5; shr.u32 %r6, %r3, 4; shl.b32 %r7, %r6, 4;
    add.s32 %r8, %r5, %r7; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r8];
    shl.b32 %r14, %r4, 4; ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{%r24, %r25}}, [%r14+512];
    mov.b32 %r30, 0; mov.b32 %r31, 0; mov.b32 %r32, 0; mov.b32 %r33, 0;
    mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32
     {{%r30, %r31, %r32, %r33}}, {{%r20, %r21, %r22, %r23}}, {{%r24, %r25}}, {{%r30, %r31, %r32, %r33}};
    add.s64 %rd8, %rd2, %rd6; st.global.v4.b32 [%rd8], {{%r30, %r31, %r32, %r33}}; ret;"""
    found = run(body.replace("\n     ", " "), given, 4 * THREADS).view(np.float32).reshape(2, 32, 4)
    wanted = (left.double() @ right.double()).numpy()
    lane = np.arange(32)
    for value, (row, column) in enumerate(((0, 0), (0, 1), (8, 0), (8, 1))):
        for warp in found:
            np.testing.assert_allclose(
                warp[:, value], wanted[lane // 4 + row, 2 * (lane % 4) + column], rtol=1e-5, atol=1e-5
            )


def test_an_instruction_that_is_not_known_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"line \d+: brev\.b32 %r2, %r0"):
        run("brev.b32 %r2, %r0;", numbers())


def test_a_kernel_without_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match="reqntid"):
        parse(".visible .entry kernel() { ret; }")


def call(instruction: str, *given: np.ndarray) -> np.ndarray:
    function, kinds = arithmetic.function(tuple(instruction.split(".")))
    padded = [*kinds, *[kinds[-1]] * len(given)]
    with np.errstate(all="ignore"):
        return function(*[x.view(arithmetic.KINDS[kind]) for x, kind in zip(given, padded, strict=False)])


def test_integers_against_python() -> None:
    x, y = numbers().astype(np.int64), np.roll(numbers(), 1).astype(np.int64) >> 20
    narrow, by = x.astype(np.uint32), y.astype(np.uint32)
    signed = narrow.view(np.int32).astype(object)
    assert call("mul.wide.s32", narrow, by).tolist() == [a * int(b) for a, b in zip(signed, y, strict=True)]
    assert call("mul.hi.u32", narrow, narrow).tolist() == [(int(a) * int(a)) >> 32 for a in x]
    assert call("div.s32", narrow, by + np.uint32(1)).tolist() == [
        int(a / b) for a, b in zip(signed.tolist(), (y + 1).tolist(), strict=True)
    ]
    assert call("rem.u32", narrow, by + np.uint32(1)).tolist() == (x % (y + 1)).tolist()
    shift = np.arange(THREADS, dtype=np.uint32)
    assert call("shl.b32", narrow, shift).tolist() == [(int(a) << n) % 2**32 for n, a in enumerate(x)]
    assert call("shr.u32", narrow, shift).tolist() == [int(a) >> n for n, a in enumerate(x)]
    assert call("shr.s32", narrow, shift).tolist() == [int(a) >> n for n, a in enumerate(signed)]
    assert call("bfe.u32", narrow, np.uint32(3), np.uint32(7)).tolist() == ((x >> 3) & 127).tolist()
    assert call("bfe.s32", narrow, np.uint32(0), np.uint32(16)).tolist() == narrow.astype(np.int16).tolist()


def _narrow_floats_against_pytorch(x: torch.Tensor) -> None:
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        given = [x.to(dtype), x.flip(0).to(dtype), (x + 1).to(dtype)]
        wide = [value.double() for value in given]
        bits = [value.view(torch.int16).numpy().view(np.uint16) for value in given]
        one = np.uint16(torch.ones(1, dtype=dtype).view(torch.int16).item())
        for instruction, operands, exact in (
            (f"add.rn.{name}", bits[:2], wide[0] + wide[1]),
            (f"mul.{name}", bits[:2], wide[0] * wide[1]),
            (f"fma.rn.{name}", [bits[0], np.full_like(bits[0], one), bits[1]], wide[0] + wide[1]),
        ):
            expected = exact.to(dtype)
            found = torch.from_numpy(call(instruction, *operands).view(np.int16)).view(dtype)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
            pairs = [value.astype(np.uint32) | (value[::-1].astype(np.uint32) << np.uint32(16)) for value in operands]
            both = call(f"{instruction}x2", *pairs)
            low, high = ((both >> np.uint32(shift)).astype(np.uint16).view(np.int16) for shift in (0, 16))
            for half, wanted in ((low, expected), (high, expected.flip(0))):
                torch.testing.assert_close(torch.from_numpy(half).view(dtype), wanted, rtol=0, atol=0, equal_nan=True)


def test_floats_against_pytorch() -> None:
    x = torch.cat([torch.randn(4096), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, 65520.0, 3.4e38])])
    bits = x.numpy()
    assert (call("cvt.rn.bf16.f32", bits) == x.bfloat16().view(torch.int16).numpy().view(np.uint16)).all()
    assert (call("cvt.rn.f16.f32", bits) == x.half().view(torch.int16).numpy().view(np.uint16)).all()
    pair = call("cvt.rn.bf16x2.f32", bits, bits[::-1])
    assert (pair >> 16 == x.bfloat16().view(torch.int16).numpy().view(np.uint16)).all()
    _narrow_floats_against_pytorch(x)
    exact = x.double() * x.flip(0).double() + 1
    np.testing.assert_allclose(call("fma.rn.f32", bits, bits[::-1], np.float32(1)), exact.float().numpy(), rtol=1e-7)
    assert call("ex2.approx.ftz.f32", np.float32([1e-40]))[0] == 1
    nan = np.float32([np.nan])
    assert [bool(call(f"setp.{how}.f32", nan, nan)[0]) for how in ("lt", "ltu", "ne", "neu", "nan", "num")] == [
        *(False, True, False, True),
        *(True, False),
    ]
