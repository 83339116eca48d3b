"""Accuracy against cost: the command on folders of tones, what it keeps, what its page says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from comparison import command, page, runs
from comparison.contestants import CONTESTANTS, flops, named, parameter_groups

ROOT = Path(__file__).resolve().parents[2]
STORED, SHOWN = ROOT / "examples/results/accuracy-cpu.json", ROOT / "docs/accuracy.md"
SIZE = (16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of tones, in splits."""
    root = tmp_path_factory.mktemp("tones")
    times = np.arange(1600) / 4000
    for split, clips in (("train", 8), ("validation", 3), ("test", 3)):
        for name, pitch in (("low", 300), ("high", 1500)):
            (root / split / name).mkdir(parents=True)
            for number in range(clips):
                wave = 0.5 * np.sin(2 * np.pi * pitch * times + number)
                soundfile.write(root / split / name / f"{number}.wav", wave, 4000)
    return root


def options(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--data", str(folder), "--layout", "splits", "--name", "two tones", "--about", "Tones."),
        *("--rate", "4000", "--seconds", "0.4", "--size", *map(str, SIZE), "--epochs", "2", "--batch", "8"),
        *("--seeds", "2", "--cpu", "--out", str(out), *more),
    ]


def of_runs(out: Path) -> list[dict[str, Any]]:
    content = json.loads((out / command.NAME).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = content["data"]["two tones"]["runs"]
    return found


def test_command_trains_keeps_and_shows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    first = options(folder, tmp_path, "--models", "SepTr 4x4, narrow")
    assert command.main(first) == 0
    kept = of_runs(tmp_path)
    assert [(run["seed"], run["learning_rate"]) for run in kept[:2]] == [(0, 1e-3), (0, 3e-4)]
    assert len(kept) == 3
    assert kept[2]["seed"] == 1
    best = min(kept[:2], key=lambda run: run["validation_loss"])
    assert kept[2]["learning_rate"] == best["learning_rate"]

    # Another model later: the first is not trained again, and the page has both.
    both = [*options(folder, tmp_path), "--models", "SepTr 4x4, narrow", "ViT-Ti/8"]
    assert command.main(both) == 0
    assert of_runs(tmp_path)[:3] == kept
    assert len(of_runs(tmp_path)) == 6
    text = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    assert "## Two tones" in text
    assert "| ViT-Ti/8" in text
    assert "Tones. 2 classes, 50.0 % by guessing; clips: 16 train" in text
    assert "(accuracy-two-tones.png)" in text
    assert (tmp_path / "accuracy-two-tones.png").stat().st_size > 1000

    def refuse(*arguments: object) -> None:
        raise AssertionError("nothing was left to train")

    monkeypatch.setattr(runs, "train", refuse)
    assert command.main(both) == 0


def test_a_run_is_repeatable(folder: Path, tmp_path: Path, one_thread: None) -> None:
    found = []
    for name in ("a", "b"):
        chosen = options(folder, tmp_path / name, "--models", "SepTr 4x4, narrow", "--learning-rates", "1e-3")
        assert command.main(chosen) == 0
        found.append(of_runs(tmp_path / name))
    assert found[0] == found[1]
    assert found[0][0]["validation_loss"] != found[0][1]["validation_loss"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--models", "SepTr 5x5"), "models: expected some of"),
        (("--epochs", "3", "--models", "SepTr 4x4, narrow"), "epochs: expected 2"),
        (("--size", "16", "32", "--models", "SepTr 4x4, narrow"), "frames: expected 16"),
    ],
)
def test_refusals(
    more: tuple[str, ...],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    if more[0] != "--models":
        models = ("--models", "SepTr 4x4, narrow", "--seeds", "1", "--learning-rates", "1e-3")
        assert command.main([*options(folder, tmp_path), *models]) == 0
    assert command.main([*options(folder, tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


def test_clips_without_a_test_split_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(folder / "train")
    assert command.main(options(tmp_path / "data", tmp_path / "out", "--models", "ViT-Ti/16")) == 2
    assert "clips in all three splits" in capsys.readouterr().err


@pytest.mark.parametrize("contestant", [one for one in CONTESTANTS if not one.heavy], ids=lambda one: one.name)
def test_contestants(contestant: Any, one_thread: None) -> None:
    model = contestant.build((64, 64), 5)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    assert flops(model.eval(), (64, 64)) > 1e7
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    grouped = [parameter for group in (decayed, kept) for parameter in group["params"]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert not [n for p in decayed["params"] if (n := names[id(p)]).endswith(("bias", "position_embeddings", "token"))]
    assert all(parameter.dim() > 1 for parameter in decayed["params"])


def test_names_are_taken_once_and_in_order() -> None:
    assert [one.name for one in named(("ViT-Ti/8", "SepTr 4x4", "ViT-Ti/8"))] == ["ViT-Ti/8", "SepTr 4x4"]


ROWS = [
    {"model": "SepTr 4x4", "accuracy": 0.9, "deviation": 0.01, "seeds": 3, "forward_per_second": 10.0},
    {"model": "SepTr 4x4, narrow", "accuracy": 0.85, "deviation": 0.01, "seeds": 3, "forward_per_second": 50.0},
    {"model": "AST-Ti/16", "accuracy": 0.8, "deviation": 0.01, "seeds": 3, "forward_per_second": 20.0},
    {"model": "ViT-Ti/16", "accuracy": 0.7, "deviation": 0.01, "seeds": 3, "forward_per_second": 90.0},
]


def test_the_frontier_has_what_nothing_beats_in_both() -> None:
    assert [row["model"] for row in page.frontier(ROWS, "forward_per_second")] == [
        "ViT-Ti/16",
        "SepTr 4x4, narrow",
        "SepTr 4x4",
    ]


def test_sentences_say_who_wins_and_what_is_within_the_spread() -> None:
    rows = [{**row, "training_per_second": row["forward_per_second"], "kept_bytes": 1e6} for row in ROWS]
    first, *_, last = page.findings(rows)
    assert first == "Most accurate: SepTr 4x4, 90.0 ± 1.0 %; the best of another kind is AST-Ti/16, 10.0 points behind."
    assert last == "Least memory in training: SepTr 4x4, 1.00 MB kept for each clip."
    close = [rows[0], {**rows[2], "accuracy": 0.89}]
    assert next(page.findings(close)).endswith("1.0 points behind, which is within the spread of the seeds.")


def test_the_page_shows_what_is_stored(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "examples" / "results").mkdir(parents=True)
    content = json.loads(STORED.read_text(encoding="utf-8"))
    page.write(content, tmp_path / "docs" / SHOWN.name, tmp_path / STORED.relative_to(ROOT))
    assert (tmp_path / "docs" / SHOWN.name).read_text(encoding="utf-8") == SHOWN.read_text(encoding="utf-8")
