"""Folders as people have them: which reading is taken and said, links, few clips, other kinds of files."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

from support.data_folders import names, write_wav

from training.data.data_sets import SPLITS, DataSet, find, summary
from training.data.scan import missing_bytes

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize(
    "tops", [("Train", "valid", "Test"), ("training", "dev", "testing"), ("TRAIN", "Val", "TEST")], ids="-".join
)
def test_splits_are_known_by_any_of_their_names_in_any_case(tops: tuple[str, ...], tmp_path: Path) -> None:
    data = find(clips(tmp_path, *(f"{top}/{name}/{take}.wav" for top in tops for name in "ab" for take in range(2))))
    assert (data.name, data.classes) == ("splits", ("a", "b"))
    for split, top in zip(SPLITS, tops, strict=True):
        assert {clip.path.relative_to(tmp_path).parts[0] for clip in data.splits[split]} == {top}


def test_splits_without_train_are_classes_and_the_other_reading_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips(tmp_path, *(f"{top}/{name}/{take}.wav" for top in ("validation", "test") for name in "ab" for take in "123"))
    with caplog.at_level(logging.INFO):
        assert find(tmp_path).classes == ("test", "validation")
    assert "2 folders, test/, validation/ too; where these are splits, say --layout splits" in caplog.text


def test_two_folders_of_one_split_are_named(tmp_path: Path) -> None:
    clips(tmp_path, "train/a/1.wav", "val/a/1.wav", "valid/a/1.wav")
    with pytest.raises(ValueError, match=r"got 2: val/, valid/; where these are classes, say --layout folders$"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("top", "place", "beside", "found", "said"),
    [
        (
            "",
            "",
            "ab",
            ("a", "b"),
            "layout folders: a class for each of 2 folders; where the files named like .* crema-d",
        ),
        ("", "AudioWAV", ("AudioMP3",), ("ANG", "SAD"), "layout crema-d: .* where AudioMP3/ are classes, .* folders"),
        ("AudioWAV", "", "ab", ("ANG", "SAD"), "layout crema-d: .* where a/, b/ are classes, say --layout folders$"),
        ("", "", (), ("ANG", "SAD"), "layout crema-d: by the names of its files$"),
    ],
    ids=["strays", "AudioWAV", "in-AudioWAV", "alone"],
)
def test_names_of_crema_d_beside_class_folders(
    top: str,
    place: str,
    beside: str,
    found: tuple[str, ...],
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = clips(tmp_path / top, *(f"{name}/{take}.wav" for name in beside for take in range(4)), "_aside/1.wav")
    clips(folder / place, *(f"{actor}_DFA_{name}_XX.wav" for actor in range(1001, 1005) for name in ("ANG", "SAD")))
    with caplog.at_level(logging.INFO):
        assert find(folder).classes == found
    assert re.search(said, caplog.text, re.MULTILINE)


def test_too_few_classes_point_to_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 1: 'a'; it was read as folders, --layout asks for another reading$"):
        find(clips(tmp_path, "a/1.wav", "a/2.wav"))


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


def link(folder: Path, links: dict[str, str]) -> None:
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / target)


@pytest.mark.parametrize(
    ("files", "links", "message"),
    [
        ([], {"x": "../away/a", "y": "../away/a"}, "got y, a link to the same folder as x"),
        (["b/1.wav"], {"a": "b", "c": "../away/a"}, "got a, a link to the same folder as b"),
        (["train/a/1.wav", "train/b/1.wav"], {"test": "train"}, "got test, a link to the same folder as train"),
        (["test/a/1.wav", "test/b/1.wav"], {"train": "test"}, "got train, a link to the same folder as test"),
        (
            ["train/a/1.wav", "train/b/1.wav"],
            {"test/a": "train/b"},
            f"got {Path('test', 'a')}, a link to the same folder as {Path('train', 'b')}",
        ),
        (
            ["train/a/1.wav", "train/b/1.wav", "test/a/1.wav"],
            {"val/b": "test/a"},
            f"got {Path('val', 'b')}, a link to the same folder as {Path('test', 'a')}",
        ),
    ],
    ids=["classes", "a-class-to-another", "test-is-train", "train-is-test", "class-of-two-splits", "two-classes"],
)
def test_a_folder_that_two_classes_or_splits_are_is_named(
    files: list[str], links: dict[str, str], message: str, tmp_path: Path
) -> None:
    clips(tmp_path / "away", "a/1.wav")
    link(clips(tmp_path / "data", *files), links)
    with pytest.raises(ValueError, match=f"^folder: expected a folder of its own .*{re.escape(message)}$"):
        find(tmp_path / "data")


@pytest.mark.parametrize(
    ("links", "said"),
    [
        ({"validation": "test"}, "validation is a link to the same folder as test"),
        ({"validation": "../away", "test": "../away"}, "test is a link to the same folder as validation"),
        (
            {"validation/a": "test/a", "validation/b": "test/b"},
            f"{Path('validation', 'a')} is a link to the same folder as {Path('test', 'a')}, "
            f"{Path('validation', 'b')} is a link to the same folder as {Path('test', 'b')}",
        ),
    ],
    ids=["split", "both", "classes"],
)
def test_one_folder_may_be_validated_and_tested_on(
    links: dict[str, str], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, own = tmp_path / "data", "away" if "test" in links else "data/test"
    clips(folder, "train/a/1.wav", "train/b/1.wav")
    clips(tmp_path / own, "a/7.wav", "a/deep/8.wav", "b/9.wav")
    link(folder, links)
    data = find(folder)
    for split in ("validation", "test"):
        expected = {f"{split}/a/7.wav": "a", f"{split}/a/deep/8.wav": "a", f"{split}/b/9.wav": "b"}
        assert names(data, split, folder) == expected
    assert len(data.splits["train"]) == 2
    assert f"the same clips are in two splits: {said}\n" in caplog.text


def test_a_linked_class_has_its_clips_wherever_they_lie(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the links lead to lies beside them, where it would be found first; a link back is no class."""
    link(clips(tmp_path, "store/a/1.wav", "store/b/2.wav"), {"x": "store/a", "y": "store/b", "again": "."})
    assert names(find(tmp_path, shares=(0, 0)), "train", tmp_path) == {"x/1.wav": "x", "y/2.wav": "y"}
    assert "left out 2 folders without audio files" in caplog.text


@pytest.mark.parametrize("takes", [2, 3, 6])
def test_few_clips_of_many_classes_are_split(takes: int, tmp_path: Path) -> None:
    files = [f"class{label:02}/{label}-{take}.wav" for label in range(30) for take in range(takes)]
    found = counted(find(clips(tmp_path, *files)))
    for split in SPLITS if takes >= 3 else ("train",):
        assert len(found[split]) == 30
    assert sum(found["train"].values()) >= 30


def test_classes_that_a_split_lacks_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [f"class{label:02}/{label}-{take}.wav" for label in range(30) for take in range(2)]
    missing = 30 - len(counted(find(clips(tmp_path / "few", *files)))["validation"])
    assert 0 < missing < 30
    told = f"{missing} of 30 classes have no clip in the validation split, which chooses the best epoch: 'class"
    assert caplog.text.count(told) == 1
    assert f" and {missing - 5} more" in caplog.text
    find(clips(tmp_path / "splits", "train/a/1.wav", "train/b/1.wav", "train/c/1.wav", "test/b/1.wav"))
    assert "2 of 3 classes have no clip in the test split, which says nothing of them: 'a', 'c'" in caplog.text


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


def test_names_break_no_line_of_the_terminal(tmp_path: Path) -> None:
    """Of classes, of files that are left out and in errors; the run ends at a batch that the clips do not fill."""
    for name in ("\x1b[31mred", "a\nb"):
        clips(tmp_path / "data", *(f"{name}/{take}.wav" for take in range(20)))
        (tmp_path / "data" / name / "\x1b[32mbroken\n.wav").write_bytes(b"RIFF")
        (tmp_path / "data" / name / "\x07.m4a").touch()
    started = [sys.executable, "examples/train.py", "--data", tmp_path / "data", "--out", tmp_path / "out", "--cpu"]
    done = subprocess.run(
        [*started, "--batch", "64", "--workers", "0"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert all(letter.isprintable() for letter in (done.stdout + done.stderr).replace("\n", ""))
    lines = done.stderr.splitlines()
    for name in (r"\x1b[31mred", r"a\nb"):
        assert len([line for line in lines if line.startswith(f"  {name}: ")]) == 1
    assert [line.startswith("skipped ") for line in lines if "broken" in line] == [True, True]
    assert "\\x07.m4a" in done.stderr
