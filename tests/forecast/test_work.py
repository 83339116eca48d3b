"""What instructions ask of a multiprocessor's units."""

from __future__ import annotations

import pytest
from support.kernels.machine_code import numbered

from septr_fast.forecast import work
from septr_fast.forecast.devices import DEVICES
from septr_fast.tuning.assembly.running_products import instructions


def counted(*lines: str, warps: int = 4) -> work.Work:
    code = instructions(numbered(f"{line};" for line in lines))
    return work.summed([(one, 1.0) for one in code], warps, resident=2)


def test_products_and_what_they_read() -> None:
    found = counted(
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", "HGMMA.64x64x16.F32.BF16 R24, R8, gdesc[UR4], R24"
    )
    assert found.products == 2 * 64 * (128 + 64) * 16
    assert found.shared_by_products == (128 + 64) * 16 * 2 / 128 + 64 * 16 * 2 / 128
    assert found.old == 0
    older = counted("HMMA.16816.F32.BF16 R4, R8, R12, R4", warps=1)
    assert older.products == 2 * 16 * 8 * 16
    assert older.old == older.products


@pytest.mark.parametrize(
    ("line", "unit", "cycles"),
    [
        ("MUFU.EX2 R4, R4", "special functions", 4 * 8 / 4),
        ("FFMA R4, R4, R5, R6", "float32", 4 / 4),
        ("IADD3 R4, R4, R5, RZ", "whole numbers", 4 * 2 / 4),
        ("F2FP.BF16.F32.PACK_AB R4, R5, R4", "whole numbers", 4 * 2 / 4),
        ("LDS.128 R4, [R8]", "shared memory", 4 * 4),
        ("LDSM.16.M88.4 R4, [R8]", "shared memory", 4 * 4),
        ("SHFL.BFLY PT, R4, R5, 0x1, 0x1f", "shared memory", 4),
        ("NANOSLEEP R4", "issue", 4 / 4),
    ],
)
def test_units(line: str, unit: str, cycles: float) -> None:
    assert counted(line).cycles(DEVICES["h100"], 20.0, 0)[unit] == cycles


def test_bytes_to_and_from_the_cache() -> None:
    found = counted(
        "LDG.E.128 R4, desc[UR4][R8.64]", "STG.E.U16 desc[UR4][R8.64], R4", "LDGSTS.E.BYPASS.128 [R4], desc[UR4][R8.64]"
    )
    assert found.moved == 4 * 32 * (16 + 2)
    assert found.copied == 4 * 32 * 16
    assert found.shared == 4 * 4


def test_old_products_are_slower_on_hopper() -> None:
    found = counted("HMMA.16816.F32 R4, R8, R12, R4")
    h100, a100 = DEVICES["h100"], DEVICES["a100"]
    assert found.cycles(h100, 20.0, 1e6)["tensor cores"] == pytest.approx(1e6 / (4096 * 0.73 * 0.62))
    assert found.cycles(a100, 20.0, 1e6)["tensor cores"] == pytest.approx(1e6 / (2048 * 0.87))


def test_a_product_of_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="no size of a product"):
        counted("HMMA.7 R4, R8, R12, R4")
