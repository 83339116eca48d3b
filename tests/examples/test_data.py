"""Data sets of the training script: found in the layout of each, and split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("soundfile")
pytest.importorskip("tqdm")

import soundfile
from support.data_folders import EMOTIONS, RATE, class_folders, crema_d, esc50, names, speech_commands, write_wav

from training.data import scan
from training.data.data_sets import LAYOUTS, SPLITS, find


def test_speech_commands_splits_by_its_own_lists(tmp_path: Path) -> None:
    data = find(speech_commands(tmp_path))
    assert (data.name, data.classes) == ("speech-commands", ("bed", "cat", "dog"))
    for split, speaker in (("train", "aa11"), ("validation", "bb22"), ("test", "cc33")):
        expected = {f"{word}/{speaker}_nohash_{take}.wav": word for word in data.classes for take in range(2)}
        assert names(data, split, tmp_path) == expected


def test_speech_commands_of_some_words_leaves_the_other_lines_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(speech_commands(tmp_path) / "dog")
    data = find(tmp_path)
    assert data.classes == ("bed", "cat")
    assert {split: len(clips) for split, clips in data.splits.items()} == dict.fromkeys(SPLITS, 4)
    assert "left out 2 files of testing_list.txt without a class folder" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("testing_list.txt", None, "expected the list .*testing_list.txt, there is none"),
        ("testing_list.txt", "bed\n", "line 1 of .*testing_list.txt: expected word/file, got 'bed'"),
        ("testing_list.txt", "bed/bb22_nohash_0.wav\n", "both name 'bed/bb22_nohash_0.wav'"),
    ],
    ids=["missing", "no-folder", "shared"],
)
def test_broken_lists_of_speech_commands_raise(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    listed = speech_commands(tmp_path) / name
    if text is None:
        listed.unlink()
    else:
        listed.write_text(text)
    with pytest.raises(ValueError, match=f"^folder: .*{message}"):
        find(tmp_path)


@pytest.mark.parametrize("fold", [1, 4, 5])
def test_esc50_tests_on_the_fold_and_validates_on_the_next(fold: int, tmp_path: Path) -> None:
    data = find(esc50(tmp_path), fold=fold)
    assert (data.name, data.classes) == ("esc50", ("dog", "cat"))
    folds = {split: {int(clip.path.name[0]) for clip in clips} for split, clips in data.splits.items()}
    following = fold % 5 + 1
    assert folds == {"train": {1, 2, 3, 4, 5} - {fold, following}, "validation": {following}, "test": {fold}}
    assert names(data, "test", tmp_path) == {f"audio/{fold}-10{fold}-A-{t}.wav": c for t, c in ((0, "dog"), (7, "cat"))}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x.wav,6,0,dog,,,", "line 12 of .*esc50.csv: expected a file name, a fold of 1 to 5"),
        ("x.wav,1,zero,dog,,,", "line 12 of .*esc50.csv: expected a file name, a fold of 1 to 5"),
        ("x.wav,1", "line 12 of .*esc50.csv: expected a file name, a fold of 1 to 5"),
        ("x.wav,1,0,horse,,,", "line 12 of .*esc50.csv: expected target 0 to be 'dog' as before, got 'horse'"),
    ],
    ids=["fold", "target", "short", "category"],
)
def test_broken_rows_of_esc50_raise_with_their_line(row: str, message: str, tmp_path: Path) -> None:
    with (esc50(tmp_path) / "meta" / "esc50.csv").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(ValueError, match=f"^folder: {message}"):
        find(tmp_path)


def test_esc50_without_a_column_or_the_table_raises(tmp_path: Path) -> None:
    table = esc50(tmp_path) / "meta" / "esc50.csv"
    table.write_text("filename,fold,category\n")
    with pytest.raises(ValueError, match=r"^folder: expected the columns .*, missing \['target'\]"):
        find(tmp_path)
    table.unlink()
    with pytest.raises(ValueError, match=r"^folder: expected the table .*esc50.csv, there is none"):
        find(tmp_path, "esc50")


@pytest.mark.parametrize("top", ["", "AudioWAV"])
def test_crema_d_takes_the_emotion_and_never_shares_an_actor(top: str, tmp_path: Path) -> None:
    data = find(crema_d(tmp_path) / top)
    assert (data.name, data.classes) == ("crema-d", EMOTIONS)
    actors = {split: {clip.path.name[:4] for clip in clips} for split, clips in data.splits.items()}
    assert {split: len(found) for split, found in actors.items()} == {"train": 16, "validation": 2, "test": 2}
    assert len(set.union(*actors.values())) == 20
    for clips in data.splits.values():
        assert all(clip.path.name.split("_")[2] == data.classes[clip.labels[0]] for clip in clips)
        assert len(clips) == 3 * len({clip.path.name[:4] for clip in clips})


def test_crema_d_chooses_the_same_actors_again_and_others_for_another_seed(tmp_path: Path) -> None:
    crema_d(tmp_path)
    assert find(tmp_path, seed=3) == find(tmp_path, seed=3)
    assert find(tmp_path, seed=3).splits["test"] != find(tmp_path, seed=4).splits["test"]
    larger = find(tmp_path, shares=(0.2, 0.3)).splits
    assert [len(larger[split]) for split in SPLITS] == [30, 12, 18]


@pytest.mark.parametrize("count", [1, 2])
def test_crema_d_of_few_actors_trains_first_and_says_so(
    count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = find(crema_d(tmp_path, range(1001, 1001 + count)))
    assert [len(data.splits[split]) for split in SPLITS] == [3, 3 * (count - 1), 0]
    actors = ", ".join(map(str, range(1001, 1001 + count)))
    assert f"splits are by actor, {count} here ({actors}): add clips of more actors, or" in caplog.text


def test_crema_d_of_actors_with_emotions_of_their_own_says_why_it_cannot_be_split(tmp_path: Path) -> None:
    for actor, emotion in ((1001, "ANG"), (1002, "SAD")):
        write_wav(tmp_path / f"{actor}_DFA_{emotion}_XX.wav")
    with pytest.raises(ValueError, match=r"got none of '(ANG|SAD)': splits are by actor, 2 here \(1001, 1002\): add"):
        find(tmp_path)


def test_crema_d_leaves_other_names_out_and_raises_without_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_wav(crema_d(tmp_path) / "AudioWAV" / "1001_DFA_JOY_XX.wav")
    assert find(tmp_path).classes == EMOTIONS
    assert "left out 1 files without a name like 1001_DFA_ANG_XX.wav" in caplog.text
    with pytest.raises(ValueError, match=r"^folder: expected files with names like 1001_DFA_ANG_XX\.wav"):
        find(class_folders(tmp_path / "other", count=1), "crema-d")


def test_class_folders_are_split_by_speaker_whatever_other_files_there_are(tmp_path: Path) -> None:
    few = find(class_folders(tmp_path, count=40), seed=1)
    splits = {split: names(few, split, tmp_path) for split in SPLITS}
    assert few.classes == ("bell", "horn")
    assert sum(map(len, splits.values())) == 160
    assert 8 <= len(splits["test"]) <= 28
    assert 8 <= len(splits["validation"]) <= 28
    speakers = {split: {name.split("_nohash_")[0] for name in found} for split, found in splits.items()}
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) == 80
    more = find(class_folders(tmp_path, count=60), seed=1)
    for split in SPLITS:
        assert splits[split].keys() < names(more, split, tmp_path).keys()


def test_class_folders_split_otherwise_by_seed_and_shares(tmp_path: Path) -> None:
    class_folders(tmp_path, count=10)
    assert find(tmp_path, seed=1).splits != find(tmp_path, seed=2).splits
    whole = find(tmp_path, shares=(0, 0))
    assert [len(whole.splits[split]) for split in SPLITS] == [40, 0, 0]


@pytest.mark.parametrize("validation", ["validation", "valid", "val", None])
def test_class_folders_may_lie_in_folders_of_splits(validation: str | None, tmp_path: Path) -> None:
    expected: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for split, top in (("train", "train"), ("validation", validation), ("test", "test")):
        for name in ("bell", "horn") if top else ():
            write_wav(tmp_path / str(top) / name / "deeper" / "1.wav")
            expected[split][f"{top}/{name}/deeper/1.wav"] = name
    data = find(tmp_path)
    assert {split: names(data, split, tmp_path) for split in SPLITS} == expected


def test_a_class_named_train_is_no_folder_of_a_split(tmp_path: Path) -> None:
    assert find(class_folders(tmp_path, ("train", "aeroplane"))).classes == ("aeroplane", "train")


def test_what_lies_about_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folders(tmp_path, count=20)
    write_wav(tmp_path / "stray.wav")
    write_wav(tmp_path / "_noise" / "hum.wav")
    write_wav(tmp_path / ".trash" / "old.wav")
    (tmp_path / "bell" / "notes.txt").write_text("text")
    (tmp_path / "bell" / ".DS_Store").write_text("")
    (tmp_path / "empty").mkdir()
    data = find(tmp_path)
    assert (data.classes, sum(map(len, data.splits.values()))) == (("bell", "horn"), 80)
    assert "left out 1 files beside the class folders" in caplog.text
    assert "left out 1 files that are no audio by their names" in caplog.text
    assert "left out 1 folders without audio files" in caplog.text
    assert all(name in caplog.text for name in ("stray.wav", "notes.txt", "empty"))


def test_other_audio_formats_are_clips(tmp_path: Path) -> None:
    for name in ("bell", "horn"):
        (tmp_path / name).mkdir()
        for ending in ("FLAC", "ogg"):
            soundfile.write(tmp_path / name / f"1.{ending}", np.zeros(400), RATE)
    data = find(tmp_path, shares=(0, 0))
    assert len(data.splits["train"]) == 4
    assert scan.scan(data, progress=False) == (data, [])


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["bell/1.wav"], {}, "folder: expected at least 2 classes in .*, got 1: 'bell'"),
        (["train/bell/1.wav", "test/bell/1.wav"], {}, "folder: expected at least 2 classes in .*, got 1: 'bell'"),
        (["a/1.wav", "b/1.wav"], {"layout": "wav"}, "layout: expected one of auto, .*, got 'wav'"),
        (["a/1.wav", "b/1.wav"], {"layout": "speech-commands"}, "folder: expected the list .*validation_list.txt"),
        (["a/1.wav", "b/1.wav"], {"shares": (0.5, 0.5)}, "shares: expected two of at least 0 with a sum below 1"),
        (
            ["train/a/1.wav", "train/b/1.wav", "test/c/1.wav"],
            {},
            "folder: expected clips of every class .* none of 'c'",
        ),
        (["train/a/1.wav", "val/b/1.wav", "valid/c/1.wav"], {}, "folder: expected one folder for the validation split"),
        (["a/1.wav", "b/1.wav"], {"layout": "esc50", "fold": 6}, "fold: expected 1 to 5, got 6"),
        (["1.wav"], {}, "folder: expected a folder of audio files for each class in .*, found none"),
    ],
    ids=["one-class", "one-class-split", "layout", "lists", "shares", "test-only", "two-folders", "fold", "flat"],
)
def test_folders_that_cannot_be_used_raise(
    files: list[str], options: dict[str, object], message: str, tmp_path: Path
) -> None:
    for name in files:
        write_wav(tmp_path / name)
    with pytest.raises(ValueError, match=f"^{message}"):
        find(tmp_path, **options)  # type: ignore[arg-type]


def test_a_folder_that_is_none_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^folder: expected the folder of a data set, got .*nowhere"):
        find(tmp_path / "nowhere")


def test_layouts_are_those_that_find_takes(tmp_path: Path) -> None:
    makers = {"speech-commands": speech_commands, "esc50": esc50, "crema-d": crema_d, "folders": class_folders}
    assert set(LAYOUTS) == {"auto", "splits", *makers}
    for layout, make in makers.items():
        folder = tmp_path / layout
        folder.mkdir()
        assert find(make(folder), layout) == find(folder)
        assert find(folder).name == layout
