"""Many files as lines of JSON: found, shared, stopped and gone on with."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")

import soundfile

from septr_fast import LogMel, SepTr
from septr_fast.__main__ import main
from septr_fast.adopt import checkpoints
from septr_fast.commands import predict as command
from septr_fast.inference import many, prediction

RATE, FILES = 8000, 23
CLASSES = ["yes", "no"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = SepTr(input_size=(8, 10), num_classes=2, depth=1, heads=2, dim_head=8, dim=16, mlp_dim=16).eval()
    front_end = LogMel(RATE, 8, fft_size=256, hop=80, frames=10)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    checkpoints.save(path, model, CLASSES, front_end.settings)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in three folders; two are broken, one has a name that is no text, one is no audio."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(FILES - 2):
        place = root / f"day {number % 3}"
        place.mkdir(exist_ok=True)
        noise = torch.randn(200 + 90 * number, generator=torch.Generator().manual_seed(number))
        soundfile.write(place / f"{number}.WAV", 0.1 * noise.numpy(), RATE, format="WAV")
    (root / "day 0" / "0.WAV").rename(root / "day 0" / "caf\udce9.wav")
    for name in ("a.wav", "z.flac"):
        (root / "day 1" / name).write_bytes(b"no sound")
    (root / "day 1" / "read me.txt").write_text("no audio")
    return root


def predict(folder: Path, checkpoint: Path, *more: str | Path) -> int:
    return main(["predict", str(folder), "--checkpoint", str(checkpoint), *map(str, more)])


def lines(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def expected(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """What one object of JSON says of the folder, by file."""
    started = [sys.executable, "-m", "septr_fast", "predict", folder, "--checkpoint", checkpoint, "--json"]
    found = subprocess.run(started, capture_output=True, check=False, cwd=ROOT)
    assert found.returncode == 1, found.stderr
    report = json.loads(found.stdout)
    entries = {entry["file"]: entry for entry in (*report["files"], *report["skipped"])}
    assert (len(entries), len(report["skipped"])) == (FILES, 2)
    return entries


def without_run(found: list[dict[str, Any]]) -> dict[str, Any]:
    entries = {entry["file"]: {name: value for name, value in entry.items() if name != "run"} for entry in found}
    assert len(entries) == len(found), "a file has two lines"
    return entries


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Up to the rounding of other batches."""
    assert set(found) == set(expected)
    for name, entry in expected.items():
        classes = entry.get("classes", [])
        assert {**found[name], "classes": classes} == {**entry, "classes": classes}
        values = [{one["name"]: one["probability"] for one in each.get("classes", [])} for each in (found[name], entry)]
        assert values[0] == pytest.approx(values[1], abs=1e-6)


@pytest.mark.parametrize("readers", [0, 1, 5])
def test_lines_are_those_of_one_object(
    readers: int, folder: Path, checkpoint: Path, expected: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(folder, checkpoint, "--json-lines", out, "--readers", readers, "--batch", 4) == 1
    assert f"{FILES} files, 2 of them skipped" in capsys.readouterr().err
    same(without_run(lines(out)), expected)


@pytest.mark.parametrize("torn", ["", '{"run": "', "whole"])
def test_goes_on_where_it_was_stopped(
    torn: str,
    folder: Path,
    checkpoint: Path,
    expected: dict[str, Any],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped twice, the last line torn; nothing is classified twice."""
    out = tmp_path / "out.jsonl"
    classify, asked = prediction.classify, []

    def stopping(bundle: Any, paths: Iterator[Path], **options: Any) -> Iterator[Any]:
        noted = (asked.append(path) or path for path in paths)
        yield from itertools.islice(classify(bundle, noted, **options), 7)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(many, "classify", stopping)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                predict(folder, checkpoint, "--json-lines", out, "--batch", 2, "--readers", 0)
            kept = out.read_bytes()
            torn_line = kept.splitlines(keepends=True)[0][:-5] if torn == "whole" else torn.encode()
            out.write_bytes(kept + torn_line)
    before = [json.loads(line) for line in kept.splitlines()]
    assert len(before) == 14
    assert predict(folder, checkpoint, "--json-lines", out) == 1
    assert f"{FILES - 14} files" in (told := capsys.readouterr().err)
    assert "14 were done before" in told
    found = lines(out)
    assert found[:14] == before
    same(without_run(found), expected)
    assert predict(folder, checkpoint, "--json-lines", out) == 0
    assert lines(out) == found


def test_files_that_came_later_are_classified_next_time(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(folder)
    out, late = tmp_path / "out.jsonl", tmp_path / "0 late.wav"
    assert main(["predict", str(tmp_path), "--checkpoint", str(checkpoint), "--json-lines", str(out)]) == 1
    soundfile.write(late, torch.zeros(100).numpy(), RATE)
    assert main(["predict", str(tmp_path), "--checkpoint", str(checkpoint), "--json-lines", str(out)]) == 0
    assert [entry["file"] for entry in lines(out)][FILES:] == [str(late)]


@pytest.mark.parametrize("form", [[], ["--json"], ["--json-lines"]], ids=["text", "json", "json-lines"])
def test_audio_that_is_not_read_is_named_and_counted(
    form: list[str], checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    """Beside audio that is read, and where there is none."""
    clips, more = tmp_path / "clips", [*form, *([str(tmp_path / "out.jsonl")] if form == ["--json-lines"] else [])]
    for name in ("b/x.m4a", "b/y.WMA", "z.m4a", "read me.txt"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        (clips / name).touch()
    told = r"3 files of kinds that libsndfile does not read \(\.m4a, \.wma\): make WAV or FLAC of them: .*x\.m4a"
    assert predict(clips, checkpoint, *more) == 1
    out, err = capsys.readouterr()
    assert len(re.findall(f"^septr-fast predict: left out {told}", err, re.MULTILINE)) == 1
    reasons = out + err + "".join(file.read_text() for file in tmp_path.glob("*.jsonl"))
    assert re.search(f"got the folder .*, below which there is none that can be read, but {told}", reasons)
    soundfile.write(clips / "good.wav", torch.zeros(800).numpy(), RATE)
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    assert predict(clips, checkpoint, *more) == 0
    assert len(re.findall(f"^septr-fast predict: left out {told}", capsys.readouterr().err, re.MULTILINE)) == 1


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_share_the_files(
    launcher: str, folder: Path, checkpoint: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Each has its own lines; one process goes on with what two have left."""
    run = {
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "septr_fast"],
        "accelerate": [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--main_process_port",
            "0",
            "--num_processes",
            "2",
            "-m",
            "septr_fast",
        ],
    }[launcher]
    out = tmp_path / "out.jsonl"
    started = [sys.executable, *run, "predict", folder, "--checkpoint", checkpoint, "--json-lines", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(started, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = out, tmp_path / "out.1.jsonl"
    same(without_run(lines(first, second)), expected)
    assert all(len(lines(part)) > 2 for part in (first, second))
    shares = [{many.key(entry["file"]) % 2 for entry in lines(part)} for part in (first, second)]
    assert shares == [{0}, {1}]
    kept = second.read_text().splitlines(keepends=True)
    second.write_text("".join(kept[:-2]) + kept[-1][:20])
    predict(folder, checkpoint, "--json-lines", out)
    same(without_run(lines(first, second)), expected)


def test_several_processes_do_not_print(
    folder: Path, checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(folder, checkpoint) == 2
    assert "several processes: expected --json-lines" in capsys.readouterr().err


def test_each_process_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    third = many.place_of({"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8"})
    for available, expected in ((True, [None, "cuda:2"]), (False, [None, None])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert [command._own_device(place) for place in (many.place_of({}), third)] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"RIFF", "got another line 1"),
        (b'{"run": "0123456789abcdef", "file": "a"', "got another line 1"),
        (b'{"file": "a"}\n', "got another line 1"),
        (b"[1]\n", "got another line 1"),
        (b"\n", "got another line 1"),
        (b'{"run": "0123456789abcdef", "file": "a"}\n', "expected lines of this checkpoint"),
    ],
)
def test_what_is_no_run_of_the_same_is_left_alone(
    content: bytes, message: str, folder: Path, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    assert predict(folder, checkpoint, "--json-lines", out) == 2
    assert message in capsys.readouterr().err
    assert out.read_bytes() == content


def test_other_settings_are_another_run(folder: Path, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(folder, checkpoint, "--json-lines", out) == 1
    for changed in (["--top", "1"], ["--hop", "0.01"]):
        assert predict(folder, checkpoint, "--json-lines", out, *changed) == 2
        assert "write to another file" in capsys.readouterr().err
    assert many.mark(checkpoint) != many.mark(ROOT / "README.md")


@pytest.mark.parametrize("readers", [0, 3])
def test_few_files_are_held_at_a_time(readers: int, folder: Path, checkpoint: Path) -> None:
    """Those of a batch, and those that are read ahead."""
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        for path in itertools.cycle(sorted(folder.glob("day 2/*.WAV"))):
            asked += 1
            yield path

    results = prediction.classify(checkpoints.load(checkpoint), endless(), batch=4, readers=readers)
    for number, _ in enumerate(itertools.islice(results, 100), 1):
        assert asked - number <= 4 + 2 * readers + 1
    results.close()


def test_other_files_beside_are_no_parts(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for name in ("out.1.jsonl", "out.12.jsonl", "out.01.jsonl", "out.x.jsonl", "out.1.json", "about.1.jsonl"):
        (tmp_path / name).touch()
    assert many.parts(out) == {1: tmp_path / "out.1.jsonl", 12: tmp_path / "out.12.jsonl"}
    assert many.parts(tmp_path / "out") == {}


def test_a_torn_line_longer_than_what_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "_AT_A_TIME", 7)
    part = tmp_path / "part"
    for content, kept in ((b"", b""), (b"torn line that is long", b""), (b"whole\n", b"whole\n")):
        part.write_bytes(content)
        many.cut_broken_line(part)
        assert part.read_bytes() == kept
    part.write_bytes(b"one\ntwo\n" + 50 * b"x")
    many.cut_broken_line(part)
    assert part.read_bytes() == b"one\ntwo\n"
