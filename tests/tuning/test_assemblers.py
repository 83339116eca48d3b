"""The assembler's version, and what has been reported wrong with it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from triton.backends.nvidia import compiler

from septr_fast.commands import info
from septr_fast.tuning.assembly import assemblers


@pytest.mark.parametrize(
    ("arch", "version", "count"),
    [
        (90, "12.8.93", 2),
        (90, "13.0.88", 2),
        (90, "13.1.80", 1),
        (90, "13.3", 0),
        (90, "13.4.12", 0),
        (89, "12.8.93", 0),
    ],
)
def test_what_is_known(arch: int, version: str, count: int) -> None:
    assert len(assemblers.faults(arch, version)) == count


def test_the_assembler_here() -> None:
    version = assemblers.version(90)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    first, *others = assemblers.described(90)
    assert first == f"ptxas {version}"
    if assemblers.faults(90, version):
        assert "triton#11781; not from CUDA 13.3 on" in others[0]
        assert "TRITON_PTXAS_PATH" in others[-1]
    assert assemblers.described(80) == [f"ptxas {assemblers.version(80)}"]


def test_info_names_it() -> None:
    first, *faults = info.assembler(90)
    assert first == f"  assembler        ptxas {assemblers.version(90)}"
    assert [line.strip() for line in faults] == assemblers.described(90)[1:]
    assert info.assembler(None) == []


def test_no_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(arch: int) -> SimpleNamespace:
        raise RuntimeError("Cannot find ptxas\nat all")

    monkeypatch.setattr(compiler, "get_ptxas", missing)
    assert assemblers.described(90) == ["no ptxas: Cannot find ptxas"]
