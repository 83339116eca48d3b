"""Files of a data set that cannot be used, found before training; and the spoken words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

import soundfile
from support.data_folders import RATE, class_folders, esc50, names, write_wav

from training.data import scan, spoken
from training.data.data_sets import SPLITS, find
from training.data.scan import missing_bytes


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Two classes of three clips, and clips that cannot be used with a part of the reason for each."""
    folder = tmp_path / "clips"
    for name in ("bell", "horn"):
        for index in range(3):
            write_wav(folder / name / f"good{index}.wav")
    reasons = {
        "bell/empty.wav": "expected a readable WAV file",
        "bell/no_samples.wav": "which is empty",
        "bell/header.wav": "expected a readable WAV file",
        "bell/cut.wav": "cut short by 60 bytes",
        "horn/nan.wav": "NaN or infinity",
        "horn/text.wav": "expected a readable WAV file",
    }
    (folder / "bell/empty.wav").write_bytes(b"")
    write_wav(folder / "bell/no_samples.wav", samples=0)
    whole = write_wav(folder / "bell/header.wav").read_bytes()
    (folder / "bell/header.wav").write_bytes(whole[:20])
    (folder / "bell/cut.wav").write_bytes(whole[:-60])
    soundfile.write(folder / "horn/nan.wav", np.full(80, np.nan), RATE, subtype="FLOAT")
    (folder / "horn/text.wav").write_text("this is no sound")
    return folder, reasons


@pytest.mark.parametrize("workers", [1, 3])
def test_broken_files_are_named_skipped_and_counted(
    workers: int, broken: tuple[Path, dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, reasons = broken
    report = tmp_path / "out" / "skipped.json"
    kept, skipped = scan.scan(find(folder, shares=(0, 0)), report, workers, progress=False)
    assert set(names(kept, "train", folder)) == {f"{name}/good{i}.wav" for name in ("bell", "horn") for i in range(3)}
    found = {skip.path.relative_to(folder).as_posix(): skip.reason for skip in skipped}
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in found[name]
        assert name in found[name]
        assert found[name] in caplog.text
    assert "skipped 6 of 12 files" in caplog.text
    written = json.loads(report.read_text())
    assert (written["files"], written["skipped"]) == (12, 6)
    assert [entry["file"] for entry in written["skipped_files"]] == [str(skip.path) for skip in skipped]
    assert [entry["reason"] for entry in written["skipped_files"]] == [skip.reason for skip in skipped]


def test_a_file_that_a_list_names_and_nobody_has_is_skipped(tmp_path: Path) -> None:
    (esc50(tmp_path) / "audio" / "3-103-A-0.wav").unlink()
    kept, skipped = scan.scan(find(tmp_path), progress=False)
    assert [skip.path.name for skip in skipped] == ["3-103-A-0.wav"]
    assert "3-103-A-0.wav" not in {clip.path.name for clips in kept.splits.values() for clip in clips}


def test_what_cannot_be_resampled_is_skipped_where_a_rate_is_given(tmp_path: Path) -> None:
    class_folders(tmp_path, count=1)
    soundfile.write(tmp_path / "bell" / "slow.wav", np.zeros(100), 2)
    data = find(tmp_path, shares=(0, 0))
    assert scan.scan(data, progress=False)[1] == []
    (skipped,) = scan.scan(data, rate=16000, progress=False)[1]
    assert skipped.path.name == "slow.wav"
    assert "rate: expected at least 160 Hz" in skipped.reason


def test_a_second_scan_reads_what_has_changed_and_nothing_else(
    broken: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reasons = broken
    report = tmp_path / "skipped.json"
    first = scan.scan(find(folder, shares=(0, 0)), report, progress=False)
    read: list[str] = []
    fault = scan.fault

    def recorded(path: Path, rate: int | None = None) -> str | None:
        read.append(path.name)
        return fault(path, rate)

    monkeypatch.setattr(scan, "fault", recorded)
    assert scan.scan(find(folder, shares=(0, 0)), report, progress=False) == first
    assert read == []
    write_wav(folder / "horn" / "text.wav", samples=90)
    os.utime(write_wav(folder / "horn" / "good1.wav"), ns=(1, 1))
    write_wav(folder / "horn" / "new.wav")
    _, skipped = scan.scan(find(folder, shares=(0, 0)), report, progress=False)
    assert sorted(read) == ["good1.wav", "new.wav", "text.wav"]
    assert len(skipped) == len(reasons) - 1
    read.clear()
    scan.scan(find(folder, shares=(0, 0)), report, rate=16000, progress=False)
    assert len(read) == 13


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1, "rate": null, "files": {"x": 1}}'])
def test_a_broken_cache_is_named_and_made_again(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = find(class_folders(tmp_path / "clips", count=1), shares=(0, 0))
    cache = tmp_path / "skipped-cache.json"
    cache.write_text(content)
    assert scan.scan(data, tmp_path / "skipped.json", progress=False) == (data, [])
    assert f"{cache} is no cache of this program" in caplog.text
    assert len(json.loads(cache.read_text())["files"]) == 4


def test_a_split_that_loses_everything_raises_and_a_class_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "validation"):
        for name in ("bell", "horn", "siren"):
            write_wav(tmp_path / split / name / "1.wav")
    (tmp_path / "train" / "horn" / "1.wav").write_bytes(b"")
    (tmp_path / "validation" / "siren" / "1.wav").write_bytes(b"")
    kept, _ = scan.scan(find(tmp_path), progress=False)
    assert kept.classes == ("bell", "horn", "siren")
    assert "class 'horn' has no clip left to train on" in caplog.text
    assert "class 'siren' has no clip left in the validation split" in caplog.text
    for path in (tmp_path / "validation").rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^data: expected files .* in the validation split, all 3 were skipped"):
        scan.scan(find(tmp_path), progress=False)


def test_no_workers_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^workers: expected at least 1, got 0$"):
        scan.scan(find(class_folders(tmp_path, count=1), shares=(0, 0)), workers=0)


def test_bytes_that_a_header_announces_are_missed(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "clip.wav", samples=101)
    whole = path.read_bytes()
    assert missing_bytes(path) == 0
    path.write_bytes(whole[:-7])
    assert missing_bytes(path) == 7
    piped = bytearray(whole)
    piped[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(piped)
    assert missing_bytes(path) == 0
    listed = whole[:36] + b"LIST\x03\0\0\0abc\0" + whole[36:-7]
    path.write_bytes(listed)
    assert missing_bytes(path) == 7
    path.write_bytes(b"fLaC" + whole[4:-7])
    assert missing_bytes(path) == 0


def test_spoken_words_are_made_once_and_the_voices_of_a_split_stay_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("espeakng_loader")
    voices = {"train": ("en-us+m1", "en+f1"), "validation": ("en-us+f4",), "test": ("en-us+Andrea",)}
    options = {"rates": (140, 175), "pitches": (30, 50), "voices": voices}
    data = spoken.spoken_words(tmp_path, ("yes", "no"), False, **options)  # type: ignore[arg-type]
    assert data.classes == ("no", "yes")
    assert [len(data.splits[split]) for split in SPLITS] == [16, 8, 8]
    contents = {clip.path: clip.path.read_bytes() for clips in data.splits.values() for clip in clips}
    assert len(contents) == len(set(contents.values())) == 32
    assert scan.scan(data, progress=False) == (data, [])
    for split, clips in data.splits.items():
        speakers = {clip.path.name.split("_")[1].removesuffix(".wav") for clip in clips}
        assert speakers == {voice.split("+")[1] for voice in voices[split]}
        assert all(clip.path.parent.name == data.classes[clip.labels[0]] for clip in clips)
    missing = data.splits["test"][0].path
    missing.unlink()
    (tmp_path / "train" / "other").mkdir()
    times = {path: path.stat().st_mtime_ns for path in contents if path != missing}
    assert spoken.spoken_words(tmp_path, ("yes", "no"), False, **options) == data  # type: ignore[arg-type]
    assert missing.read_bytes() == contents[missing]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert find(tmp_path).splits == data.splits


@pytest.mark.parametrize(
    ("options", "name"),
    [({"rates": (60,)}, "rates"), ({"pitches": (120,)}, "pitches"), ({"words": ("a/b", "c")}, "words")],
    ids=["rate", "pitch", "word"],
)
def test_what_cannot_be_spoken_raises(options: dict[str, object], name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        spoken.spoken_words(tmp_path, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_default_words_are_known_and_at_least_ten() -> None:
    from benchmarks.speech import spoken_words

    assert len(set(spoken.WORDS)) == len(spoken.WORDS) >= 10
    assert set(spoken.WORDS) <= set(spoken_words.WORDS)
