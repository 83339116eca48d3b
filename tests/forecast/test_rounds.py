"""How often instructions are executed: loops of machine code, and those of the kernel that it was made of."""

from __future__ import annotations

import pytest
from support.kernels.machine_code import numbered

from septr_fast.forecast import rounds
from septr_fast.forecast.rounds import Loop
from septr_fast.tuning.assembly.running_products import instructions

NESTED = """
  tt.func public @kernel(%x_ptr: !tt.ptr<f32>, %length: i32, %rows: i32) {
    %c0_i32 = arith.constant 0 : i32
    %c7_i32 = arith.constant 7 : i32
    %pid = tt.get_program_id x : i32
    %0 = arith.muli %rows, %c7_i32 : i32
    %1 = arith.addi %0, %pid : i32
    %2:2 = scf.for %i = %c0_i32 to %length step %c64_i32 iter_args(%a = %x, %b = %y) -> (f32, f32)  : i32 {
      scf.for %c = %c0_i32 to %c2_i32 step %c1_i32  : i32 {
      }
      scf.for %c = %c0_i32 to %1 step %c1_i32  : i32 {
      }
    }
    scf.for %i = %c0_i32 to %unknown step %c1_i32  : i32 {
    }
"""


ARGUMENTS = {"length": 300, "rows": 3}


def spans(loops: list[Loop]) -> list[object]:
    return [((min(loop.body), max(loop.body)), spans(loop.inside)) for loop in loops]


def test_written_loops_have_the_rounds_of_their_bounds() -> None:
    outer, unknown = rounds.written_loops(NESTED, ARGUMENTS)
    assert outer.rounds == 5
    assert [loop.rounds for loop in outer.inside] == [2, 21]
    assert unknown.rounds == 0


def test_jumps_back_close_loops() -> None:
    found = rounds.machine_loops(
        instructions(
            numbered(["MOV R1, R2;", "MOV R3, R1;", "FADD R4, R4, R3;", "@P0 BRA 0x20;", "@P1 BRA 0x10;", "BRA 0x50;"])
        )
    )
    assert spans(found) == [((0x10, 0x40), [((0x20, 0x30), [])])]


def test_a_wait_behind_the_end_belongs_to_its_loop() -> None:
    """The jump into it and the one back are none of a loop, and the wait itself goes round unseen."""
    lines = ["MOV R1, R2;", "@!P0 BRA 0x50;", "FADD R4, R4, R3;", "@P1 BRA 0x10;", "EXIT;"]
    lines += ["SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R6;", "@!P0 BRA 0x50;", "BRA 0x20;"]
    (loop,) = rounds.machine_loops(instructions(numbered(lines)))
    assert sorted(loop.body) == [0x10, 0x20, 0x30, 0x50, 0x60, 0x70]
    assert loop.inside == []


def test_asking_for_tensor_memory_is_no_loop() -> None:
    lines = ["MOV R1, R2;", "UTCATOMSWS.FIND_AND_SET.ALIGN UP0, UR5, UR5;", "@!P1 BRA 0x0;", "EXIT;"]
    assert rounds.machine_loops(instructions(numbered(lines))) == []
    with_products = [*lines[:2], "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UP1;", *lines[2:]]
    assert len(rounds.machine_loops(instructions(numbered(with_products)))) == 1


def test_what_no_way_leads_to_is_no_loop() -> None:
    lines = ["MOV R1, R2;", "EXIT;", "FADD R4, R4, R3;", "@P1 BRA 0x20;", "BRA 0x40;"]
    assert rounds.machine_loops(instructions(numbered(lines))) == []


def test_a_call_that_leaves_a_loop() -> None:
    lines = ["MOV R1, R2;", "FADD R4, R4, R3;", "@!P0 CALL.REL.NOINC 0x40;", "BRA 0x10;", "FMUL R4, R4, R3;"]
    lines += ["@P1 BRA 0x0;", "EXIT;"]
    assert spans(rounds.machine_loops(instructions(numbered(lines)))) == [((0x0, 0x50), [((0x10, 0x30), [])])]


def test_loops_beside_one_another_stand_in_order() -> None:
    lines = ["FADD R4, R4, R3;", "@P1 BRA 0x0;", "FMUL R4, R4, R3;", "@UP0 BRA.U 0x20;", "EXIT;"]
    assert spans(rounds.machine_loops(instructions(numbered(lines)))) == [((0x0, 0x10), []), ((0x20, 0x30), [])]


def test_an_unrolled_loop_is_not_looked_for() -> None:
    text = numbered(["MOV R1, R2;", "MOV R3, R1;", "FADD R4, R4, R3;", "@P0 BRA 0x20;", "@P1 BRA 0x10;", "EXIT;"])
    told = {one.address: count for one, count in rounds.executed(text, NESTED.split("    scf.for %i")[0], ARGUMENTS)}
    assert told == {0x0: 1, 0x10: 5, 0x20: 5 * 21, 0x30: 5 * 21, 0x40: 5, 0x50: 1}


@pytest.mark.parametrize(("ahead", "skipped"), [(0, 0), (2, 1), (4, 2), (3, 0)])
def test_copies_begun_before_a_loop_are_none_of_its_last_rounds(ahead: int, skipped: int) -> None:
    """Of 300 rounds with two copies in each; three before it are those of no rounds."""
    copy = "LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64];"
    lines = ["MOV R1, R2;", *ahead * [copy], "FADD R4, R4, R3;", copy, copy]
    lines += [f"@P1 BRA {0x10 * (1 + ahead):#x};", copy, "EXIT;"]
    ttgir = "    scf.for %i = %c0_i32 to %c300_i32 step %c1_i32  : i32 {"
    told = rounds.executed(numbered(lines), ttgir, {})
    inside = [count for one, count in told if one.name == "LDGSTS" and count > 1]
    assert inside == 2 * [300 - skipped]
    assert {count for one, count in told if one.name == "FADD"} == {300}


@pytest.mark.parametrize(
    ("found", "written", "problem"),
    [
        pytest.param([Loop(), Loop()], [Loop(3)], "expected 2 loops", id="more in machine code"),
        pytest.param([], [Loop(rounds.LONGEST_UNROLLED + 1)], "expected 0 loops", id="a long one is gone"),
        pytest.param([Loop()], [Loop(0)], "rounds are known", id="rounds not known"),
        pytest.param([Loop(inside=[Loop()])], [Loop(3)], "expected 1 loops", id="more inside"),
    ],
)
def test_loops_that_do_not_fit_are_refused(found: list[Loop], written: list[Loop], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        rounds.matched(found, written)
