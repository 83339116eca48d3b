"""The scans of machine code for products that run by themselves: what they find, and what they leave alone."""

from __future__ import annotations

import pytest
from support.kernels.machine_code import numbered

from septr_fast.tuning.assembly.running_products import Found, scan

WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;"
KERNEL = f"""
LDC R1, c[0x0][0x28] ;
CS2R R24, SRZ ;
LDSM.16.M88.4 R4, [R2] ;
.L_x_0:
BAR.SYNC.DEFER_BLOCKING 0x0 ;
WARPGROUP.ARRIVE ;
HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR8], R24 ;
R2UR UR4, R12 ;
HGMMA.64x16x16.F32.BF16 R24, gdesc[UR12], R24, gsb0 ;
IMAD.WIDE R40, R41, 0x2, R42 ;
{WAIT}
F2FP.BF16.F32.PACK_AB R8, R25, R24 ;
BAR.SYNC.DEFER_BLOCKING 0x0 ;
STS.128 [R2], R8 ;
@!P0 BRA `(.L_x_0) ;
LDSM.16.M88.4 R4, [R2] ;
EXIT ;
.L_x_1:
BRA `(.L_x_1);
"""
"""As compiled: a product of eight registers, its left operand in four, added up in a loop."""


def scanned(text: str) -> Found:
    """What is found in lines that are given addresses, which stand for labels where these are gone to."""
    lines: list[str] = []
    for line in filter(None, text.splitlines()):
        if line.startswith(".L"):
            text = text.replace(f"`({line[:-1]})", f"{16 * len(lines):#x}")
        else:
            lines.append(line)
    code = [line for line in filter(None, text.splitlines()) if not line.startswith(".L")]
    return scan(numbered(code))


def test_nothing_is_found_in_what_waits() -> None:
    assert scanned(KERNEL) == Found()


BESIDE = "IMAD.WIDE R40, R41, 0x2, R42 ;"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("MOV R24, R3 ;", id="the first of the result written"),
        pytest.param("IMAD.WIDE R30, R41, 0x2, R42 ;", id="the last of the result written as one of a pair"),
        pytest.param("@P1 IADD3 R7, P2, R3, R2, RZ ;", id="an operand written where a predicate says so"),
        pytest.param("LDG.E.128 R4, desc[UR60][R10.64] ;", id="an operand loaded"),
        pytest.param("FADD R50, R31, R3 ;", id="the result read"),
        pytest.param("IMAD.WIDE.U32 R124, R3, UR15, R23 ;", id="the result read as one of a pair"),
        pytest.param("SHFL.BFLY PT, R5, R60, 0x1, 0x1f ;", id="an operand written behind a predicate"),
        pytest.param("STG.E.128 desc[UR60][R10.64], R28 ;", id="the result stored"),
        pytest.param("HGMMA.64x16x16.F32.BF16 R48, R28, gdesc[UR8], R48, gsb0 ;", id="the result multiplied"),
        pytest.param("HGMMA.64x16x16.F32.BF16 R48, gdesc[UR8], R24, gsb0 ;", id="the result added to another"),
    ],
)
def test_registers_of_a_running_product(line: str) -> None:
    assert scanned(KERNEL.replace(BESIDE, line)).touched == [line]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("LDS.64 R22, [R9] ;", id="beside the result"),
        pytest.param("IADD3 R32, R4, R5, RZ ;", id="an operand read"),
        pytest.param("IMAD.WIDE.U32 R124, R23, UR15, RZ ;", id="a factor beside the result"),
        pytest.param(
            "LDGSTS.E.BYPASS.128 [R7], desc[UR14][R22.64], !P0 ;", id="an address of a copy beside the result"
        ),
        pytest.param("ISETP.GE.AND P0, PT, R3, RZ, PT ;", id="a comparison"),
        pytest.param("UMOV UR24, 0x40000040 ;", id="another kind of register"),
        pytest.param("HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0 ;", id="one product more"),
        pytest.param("HGMMA.64x16x16.F32.BF16 R48, R4, gdesc[UR8], RZ, !UPT, gsb0 ;", id="another product"),
    ],
)
def test_what_a_running_product_leaves_to_others(line: str) -> None:
    assert scanned(KERNEL.replace(BESIDE, line)).touched == []


def test_a_wait_that_is_missing() -> None:
    found = scanned(KERNEL.replace(WAIT, "NOP ;"))
    assert found.touched == ["F2FP.BF16.F32.PACK_AB R8, R25, R24 ;", "LDSM.16.M88.4 R4, [R2] ;"]
    assert found.stores == ["STS.128 [R2], R8 ;"]


def test_a_wait_for_all_but_the_last() -> None:
    """What is waited for is the older of two groups, on both ways into the loop."""
    second = "HGMMA.64x16x16.F32.BF16 R48, gdesc[UR8], RZ, !UPT, gsb0 ;"
    text = KERNEL.replace(BESIDE, second).replace(WAIT, WAIT.replace("0x0", "0x1"))
    assert scanned(text).touched == []
    assert scanned(text.replace("PACK_AB R8, R25, R24", "PACK_AB R8, R49, R48")).touched == [
        "F2FP.BF16.F32.PACK_AB R8, R49, R48 ;"
    ]


def test_stores_without_a_barrier_behind_the_wait() -> None:
    barrier = "BAR.SYNC.DEFER_BLOCKING 0x0 ;\nSTS"
    assert scanned(KERNEL.replace(barrier, "STS")).stores == ["STS.128 [R2], R8 ;"]
    copy = "LDGSTS.E.BYPASS.128 [R11+0x10000], desc[UR16][R182.64], !P0 ;"
    assert scanned(KERNEL.replace(BESIDE, copy)).stores == [copy]


def test_what_comes_round_a_loop() -> None:
    """At its beginning a product of the last round may still be running."""
    text = KERNEL.replace("LDSM.16.M88.4 R4, [R2] ;\n.L_x_0:", ".L_x_0:\nLDSM.16.M88.4 R4, [R2] ;")
    assert scanned(text).touched == []
    late = text.replace(f"{WAIT}\nF2FP.BF16.F32.PACK_AB R8, R25, R24 ;\n", "")
    assert "LDSM.16.M88.4 R4, [R2] ;" in scanned(late).touched


def test_kernels_without_such_products() -> None:
    assert scanned("HMMA.16816.F32.BF16 R4, R8, R12, R4 ;\nSTS [R2], R4 ;\nEXIT ;") == Found()
    assert scan("") == Found()


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(ValueError, match="no place to go to: BRA"):
        scanned("BRA 0x70 ;")
    with pytest.raises(ValueError, match="no size of a product"):
        scanned("HGMMA.SP R24, R4, gdesc[UR8], R24 ;")
