"""Folders as people have them: which reading is taken and said, links, few clips, other kinds of files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

from support.data_folders import names, write_wav

from training.data.data_sets import SPLITS, DataSet, find, summary
from training.data.scan import missing_bytes

VEHICLES = ("train", "bus", "car")


def clips(folder: Path, *names: str) -> Path:
    for name in names:
        write_wav(folder / name)
    return folder


def counted(data: DataSet) -> dict[str, Counter[str]]:
    """Clips of each split by class."""
    return {split: Counter(data.classes[clip.labels[0]] for clip in found) for split, found in data.splits.items()}


@pytest.mark.parametrize("layout", ["auto", "folders"])
def test_a_class_of_vehicles_is_no_split(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips(tmp_path, *(f"{name}/day{day}/{take}.wav" for name in VEHICLES for day in (1, 2) for take in range(4)))
    with caplog.at_level(logging.INFO):
        data = find(tmp_path, layout)
    assert data.classes == tuple(sorted(VEHICLES))
    if layout == "auto":
        assert "layout folders: train/ is a class like bus/, car/ beside it" in caplog.text
        assert "say --layout splits" in caplog.text


def test_a_layout_that_is_named_is_obeyed(tmp_path: Path) -> None:
    clips(tmp_path, *(f"{top}/{name}/{take}.wav" for top in ("train", "test") for name in "ab" for take in range(6)))
    assert (find(tmp_path).name, find(tmp_path).classes) == ("splits", ("a", "b"))
    assert find(tmp_path, "splits") == find(tmp_path)
    assert find(tmp_path, "folders").classes == ("test", "train")
    clips(tmp_path, "extra/1.wav")
    assert find(tmp_path).name == "splits"
    with pytest.raises(ValueError, match=r"^folder: expected train/ with a folder"):
        find(tmp_path / "train", "splits")


def test_two_readings_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips(tmp_path, *(f"{top}/{name}/1.wav" for top in ("train", "test", "bus") for name in "ab"))
    with caplog.at_level(logging.INFO):
        find(tmp_path)
    assert (
        "layout splits: train/ has other splits beside it; where bus/ are classes, say --layout folders" in caplog.text
    )


def test_classes_and_their_clips_are_told(tmp_path: Path) -> None:
    clips(tmp_path, *(f"train/{name}/{take}.wav" for name in "ab" for take in range(3)), "test/a/9.wav")
    assert summary(find(tmp_path)) == (
        "2 classes:\n  a: 3 train, 0 validation, 1 test\n  b: 3 train, 0 validation, 0 test"
    )
    many = find(clips(tmp_path / "many", *(f"{name:02}/{take}.wav" for name in range(50) for take in range(3))))
    assert len(summary(many).splitlines()) == 42
    assert summary(many).endswith("and 10 more")


def test_linked_folders_are_followed_once_each(tmp_path: Path) -> None:
    real = clips(tmp_path / "elsewhere", "a/1.wav", "a/2.wav", "b/1.wav", "b/deep/2.wav")
    linked = tmp_path / "data"
    linked.mkdir()
    for name in "ab":
        (linked / name).symlink_to(real / name)
    assert names(find(linked, shares=(0, 0)), "train", linked).keys() == {
        "a/1.wav", "a/2.wav", "b/1.wav", "b/deep/2.wav",
    }  # fmt: skip
    (real / "b" / "deep" / "up").symlink_to(linked)
    (real / "b" / "again").symlink_to(real / "b" / "deep")
    assert len(find(linked, shares=(0, 0)).splits["train"]) == 4
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "train").symlink_to(linked)
    assert len(find(splits).splits["train"]) == 4


@pytest.mark.parametrize("takes", [2, 3, 6])
def test_few_clips_of_many_classes_are_split(takes: int, tmp_path: Path) -> None:
    files = [f"class{label:02}/{label}-{take}.wav" for label in range(30) for take in range(takes)]
    found = counted(find(clips(tmp_path, *files)))
    for split in SPLITS if takes >= 3 else ("train",):
        assert len(found[split]) == 30
    assert sum(found["train"].values()) >= 30


def test_equal_names_in_every_class_are_split_together(tmp_path: Path) -> None:
    files = [f"{name}/{take}.wav" for name in ("a", "b", "c") for take in range(6)]
    data = find(clips(tmp_path, *files))
    found = counted(data)
    assert all(set(found[split]) == {"a", "b", "c"} for split in SPLITS)
    by_split = {split: {clip.path.name for clip in clips_} for split, clips_ in data.splits.items()}
    assert sum(map(len, by_split.values())) == 6
    assert sum(found["train"].values()) >= 9


def test_an_empty_split_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find(clips(tmp_path, "train/a/1.wav", "train/b/1.wav", "test/a/2.wav", "test/b/2.wav"))
    assert "is in the validation split: nothing is said of it" in caplog.text


def test_audio_of_other_kinds_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips(tmp_path, *(f"{name}/{take}.wav" for name in "ab" for take in range(3)))
    for name in ("a/x.m4a", "b/y.AAC", "a/z.opus"):
        (tmp_path / name).write_bytes(b"")
    data = find(tmp_path, shares=(0, 0))
    assert (
        "left out 2 files of kinds that libsndfile does not read (.aac, .m4a): make WAV or FLAC of them" in caplog.text
    )
    assert "a/z.opus" in names(data, "train", tmp_path)


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFF000 - 36, 0x7FFFEFDC, 0xFFFFFFFF])
def test_a_header_written_into_a_pipe_is_not_cut_short(size: int, tmp_path: Path) -> None:
    write_wav(tmp_path / "piped.wav")
    content = bytearray((tmp_path / "piped.wav").read_bytes())
    place = content.index(b"data") + 4
    assert missing_bytes(tmp_path / "piped.wav") == 0
    content[place : place + 4] = size.to_bytes(4, "little")
    (tmp_path / "piped.wav").write_bytes(content)
    assert missing_bytes(tmp_path / "piped.wav") == 0
    content[place : place + 4] = (0x7FFE0000).to_bytes(4, "little")
    (tmp_path / "piped.wav").write_bytes(content)
    assert missing_bytes(tmp_path / "piped.wav") > 0
