"""The training script on several processes: the gradients of one, and runs that go on with another number of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor

pytest.importorskip("accelerate")
pytest.importorskip("safetensors")
pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

from support.runs import training_runs
from support.runs.training_runs import CLIPS, HERTZ, STEPS, arguments, run, weights, write_tones

ROOT = Path(__file__).resolve().parents[2]
STILL = ["--dropout", 0]
"""Dropout is drawn by each process, all else by clip."""


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def alone(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process."""
    out = tmp_path_factory.mktemp("alone")
    assert run(arguments(tones, out, *STILL)) == 0
    return out


def history(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["models"]["septr"]["history"]
    return found


def check_same_run(out: Path, expected: Path) -> None:
    """Compare losses, counts and final weights of two runs, up to rounding."""
    for entry, wanted in zip(history(out), history(expected), strict=True):
        assert entry["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-4)
        assert entry["validation_loss"] == pytest.approx(wanted["validation_loss"], rel=1e-4)
    found, wanted_weights = weights(out), weights(expected)
    assert found.keys() == wanted_weights.keys()
    for name in found:
        assert relative_error(found[name], wanted_weights[name]) < 1e-3, name
    test = json.loads((out / "results.json").read_text())["models"]["septr"]["test"]
    assert test["clips"] == len(HERTZ) * CLIPS["test"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradients_of_one(parallel: str, tmp_path: Path) -> None:
    """Also cut into pieces, with clips of weight 0, more of them in one process than in the other."""
    for processes in (1, 2):
        assert training_runs.call(write_gradients, processes, parallel, tmp_path / str(processes)) == [0] * processes
    for name, limit in (("float32", 1e-6), ("float64", 1e-12)):
        expected, found = (torch.load(tmp_path / f"{processes}-{name}.pt", weights_only=True) for processes in (1, 2))
        assert expected.keys() == found.keys()
        for key in expected:
            assert relative_error(found[key], expected[key]) < limit, (name, key)


def write_gradients(parallel: str, path: Path) -> int:
    """Write every gradient of one batch, of which this process has its share."""
    from training.command import start_processes
    from training.learning.learner import Learner, Share
    from training.learning.objective import Objective
    from training.options import parse

    command = arguments(Path("unread"), path, "--parallel", parallel, "--accumulate", 2, *STILL)
    options = parse(command)
    accelerator = start_processes(options)
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        learner = Learner(
            "septr", options, options.model_arguments(3), ("a", "b", "c"), Objective("softmax"), accelerator
        )
        assert learner.is_sharded == (parallel == "fsdp2" and accelerator.num_processes == 2)
        generator = torch.Generator().manual_seed(0)
        spectrograms = torch.randn(8, 1, 8, 8, generator=generator)
        targets = torch.rand(8, 3, generator=generator).softmax(dim=1)
        present = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        size = 8 // accelerator.num_processes
        own = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        learner.gradients(Share(spectrograms[own], targets[own], present[own], present.sum()))
        gradients = {name: whole(parameter.grad) for name, parameter in learner.module.named_parameters()}
        if accelerator.is_main_process:
            torch.save(gradients, f"{path}-{str(dtype).removeprefix('torch.')}.pt")
        accelerator.wait_for_everyone()
        del learner
        accelerator.free_memory()
    accelerator.end_training()
    return 0


def whole(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    full: Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return full


@pytest.mark.parametrize(("before", "after", "parallel"), [(2, 1, "fsdp2"), (1, 2, "ddp")])
def test_goes_on_with_another_number_of_processes(
    before: int, after: int, parallel: str, alone: Path, tones: Path, tmp_path: Path
) -> None:
    command = arguments(tones, tmp_path, "--parallel", parallel, *STILL)
    assert run(command, ("terminate", 2 * STEPS + 2), before) == 128 + 15
    assert not (tmp_path / "results.json").exists()
    assert run(command, None, after) == 0
    check_same_run(tmp_path, alone)


def test_torchrun(alone: Path, tones: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(ROOT / "examples" / "train.py"), *arguments(tones, tmp_path, "--parallel", "fsdp2", *STILL)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"^epoch 1/4: (\d+) of \1 clips, \d+ s; loss \d", done.stderr, re.MULTILINE)
    assert len(ends) == 1, "both processes show one line"
    check_same_run(tmp_path, alone)
