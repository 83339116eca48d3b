"""Tuning: only what is right may win, the fastest does, and what was rehearsed is never used."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.launch import Choice, Config

from septr_fast.__main__ import main
from septr_fast.passes.triton import tuned
from septr_fast.tuning import tune
from septr_fast.tuning.candidates import neighbours
from septr_fast.tuning.tuner import Tuner
from septr_fast.tuning.workloads import Workload, workloads

CPU = torch.device("cpu")
SIZES = {"input_size": (6, 4), "heads": 2, "dim_head": 8, "dim": 8, "mlp_dim": 8}
SHIPPED = launch.lookup("mlp_fwd", launch.UNKNOWN, 4, 256)
NAMES = ("mlp_fwd", "chunk")


@dataclass
class Planted:
    """Stands for a kernel and for a workload that launches it; `faults` says what a configuration does."""

    faults: Callable[[Config], str | None]
    cost: Callable[[Config], float]
    spent: float = 0.0
    name: str = "planted"
    draws: Any = field(default_factory=itertools.count)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return self.launched

    def launched(self, out: Tensor, num_warps: int, num_stages: int, enable_fp_fusion: bool, **tiles: int) -> None:
        config = Config(tiles, num_warps, num_stages)
        fault = self.faults(config)
        if fault == "raises":
            raise RuntimeError("planted\nand more")
        out.copy_(torch.linspace(-1, 1, out.numel()))
        if fault == "wrong":
            out[0] += 1e-3
        if fault == "not a number":
            out[0] = math.nan
        if fault == "random":
            out[2] += 1e-9 * next(self.draws)
        self.spent += self.cost(config)

    def run(self) -> dict[str, Tensor]:
        out = torch.empty(5)
        chunk = launch.choose("chunk", CPU, torch.float32, 1)
        self.spent += 1.0 / chunk.tiles["MIB"]
        config = launch.choose("mlp_fwd", CPU, torch.float32, 256)
        launch.launch("mlp_fwd", self, 1, config, {"out": out}, device=CPU)
        return {"out": out}

    def exact(self) -> dict[str, Tensor]:
        return {"out": torch.linspace(-1, 1, 5).double()}

    def measure(self, function: Callable[[], Any], more_than_kernels: bool) -> float:
        before = self.spent
        function()
        return self.spent - before


def tuner(planted: Any, **options: Any) -> Tuner:
    return Tuner([planted], [planted], NAMES, CPU, planted.measure, **options)


def tuned_by(planted: Planted, **options: Any) -> Any:
    started = tuner(planted, **options)
    assert started.choices() == [Choice("mlp_fwd", 4, 256), Choice("chunk", 4, 1)]
    return started.tune(started.choices()[0], math.inf)


def test_the_fastest_is_reached_in_steps() -> None:
    found = tuned_by(Planted(lambda config: None, lambda config: abs(config.tiles["BLOCK_H"] - 128) + config.warps))
    assert found.best == replace(SHIPPED, tiles={**SHIPPED.tiles, "BLOCK_H": 128}, warps=2)
    assert found.seconds == 2
    assert found.shipped == SHIPPED
    assert not found.refused
    row = found.row()
    assert (row["kernel"], row["itemsize"], row["width"]) == ("mlp_fwd", 4, 256)
    assert Config(row["tiles"], row["warps"], row["stages"]) == found.best


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong", "is off by 1.00e-03"),
        ("not a number", "differs from run to run"),
        ("random", "differs from run to run"),
        ("raises", "RuntimeError: planted"),
    ],
)
def test_what_is_wrong_never_wins(fault: str, reason: str) -> None:
    """Tiles of 64 tokens would be the fastest."""
    planted = Planted(
        lambda config: fault if config.tiles["BLOCK_M"] == 64 else None,
        lambda config: 1.0 if config.tiles["BLOCK_M"] == 64 else 2.0,
    )
    found = tuned_by(planted)
    assert found.best == SHIPPED
    assert len(found.refused) == 1
    assert all(reason in text and "\n" not in text for text in found.refused.values())


def test_a_little_faster_is_not_enough() -> None:
    assert tuned_by(Planted(lambda config: None, lambda config: 1 + 1e-4 * config.warps)).best == SHIPPED


def test_a_faulty_shipped_configuration_is_not_tuned() -> None:
    with pytest.raises(ArithmeticError, match="planted: out is not finite"):
        tuner(Planted(lambda config: "not a number", lambda config: 1.0))


def test_chunks_are_measured_on_whole_passes() -> None:
    started = tuner(Planted(lambda config: None, lambda config: 0.0))
    assert started.tune(started.choices()[1], math.inf).best.tiles["MIB"] == 1024


def test_limits_are_kept() -> None:
    planted = Planted(lambda config: None, lambda config: 1 / config.tiles["BLOCK_H"])
    assert tuned_by(planted, most=3).tried == 3
    started = tuner(planted)
    assert started.tune(started.choices()[0], time.monotonic() - 1).tried == 0


def test_neighbours_differ_in_one_respect() -> None:
    config = Config({"BLOCK_Q": 16, "PARTS": 8}, 4, 1)
    found = [(*one.tiles.values(), one.warps, one.stages) for one in neighbours(config)]
    assert found == [(32, 8, 4, 1), (8, 8, 4, 1), (16, 16, 4, 1), (16, 8, 8, 1), (16, 8, 2, 1), (16, 8, 4, 2)]
    assert [one.tiles for one in neighbours(Config({"FUSED": 0}, 1, 1))] == [{"FUSED": 1}]
    assert {one.stages for one in neighbours(config, stages=(1,))} == {1}


def test_sums_stay_within_the_registers() -> None:
    config = Config({"BLOCK_M": 128, "BLOCK_H": 64}, 8, 2)
    found = {(one.tiles["BLOCK_M"], one.warps) for one in neighbours(config, 256)}
    assert found == {(64, 8), (128, 8), (128, 16)}


DRAWN = {
    f"{one.formulation}, {one.shape.axis}": one
    for one in workloads(SIZES, [torch.float32], batch=2, device=CPU)
}  # fmt: skip


def test_workloads_reach_every_formulation() -> None:
    assert {name.split(",")[0] for name in DRAWN} == {"direct", "merged", "low-rank", "class-only"}
    mixed = [one.name for one in workloads(SIZES, [torch.bfloat16], batch=2, device=CPU)]
    assert len(set(mixed)) == len(mixed)
    assert sum("bfloat16, residual stream float32" in name for name in mixed) == 4


@pytest.mark.parametrize("workload", DRAWN.values(), ids=DRAWN)
def test_exact_results_are_those_of_the_pass(workload: Workload) -> None:
    found, exact = workload.run("torch"), workload.exact()
    assert found.keys() == exact.keys()
    assert len(found) >= 8
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert relative_error(value, exact[name]) < 1e-4, name


def test_a_rehearsal_is_marked_and_refused(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")
    file = tmp_path / "tuned.json"
    sizes: dict[str, Any] = {"dtypes": ("float32",), "head_dims": (16,), "lengths": (2,), "heads": 1, "batch": 1}
    said: list[str] = []
    found, about = tune.tune(device, kernels=("class_key_bwd",), most=1, report=said.append, **sizes)
    tune.store(file, found, about)
    assert "class_key_bwd, 4 bytes, 16 features" in tune.summary(found, about)
    assert "class_key_bwd: 8 warps, 1 stages: " in "\n".join(said)
    content = json.loads(file.read_text())
    assert content["interpreted"] is True
    assert [row["kernel"] for row in [*content["rows"], *content["as_shipped"]]] == ["class_key_bwd"]
    with pytest.raises(ValueError, match="the interpreter's"):
        tuned.read(file, "cpu", None)


@pytest.mark.parametrize(
    ("interpret", "options", "reason"),
    [
        ("1", [], "TRITON_INTERPRET=1 is set"),
        ("0", ["--device", "cpu"], "measured on a CUDA device, not on cpu"),
    ],
)
def test_tuning_says_why_it_cannot(
    interpret: str,
    options: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    assert main(["tune", *options]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert tune.why_not(torch.device("cuda")) == "Triton kernels need an NVIDIA GPU and its driver"
