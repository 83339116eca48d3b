"""Several labels for a clip, out of a table: what is read, what is trained, what is measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.data_folders import write_wav
from support.runs import training_runs

from septr_fast.adopt import checkpoints
from septr_fast.commands.main import main as septr_fast_main
from training import figures
from training.data import data_sets
from training.data.clip_lists import Clip
from training.data.preparation import _activation
from training.data.samples import Samples
from training.data.tables import labelled_files
from training.evaluate import evaluate
from training.learning.objective import Objective
from training.options import parse

HERTZ = {"low": 300, "middle": 700, "high": 1400}
"""What sounds in a clip of each label, several at a time, or none."""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def read(table: Path, folder: Path) -> dict[str, dict[str, list[str]]]:
    """Labels by name of the file, by split."""
    data = labelled_files(table, folder)
    return {
        split: {
            clip.path.relative_to(folder).as_posix(): [data.classes[label] for label in clip.labels] for clip in own
        }
        for split, own in data.splits.items()
    }


TABLES = {
    "commas within quotes": 'file,labels,split\na.wav,"dog,rain",train\nb.wav,,train\nc.wav,rain,val\nd.wav,dog,test\n',
    "semicolons between labels": "fname,labels,split\na,dog;rain,train\nb,,train\nc,rain,valid\nd,dog,test\n",
    "bars, tabs, other columns": "n\tFilename\tLabel\tSplit\n1\ta.wav\tdog| rain\tTrain\n2\tb.wav\t\ttrain\n"
    "3\tc.wav\train\tvalidation\n4\td.wav\tdog\ttest\n",
    "a row for each label": "path,label,split\na.wav,rain,train\na.wav,dog,train\nb.wav,,train\nc.wav,rain,val\n"
    "d.wav,dog,test\nd.wav,dog,test\n",
    "of a spreadsheet": "\ufefffile;labels;split\r\na.wav;dog,rain;train\r\nb.wav;;train\r\nc.wav;rain;val\r\n"
    "d.wav;dog;test\r\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES.keys())
def test_tables_are_read(text: str, tmp_path: Path) -> None:
    for name in "abcd":
        write_wav(tmp_path / f"{name}.wav")
    assert read(write(tmp_path / "labels.csv", text), tmp_path) == {
        "train": {"a.wav": ["dog", "rain"], "b.wav": []},
        "validation": {"c.wav": ["rain"]},
        "test": {"d.wav": ["dog"]},
    }


def test_labels_may_hold_commas_where_semicolons_part_them(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.csv", 'file,labels\na.wav,"Chirp, tweet;Rain"\nb.wav,"Chirp, tweet"\n'), tmp_path)
    assert found["train"]["a.wav"] == ["Chirp, tweet", "Rain"]


def test_without_splits_every_label_is_in_each_and_folders_do_not_mix(tmp_path: Path) -> None:
    rows = [f"day{n % 4}/{n // 4}.wav,{'a;b' if n % 3 else 'b;c'}" for n in range(200)]
    found = read(write(tmp_path / "t.csv", "\n".join(["file,labels", *rows])), tmp_path)
    for split, files in found.items():
        assert set().union(*files.values()) == {"a", "b", "c"}
        assert len(files) > (100 if split == "train" else 5)
    moved = read(write(tmp_path / "u.csv", "\n".join(["file,labels", *rows])), tmp_path / "elsewhere")
    assert moved == found


def test_a_file_is_one_clip_however_it_is_written(tmp_path: Path) -> None:
    for name in ("a.wav", "sub/b.wav"):
        write_wav(tmp_path / name)
    rows = ["a.wav,low", "a,loud", f"{tmp_path}/a.wav,mixed", "sub/../a.wav,low", "sub/b.wav,low", r"sub\b.wav,loud"]
    found = read(write(tmp_path / "t.csv", "\n".join(["file,labels", *rows])), tmp_path)
    together: dict[str, list[str]] = {}
    for files in found.values():
        together |= files
    assert together == {"a.wav": ["loud", "low", "mixed"], "sub/b.wav": ["loud", "low"]}


def test_a_space_before_a_quoted_cell(tmp_path: Path) -> None:
    found = read(write(tmp_path / "t.csv", 'file, labels\na.wav, "dog,cat"\n'), tmp_path)
    assert found["train"] == {"a.wav": ["cat", "dog"]}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_of_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("file,labels\na.wav,völ\n".encode(encoding))
    with pytest.raises(ValueError, match="labels: expected UTF-8 in"):
        labelled_files(tmp_path / "t.csv", tmp_path)


WRONG = {
    "no table": (None, "there is no"),
    "no header": ("a.wav,dog\n", "missing file and labels"),
    "no labels": ("file,species\na.wav,dog\n", "missing labels, got file, species"),
    "empty": ("", "missing file and labels, got none"),
    "no name": ("file,labels\n,dog\n", "line 2 of .*expected the name of a file"),
    "another split": (
        "file,labels,split\na.wav,dog,night\n",
        "line 2 of .*one of train, training, validation, valid, val, dev, test, testing, got 'night'",
    ),
    "one split missing": ("file,labels,split\na.wav,dog,train\nb.wav,dog,\n", "line 3 of .*got ''"),
    "two splits": ("file,labels,split\na.wav,dog,train\na.wav,cat,test\n", "line 3 of .*a.wav in one split"),
    "no label at all": ("file,labels\na.wav,\n", "at least 1 class in"),
    "labels that are not quoted": ("file,labels\na.wav,dog,cat\n", "line 2 of .*expected a cell for each of the 2"),
    "nothing to train on": ("file,labels,split\na.wav,dog,train\nb.wav,cat,test\n", "got none of 'cat'"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG.keys())
def test_broken_tables_raise(text: str | None, message: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    if text is not None:
        write(table, text)
    with pytest.raises(ValueError, match=f"(labels|folder): .*{message}"):
        labelled_files(table, tmp_path)


def test_the_summary_counts_clips_with_several_labels(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "file,labels,split\na.wav,dog;cat,train\nb.wav,,train\nc.wav,dog,test\n")
    text = data_sets.summary(labelled_files(table, tmp_path))
    assert "dog: 1 train, 0 validation, 1 test" in text
    assert "1 clips with several labels" in text
    assert "1 clips with no label" in text


def test_losses_and_right_answers() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, -2.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(dim=1)
    several = Objective("sigmoid")
    torch.testing.assert_close(several.losses(logits, targets), expected)
    assert several.right(logits, targets).tolist() == [True, False]
    smooth = Objective("sigmoid", 0.2).losses(logits, targets)
    torch.testing.assert_close(smooth, several.losses(logits, torch.where(targets > 0, 0.9, 0.1)))
    one = Objective("softmax", 0.1)
    single = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(
        one.losses(logits, single),
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]), reduction="none", label_smoothing=0.1),
    )
    assert one.right(logits, single).tolist() == [True, False]


def average_precision(scores: list[float], present: list[bool]) -> float:
    """By its definition: the mean, over the clips of a class, of the precision at the rank of each."""
    ranked = [there for _, there in sorted(zip(scores, present, strict=True), reverse=True)]
    found = [sum(ranked[: place + 1]) / (place + 1) for place, there in enumerate(ranked) if there]
    return sum(found) / len(found)


def test_average_precision_is_that_of_its_definition(tmp_path: Path) -> None:
    """A clip that cannot be read counts nowhere, and a class without clips has none."""
    labels = [(0, 1), (1,), (), (0,), (0, 1), (1,)]
    paths = [write_wav(tmp_path / f"{index}.wav", 400) for index in range(len(labels))]
    paths[4].unlink()
    samples = Samples([Clip(path, own) for path, own in zip(paths, labels, strict=True)], 3, 8000, 0.05)
    drawn = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(3))
    place = iter(range(0, len(labels), 2))

    def logits_of(spectrograms: torch.Tensor) -> torch.Tensor:
        first = next(place)
        return drawn[first : first + 2]

    found = evaluate(logits_of, samples, torch.nn.Identity(), Accelerator(cpu=True), Objective("sigmoid"), batch=2)
    read = [0, 1, 2, 3, 5]
    each = [
        average_precision([float(drawn[i, label]) for i in read], [label in labels[i] for i in read])
        for label in range(2)
    ]
    assert found.average_precision == (pytest.approx(each[0]), pytest.approx(each[1]), None)
    assert found.mean_average_precision == pytest.approx(sum(each) / 2)
    assert (found.clips, found.confusion) == (5, None)


def test_a_figure_of_precisions(tmp_path: Path) -> None:
    figures.average_precision([0.25, None, 1.0], ["Ba$$in", "no clip", "Ω" * 80], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="expected a class with clips"):
        figures.average_precision([None], ["a"], tmp_path / "other.png")


@pytest.fixture(scope="module")
def chords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds of any of three tones at a time, with noise, and a table of which."""
    import wave

    folder = tmp_path_factory.mktemp("chords")
    numbers = np.random.default_rng(0)
    rows = ["file,labels,split"]
    for index in range(96):
        own = [name for bit, name in enumerate(HERTZ) if index >> bit & 1]
        times = np.arange(training_runs.SAMPLES) / training_runs.RATE
        sound = numbers.normal(0, 100, training_runs.SAMPLES)
        for name in own:
            sound += 4000 * np.sin(math.tau * (HERTZ[name] * times + numbers.uniform()))
        with wave.open(str(folder / f"{index}.wav"), "wb") as file:
            file.setparams((1, 2, training_runs.RATE, training_runs.SAMPLES, "NONE", "not compressed"))
            file.writeframes(sound.astype("<i2").tobytes())
        split = "train" if index < 64 else "val" if index < 80 else "test"
        rows.append(f"{index}.wav,{';'.join(own)},{split}")
    write(folder / "table.csv", "\n".join(rows))
    return folder


def command(folder: Path, out: Path, *more: object) -> list[str]:
    return training_runs.arguments(folder, out, "--labels", folder / "table.csv", *more)


@pytest.fixture(scope="module")
def trained(chords: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "run"
    assert training_runs.run(command(chords, out, "--mixup", 0, "--epochs", 8, "--dropout", 0)) == 0
    return out


def test_several_labels_are_learnt(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert (results["activation"], results["classes"]) == ("sigmoid", ["high", "low", "middle"])
    test = results["models"]["septr"]["test"]
    assert test["mean_average_precision"] > 0.95
    assert len(test["average_precision"]) == 3
    assert test["confusion"] is None
    history = results["models"]["septr"]["history"]
    best = max(history, key=lambda entry: entry["validation_mean_average_precision"])
    assert results["models"]["septr"]["best_epoch"] == best["epoch"]
    assert checkpoints.load(trained / "septr.safetensors").activation == "sigmoid"


def test_what_was_learnt_is_predicted_with_any_number_of_labels(
    trained: Path, chords: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(chords / f"{index}.wav") for index in (88, 90)]  # none of them, and "middle"
    assert septr_fast_main(["predict", "--checkpoint", str(trained / "septr.safetensors"), "--json", *files]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["activation"] == "sigmoid"
    none, middle = ({answer["name"]: answer["probability"] for answer in file["classes"]} for file in found["files"])
    assert max(none.values()) < 0.5 < middle["middle"]


def test_a_table_is_the_layout(chords: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (["--data", str(chords), "--layout", "folders"], "layout: expected none beside a table of labels"),
        ([], "data: expected the folder of the files"),
    ):
        with pytest.raises(SystemExit):
            parse(["--labels", str(chords / "table.csv"), *more])
        assert message in capsys.readouterr().err


def test_one_label_each_is_a_softmax_unless_a_sigmoid_is_asked_for(chords: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "file,labels\n0.wav,a\n1.wav,b\n")
    data = labelled_files(table, chords)
    for asked, expected in (("auto", "softmax"), ("sigmoid", "sigmoid"), ("softmax", "softmax")):
        options = parse(["--data", str(chords), "--labels", str(table), "--activation", asked])
        assert _activation(options, data) == expected
    alone = labelled_files(write(tmp_path / "u.csv", "file,labels\n0.wav,a\n1.wav,a\n"), chords)
    assert _activation(parse(["--data", str(chords), "--labels", str(table)]), alone) == "sigmoid"
    several = labelled_files(chords / "table.csv", chords)
    with pytest.raises(ValueError, match="activation: expected sigmoid"):
        _activation(parse(["--data", str(chords), "--labels", str(table), "--activation", "softmax"]), several)
