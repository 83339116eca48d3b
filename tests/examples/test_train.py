"""The training script in one process: it learns, and stopped or killed at any moment it ends with the same weights."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

from support.runs.training_runs import CLIPS, HERTZ, STEPS, arguments, run, states, weights, write_tones

from septr_fast.__main__ import main as septr_fast_command
from septr_fast.adopt import checkpoints
from training import options, stopping
from training.data.batches import EvaluationBatches, TrainingBatches
from training.learning.ema import Average
from training.learning.schedule import learning_rate


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def finished(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing befell."""
    out = tmp_path_factory.mktemp("finished")
    assert run(arguments(tones, out), draws=True) == 0
    return out


def results(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: entry[name] for name in entry if "second" not in name} for entry in history]


def test_learns_and_leaves_its_results(finished: Path) -> None:
    content = results(finished)
    test = content["models"]["septr"]["test"]
    assert test["accuracy"] > 0.9
    assert test["clips"] == sum(map(sum, test["confusion"])) == len(HERTZ) * CLIPS["test"]
    assert content["classes"] == sorted(HERTZ)
    assert [entry["epoch"] for entry in content["models"]["septr"]["history"]] == [1, 2, 3, 4]
    assert content["data"]["clips"] == {split: len(HERTZ) * clips for split, clips in CLIPS.items()}
    assert content["data"]["skipped"] == 1
    assert content["data"]["skipped_files"][0]["file"].endswith("broken.wav")
    assert content["options"]["batch"] == 8
    assert content["machine"]["versions"]["torch"] == torch.__version__
    history = content["models"]["septr"]["history"]
    assert content["models"]["septr"]["best_epoch"] == min(history, key=lambda entry: entry["validation_loss"])["epoch"]
    for picture in ("curves.png", "confusion.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")


def test_no_figure_costs_a_run_its_results(tones: Path, tmp_path: Path) -> None:
    """Where a picture should be is a folder."""
    for picture in ("curves.png", "confusion.png"):
        (tmp_path / picture).mkdir()
    assert run([*arguments(tones, tmp_path), "--epochs", "1"]) == 0
    assert results(tmp_path)["models"]["septr"]["test"]["clips"] == len(HERTZ) * CLIPS["test"]


def test_predict_reads_the_checkpoint(finished: Path, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = [tones / "test" / name / "0.wav" for name in sorted(HERTZ)]
    checkpoint = finished / "septr.safetensors"
    assert septr_fast_command(["predict", *map(str, clips), "--checkpoint", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert [file["classes"][0]["name"] for file in found] == sorted(HERTZ)


def test_finished_run_stays_as_it_is(finished: Path, tones: Path) -> None:
    before = (finished / "results.json").stat().st_mtime_ns
    assert run(arguments(tones, finished)) == 0
    assert (finished / "results.json").stat().st_mtime_ns == before


def test_other_options_are_refused_by_name(finished: Path, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.command import main

    assert main(arguments(tones, finished, "--batch", 4, "--seed", 7, "--workers", 1, "--save-every", 5)) == 2
    message = capsys.readouterr().err
    assert "batch: expected 8, got 4; seed: expected 0, got 7:" in message
    assert "workers" not in message


# What befalls the run, its exit status, and epoch and step of the newest state; a run stops behind the next step.
@pytest.mark.parametrize(
    ("fault", "status", "saved"),
    [
        (("kill", 7), -9, (1, 0)),
        (("kill", STEPS + 6), -9, (1, 4)),
        (("kill writing", 3), -9, (1, 0)),
        (("kill renaming", 3), -9, (1, 4)),
        (("kill deleting", 3), -9, (1, 4)),
        (("raise", STEPS + 5), 1, (1, 4)),
        (("terminate", STEPS + 2), 128 + 15, (1, 3)),
        (("interrupt", STEPS - 1), 128 + 2, (0, STEPS)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and isinstance(value[0], str) else None,
)
def test_goes_on_to_the_same_weights(
    fault: tuple[str, int], status: int, saved: tuple[int, int], finished: Path, tones: Path, tmp_path: Path
) -> None:
    command = arguments(tones, tmp_path)
    assert run(command, fault) == status
    epoch, step = saved
    assert states(tmp_path)[-1].name.startswith(f"state-{epoch:06}-{step:08}")
    assert run(command) == 0
    expected, found = weights(finished), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    expected, found = (checkpoints.load(out / "septr.safetensors").model.state_dict() for out in (finished, tmp_path))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ours, theirs = results(tmp_path)["models"]["septr"], results(finished)["models"]["septr"]
    assert without_times(ours["history"]) == without_times(theirs["history"])
    assert ours["test"] == theirs["test"]
    assert sorted(path.name for path in tmp_path.glob("state-*")) == [states(finished)[-1].name]


def test_compares_with_the_reference(tones: Path, tmp_path: Path) -> None:
    command = arguments(tones, tmp_path, "--compare", "--epochs", 2, "--dropout", 0, "--precision", "no")
    assert run(command, ("terminate", 2 * STEPS)) == 128 + 15
    assert run(command, draws=True) == 0
    content = results(tmp_path)
    ours, theirs = (content["models"][name] for name in ("septr", "reference"))
    for entry, expected in zip(ours["history"], theirs["history"], strict=True):
        assert entry["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert entry["seconds"] != expected["seconds"]
    assert content["comparison"]["steps"] == 2 * STEPS
    assert ours["training_seconds"] == pytest.approx(content["comparison"]["step_seconds"]["septr"]["sum"])
    times = content["comparison"]["reference_over_septr"]
    assert 0 < times["least"] <= times["lower_quartile"] <= times["median"] <= times["upper_quartile"] <= times["most"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "curves.png",
        "confusion-septr.png",
        "confusion-reference.png",
    }


def test_every_option_of_the_machine_at_once(tones: Path, tmp_path: Path) -> None:
    """Mixed precision, pieces of a batch, recomputation, a reading process, smoothing, no average, and patience."""
    more = ["--precision", "bf16", "--accumulate", 2, "--grad-checkpointing", "--workers", 1, "--ema", 0]
    more += ["--label-smoothing", 0.1, "--patience", 1, "--epochs", 6, "--mixup", 0]
    assert run(arguments(tones, tmp_path, *more)) == 0
    history = results(tmp_path)["models"]["septr"]["history"]
    best = results(tmp_path)["models"]["septr"]["best_epoch"]
    assert history[best - 1]["validation_accuracy"] > 0.9
    assert len(history) == min(best + 1, 6)


def test_clips_that_vanish_are_named_and_counted(tones: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tones"
    write_tones(copy)
    out = tmp_path / "run"
    command = arguments(copy, out, "--epochs", 2)
    assert run(command, ("terminate", 3)) == 128 + 15
    gone = [copy / "train" / "low" / "3.wav", copy / "test" / "high" / "1.wav"]
    for path in gone:
        path.unlink()
    assert run(command) == 0
    assert results(out)["data"]["unreadable_later"] == sorted(map(str, gone))
    assert results(out)["models"]["septr"]["test"]["clips"] == len(HERTZ) * CLIPS["test"] - 1


def test_defaults_are_options() -> None:
    assert options.parse([]) == options.Options()
    assert options.Options().models == ("septr",)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "0"], "batch: expected at least 1, got 0"),
        (["--ema", "1"], "ema: expected at least 0 and below 1, got 1.0"),
        (["--learning-rate", "nan"], "learning_rate: expected a positive number, got nan"),
        (["--seconds", "-1"], "seconds: expected a positive number, got -1.0"),
        (["--frames", "20000"], "frames: expected at most one per sample, 16000, got 20000"),
        (["--compare", "--grad-checkpointing"], "grad_checkpointing: expected model septr alone"),
    ],
)
def test_wrong_options_are_named(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(more)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--accumulate", 3], "batch: expected a multiple of 3, 1 processes times 3 pieces, got 8"),
        (["--precision", "fp16"], "precision: expected no or bf16 on cpu, got fp16"),
        (["--batch", 64], "batch: expected at most the 48 clips to train on, got 64"),
        (["--data", "nowhere"], "folder: expected the folder of a data set, got nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_run_is_named(more: list[object], message: str, tones: Path, tmp_path: Path) -> None:
    from training.command import start_processes
    from training.data import preparation
    from training.loop import Run

    settings = options.parse(arguments(tones, tmp_path, *map(str, more)))
    with pytest.raises(ValueError, match=f"^{message}"):
        begin_with(settings, preparation, start_processes, Run)


def begin_with(settings: Any, preparation: Any, start_processes: Any, kind: Any) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = start_processes(settings)
    preparation.begin(settings, accelerator.device)
    kind(settings, preparation.read(settings), accelerator)


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 20, 0.4, 0.2) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[12] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[19] < 0.01
    with pytest.raises(ValueError, match="step: expected 0 up to 19, got 20"):
        learning_rate(20, 20, 0.4, 0.2)


def test_processes_share_every_batch() -> None:
    alone = TrainingBatches(50, 12, seed=3)
    shares = [TrainingBatches(50, 12, 3, process, 3) for process in range(3)]
    for batches in (alone, *shares):
        batches.go_to(2, 0)
    joined = [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    assert joined == list(alone)
    assert len(alone) == alone.steps == 4
    assert len({index for batch in alone for index in batch}) == 48
    before = list(alone)
    alone.go_to(2, 3)
    assert list(alone) == before[3:]
    alone.go_to(3, 0)
    assert list(alone) != before


@pytest.mark.parametrize(("clips", "processes"), [(10, 1), (10, 3), (12, 3), (2, 3), (1, 4)])
def test_each_clip_is_evaluated_once(clips: int, processes: int) -> None:
    shares = [EvaluationBatches(clips, 2, process, processes) for process in range(processes)]
    found = [
        index
        for share in shares
        for batch, real in zip(share, share.real(), strict=True)
        for index, is_real in zip(batch, real.tolist(), strict=True)
        if is_real
    ]
    assert sorted(found) == list(range(clips))
    assert len({len(share) for share in shares}) == 1


def test_average_of_the_weights() -> None:
    model = nn.Linear(3, 2)
    average = Average(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, own)


def test_signals_are_noted_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping.Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_readers_outlive_the_signals_of_their_main_process() -> None:
    """A group of processes gets a signal together; readers end by themselves, soon."""
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    reader = context.Process(target=wait_as_reader, args=(ready, go))
    reader.start()
    assert ready.wait(20)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(reader.pid or 0, number)
    go.set()
    reader.join(20)
    assert reader.exitcode == 7


def wait_as_reader(ready: Any, go: Any) -> None:
    stopping.leave_signals_to_the_main_process(0)
    ready.set()
    go.wait(20)
    os._exit(7 if signal.alarm(0) else 8)
