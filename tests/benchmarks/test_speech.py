"""The spoken words: files, voices, failures that eSpeak NG keeps to itself, and the same sound every time."""

from __future__ import annotations

import builtins
import os
import sys
import wave
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("espeakng_loader")
pytest.importorskip("tqdm")

from benchmarks.speech import spoken_words

WORDS = ("yes", "no", "marvin")
VOICES = {"train": ("en-us+f3",), "test": ("en+Annie",)}
ALL_VOICES = [voice for split in spoken_words.VOICES.values() for voice in split]


def read(path: Path) -> tuple[NDArray[np.int16], tuple[int, int, int]]:
    """Samples `(samples,)` of a WAV file, and its channels, bytes per sample and rate in hertz."""
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.int16)
        return samples, (file.getnchannels(), file.getsampwidth(), file.getframerate())


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file below `folder` by its path there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `WORDS` in `VOICES`."""
    return spoken_words.speak(tmp_path_factory.mktemp("spoken"), WORDS, VOICES)


@pytest.fixture(scope="module")
def all_voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one word in every voice."""
    return spoken_words.speak(tmp_path_factory.mktemp("voices"), ("zero",), spoken_words.VOICES)


def test_vocabulary_is_that_of_speech_commands() -> None:
    assert len(spoken_words.WORDS) == len(set(spoken_words.WORDS)) == 35


def test_one_file_per_split_word_and_voice_and_nothing_else(spoken: Path) -> None:
    expected = {f"train/{word}/en-us_f3.wav" for word in WORDS} | {f"test/{word}/en_Annie.wav" for word in WORDS}
    assert set(contents(spoken)) == expected


def test_files_are_mono_16_bit_at_the_rate_of_espeak(spoken: Path) -> None:
    assert {read(path)[1] for path in spoken.rglob("*.wav")} == {(1, 2, 22050)}


def test_words_last_between_a_tenth_of_a_second_and_a_second(spoken: Path) -> None:
    assert all(2205 < len(read(path)[0]) < 22050 for path in spoken.rglob("*.wav"))


def test_words_and_voices_differ(spoken: Path) -> None:
    clips = contents(spoken)
    assert len(set(clips.values())) == len(clips)


def test_a_clip_is_the_same_again_whatever_was_spoken_before(spoken: Path, tmp_path: Path) -> None:
    again = spoken_words.speak(tmp_path / "again", tuple(reversed(WORDS)), dict(reversed(VOICES.items())))
    assert contents(again) == contents(spoken)


def test_a_clip_alone_is_the_same_as_among_others(spoken: Path, tmp_path: Path) -> None:
    alone = spoken_words.speak(tmp_path, ("no",), {"test": VOICES["test"]})
    assert contents(alone)["test/no/en_Annie.wav"] == contents(spoken)["test/no/en_Annie.wav"]


def test_existing_files_stay_and_missing_ones_are_added(tmp_path: Path) -> None:
    kept = tmp_path / "train" / "yes" / "en-us_f3.wav"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"mine")
    spoken_words.speak(tmp_path, ("yes", "no"), {"train": ("en-us+f3",)})
    assert kept.read_bytes() == b"mine"
    assert set(contents(tmp_path)) == {"train/yes/en-us_f3.wav", "train/no/en-us_f3.wav"}


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spoken_words.speak(tmp_path, ("yes",), {"train": ("en-us+f3",)})
    assert contents(tmp_path) == {}


def test_rates_and_pitches_make_files_of_their_own_and_change_what_they_say(spoken: Path, tmp_path: Path) -> None:
    voices = {"test": VOICES["test"]}
    spoken_words.speak(tmp_path, ("marvin",), voices, rates=(120, 175, 260), pitches=(20, 50), progress=False)
    found = {path.name: read(path)[0] for path in tmp_path.rglob("*.wav")}
    manners = {(rate, pitch): f"en_Annie_{rate}_{pitch}.wav" for rate in (120, 175, 260) for pitch in (20, 50)}
    manners[175, 50] = "en_Annie.wav"
    assert found.keys() == set(manners.values())
    assert (tmp_path / "test/marvin/en_Annie.wav").read_bytes() == contents(spoken)["test/marvin/en_Annie.wav"]
    lengths = [len(found[manners[rate, 50]]) for rate in (260, 175, 120)]
    assert lengths[0] < 0.9 * lengths[1] < 0.81 * lengths[2]
    assert len({samples.tobytes() for samples in found.values()}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rates": (79,)}, "rates: expected 80 to 450, got 79"), ({"pitches": (101,)}, "pitches: expected 0 to 100, got")],
    ids=["rate", "pitch"],
)
def test_manners_out_of_range_raise(options: dict[str, tuple[int, ...]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        spoken_words.speak(tmp_path, WORDS, VOICES, **options)  # type: ignore[arg-type]
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("voice", ["nosuch", "en-gb", "en-us+nosuch"], ids=["language", "accent", "variant"])
def test_unknown_voice_raises_with_its_name(voice: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=voice.replace("+", r"\+")):
        spoken_words.speak(tmp_path, ("yes",), {"train": ("en-us", voice)})
    assert set(contents(tmp_path)) == {"train/yes/en-us.wav"}


def test_silence_raises_with_voice_and_word(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="voice 'en-us', word '-': expected sound"):
        spoken_words.speak(tmp_path, ("-",), {"train": ("en-us",)})


@pytest.mark.parametrize(
    ("words", "voices", "name"),
    [
        (("../up",), VOICES, "words"),
        (("",), VOICES, "words"),
        (WORDS, {"train": ("en/us",)}, "voices"),
        (WORDS, {"train": ("en_us+f3",)}, "voices"),
        (WORDS, {"..": ("en-us",)}, "voices"),
    ],
    ids=["word-path", "word-empty", "voice-path", "voice-underscore", "split-path"],
)
def test_names_that_make_no_file_names_raise(
    words: tuple[str, ...], voices: dict[str, tuple[str, ...]], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        spoken_words.speak(tmp_path, words, voices)
    assert contents(tmp_path) == {}


def test_missing_package_raises_with_the_command_only_if_needed(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without_package(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "espeakng_loader":
            raise ImportError(name)
        return imported(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "espeakng_loader", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_package)
    with pytest.raises(ImportError, match=r"pip install septr_fast\[speech\], or pass a folder of WAV files"):
        spoken_words.speak(tmp_path, WORDS, VOICES)
    assert spoken_words.speak(spoken, WORDS, VOICES) == spoken


def test_voices_and_their_variants_are_in_one_split_only() -> None:
    assert set(spoken_words.VOICES) == {"train", "validation", "test"}
    variants = {split: {voice.partition("+")[2] for voice in voices} for split, voices in spoken_words.VOICES.items()}
    assert all(variants[first].isdisjoint(variants[second]) for first, second in combinations(variants, 2))
    assert len(ALL_VOICES) == len({voice.partition("+")[2] for voice in ALL_VOICES})


@pytest.mark.parametrize("voice", ALL_VOICES)
def test_every_voice_is_found_and_sounds(voice: str, all_voices: Path) -> None:
    (path,) = all_voices.rglob(f"{voice.replace('+', '_')}.wav")
    samples, _ = read(path)
    assert 2205 < len(samples) < 22050
    assert np.abs(samples.astype(np.int32)).max() > 3000


def test_no_two_voices_sound_the_same(all_voices: Path) -> None:
    spectra = {
        path.stem: np.abs(np.fft.rfft(read(path)[0].astype(np.float64), 22050)) for path in all_voices.rglob("*.wav")
    }
    shapes = {name: spectrum / np.linalg.norm(spectrum) for name, spectrum in spectra.items()}
    closest = max((float(shapes[first] @ shapes[second]), first, second) for first, second in combinations(shapes, 2))
    assert closest[0] < 0.95, closest
