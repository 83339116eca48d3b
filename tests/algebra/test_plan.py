"""The plan's counts against what PyTorch counts, and the table that shows them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring.counting import saved_bytes
from benchmarks.suite.shapes import IN_USE, SMALL
from septr_fast import SepTr, reference
from septr_fast.__main__ import main
from septr_fast.algebra.plan import TransformerShape, choose

FORMULATIONS = [None, "direct", "merged", "low-rank", "class-only"]
MOST_WORK = {"ten seconds, 128x1024": 0.54}
"""Over 1025 tokens the products of the attention, which merging leaves as they are, outweigh the projections."""
CONFIGS = [pytest.param(config, id=name) for name, config in SMALL.items()]


def count(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=lambda name: name or "planned")
@pytest.mark.parametrize("config", CONFIGS)
def test_flops_are_those_counted(config: dict[str, Any], formulation: str | None) -> None:
    expected, model = reference.SepTr(**config), SepTr(**config, formulation=formulation)
    size = model.transformer[0].input_size
    x = torch.randn(3, config.get("channels", 1), *size)
    plan = model.plan()
    assert count(expected, x) == plan.reference_flops(batch=3)
    assert count(model, x) == plan.flops(batch=3)
    with torch.no_grad():
        model(x)
        assert count(model, x) == plan.flops(batch=3, folded=True)


@pytest.mark.parametrize("name", IN_USE)
def test_models_in_use_run_with_less_than_half_the_work(name: str) -> None:
    with torch.device("meta"):
        plan = SepTr(**IN_USE[name]).plan()
    assert plan.flops() < MOST_WORK.get(name, 0.5) * plan.reference_flops()
    assert plan.saved_bytes() < 0.75 * plan.reference_saved_bytes()


def test_default_model() -> None:
    with torch.device("meta"):
        model = SepTr()
    plan = model.plan()
    assert [step.formulation for step in plan.steps] == ["low-rank", *["merged"] * 4, "class-only"]
    assert plan.reference_flops() / 1e9 == pytest.approx(351.1, abs=0.1)
    assert 157e9 < plan.flops(folded=True) < plan.flops() <= 0.46 * plan.reference_flops()
    assert len(model.state_dict()) == 77
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_869_411


def test_saved_bytes_are_those_counted() -> None:
    config = {"input_size": (48, 64), "depth": 2}
    plan = SepTr(**config).plan()
    x = torch.randn(2, 1, 48, 64)
    assert saved_bytes(reference.SepTr(**config), x) / 2 == pytest.approx(plan.reference_saved_bytes(), rel=0.02)
    folding = saved_bytes(SepTr(**config), x[:0])
    assert (saved_bytes(SepTr(**config), x) - folding) / 2 == pytest.approx(plan.saved_bytes(), rel=0.02)


def test_choice_follows_the_work() -> None:
    def chosen(dim_head: int, **options: Any) -> str:
        sizes = {"axis": "width", "rows": 8, "length": 128, "dim": 256, "heads": 5, "mlp_dim": 256}
        return choose(TransformerShape(**sizes, dim_head=dim_head, **options))

    assert chosen(256) == "merged"
    assert chosen(32) == "direct"
    assert chosen(256, channels=1) == "low-rank"
    assert chosen(256, channels=256) == "merged"
    assert chosen(256, last=True) == "class-only"


def test_formulation_for_each_transformer() -> None:
    names = ["merged", "direct", None, "merged"]
    model = SepTr(**SMALL["square"], formulation=names)
    assert [step.formulation for step in model.plan().steps] == ["merged", "direct", "direct", "merged"]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--input-size", "128"]) == 0
    shown = capsys.readouterr().out
    assert "351.13 GFLOP as written, 159.43 as run (45.4%)" in shown
    assert shown.count("merged") == 4
    assert "low-rank" in shown
    assert "class-only" in shown


def status(arguments: list[str]) -> object:
    """The exit status, whether the parser of arguments ends the program or the command returns it."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


def test_command_line_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["plan", "--depth", "0"], "depth: expected a positive int, got 0"),
        (["plan", "--input-size", "1", "2", "3"], "--input-size: expected one int or two, got 3"),
        (["plan", "--down-sample-input", "500"], "leaves nothing"),
        ([], "required: command"),
    ):
        assert status(arguments) == 2
        assert message in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "septr_fast", "plan", "--input-size", "8", "12", "--depth", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "block 0, width" in done.stdout
