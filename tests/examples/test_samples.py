"""Samples of the training script: the same again from seed, epoch and index, cut to length, mixed, never fatal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("tqdm")

import soundfile

from training.data.augmentation import Augmentation
from training.data.clip_lists import Clip
from training.data.samples import Sample, Samples

RATE = 8000
SAMPLES = 400
SECONDS = SAMPLES / RATE
EVERYTHING = Augmentation(
    time_shift=0.01,
    mixup=0.4,
    noise=0.7,
    frequency_masks=2,
    frequency_width=4,
    time_masks=1,
    time_width=3,
    bins=16,
    frames=12,
)


def write(path: Path, waveform: Tensor) -> Path:
    """A WAV file of exactly the samples of `waveform`."""
    soundfile.write(path, waveform.numpy(), RATE, subtype="FLOAT")
    return path


@pytest.fixture
def waveforms() -> list[Tensor]:
    """Clips of noise, shorter than, as long as and longer than a sample."""
    lengths = (SAMPLES, 150, 1000, SAMPLES + 1, 399, 700)
    return [0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in lengths]


@pytest.fixture
def clips(waveforms: list[Tensor], tmp_path: Path) -> list[Clip]:
    """The files of `waveforms`, in three classes."""
    return [Clip(write(tmp_path / f"{i}.wav", waveform), (i % 3,)) for i, waveform in enumerate(waveforms)]


def samples(clips: list[Clip], augmentation: Augmentation | None = None, seed: int = 0) -> Samples:
    return Samples(clips, 3, RATE, SECONDS, augmentation, seed)


def assert_equal(found: dict[str, Any] | Sample, expected: dict[str, Any] | Sample) -> None:
    """The same samples, bit for bit."""
    assert found.keys() == expected.keys()
    for name in found:
        left, right = (torch.as_tensor(sample[name]) for sample in (found, expected))  # type: ignore[literal-required]
        assert left.dtype == right.dtype
        assert torch.equal(left, right), name


def test_an_item_has_what_a_batch_needs(clips: list[Clip]) -> None:
    item = samples(clips, EVERYTHING)[1]
    described = {name: (tuple(value.shape), value.dtype) for name, value in item.items() if isinstance(value, Tensor)}
    assert described == {
        "waveform": ((SAMPLES,), torch.float32),
        "target": ((3,), torch.float32),
        "masks": ((3, 4), torch.int64),
        "weight": ((), torch.float32),
    }
    assert item["index"] == 1
    assert item["weight"] == 1


def test_samples_are_the_same_again_in_another_order(clips: list[Clip]) -> None:
    first, second = samples(clips, EVERYTHING, seed=5), samples(clips, EVERYTHING, seed=5)
    expected = [first[i] for i in range(6)]
    torch.manual_seed(99)
    second.set_epoch(3)
    list(second)
    second.set_epoch(0)
    for i in (4, 0, 5, 0, 2, 1, 3):
        assert_equal(second[i], expected[i])


@pytest.mark.parametrize(("seed", "epoch"), [(6, 0), (5, 1)], ids=["seed", "epoch"])
def test_samples_differ_by_seed_and_epoch(seed: int, epoch: int, clips: list[Clip]) -> None:
    first, second = samples(clips, EVERYTHING, seed=5), samples(clips, EVERYTHING, seed=seed)
    second.set_epoch(epoch)
    for i in range(len(clips)):
        assert not torch.equal(first[i]["waveform"], second[i]["waveform"])
    assert any(not torch.equal(first[i]["masks"], second[i]["masks"]) for i in range(len(clips)))


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_that_stay_give_the_samples_of_each_epoch(context: str, workers: int, clips: list[Clip]) -> None:
    expected, loaded = samples(clips, EVERYTHING), samples(clips, EVERYTHING)
    loader: DataLoader[Sample] = DataLoader(
        loaded, batch_size=4, num_workers=workers, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 2):
        loaded.set_epoch(epoch)
        expected.set_epoch(epoch)
        batches = list(loader)
        assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
        for batch in batches:
            for row, index in enumerate(batch["index"].tolist()):
                assert_equal({name: values[row] for name, values in batch.items()}, expected[index])


def test_evaluation_pads_crops_the_middle_and_has_no_randomness(clips: list[Clip], waveforms: list[Tensor]) -> None:
    first, second = samples(clips, seed=1), samples(clips, seed=2)
    second.set_epoch(7)
    for i, waveform in enumerate(waveforms):
        assert_equal(first[i], second[i])
        start = max(len(waveform) - SAMPLES, 0) // 2
        middle = waveform[start : start + SAMPLES]
        assert torch.equal(first[i]["waveform"][: len(middle)], middle)
        assert not first[i]["waveform"][len(middle) :].any()
        assert first[i]["target"].tolist() == [float(label == i % 3) for label in range(3)]
        assert first[i]["masks"].shape == (0, 4)


def test_training_crops_anywhere_within_the_clip(clips: list[Clip], waveforms: list[Tensor]) -> None:
    data = samples(clips[2:3], Augmentation())
    windows = waveforms[2].unfold(0, SAMPLES, 1)
    starts = set()
    for epoch in range(200):
        data.set_epoch(epoch)
        (matches,) = (windows == data[0]["waveform"]).all(dim=1).nonzero(as_tuple=True)
        starts.add(int(matches))
    assert len(starts) > 150
    assert min(starts) < 30
    assert max(starts) > 570


def test_a_clip_is_resampled_to_the_rate(tmp_path: Path) -> None:
    times = np.arange(2 * SAMPLES) / (2 * RATE)
    soundfile.write(tmp_path / "tone.wav", np.sin(2 * math.pi * 500 * times), 2 * RATE, subtype="FLOAT")
    found = samples([Clip(tmp_path / "tone.wav", (0,))])[0]["waveform"]
    expected = torch.sin(2 * math.pi * 500 * torch.arange(SAMPLES, dtype=torch.float64) / RATE).float()
    torch.testing.assert_close(found[100:300], expected[100:300], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("time_shift", "most"), [(0.0, 0), (0.005, 40), (0.02, 160)])
def test_the_time_shift_moves_by_up_to_what_it_says(time_shift: float, most: int, tmp_path: Path) -> None:
    pulse = torch.zeros(SAMPLES)
    pulse[200] = 1.0
    data = samples([Clip(write(tmp_path / "pulse.wav", pulse), (0,))], Augmentation(time_shift=time_shift))
    offsets = []
    for epoch in range(300):
        data.set_epoch(epoch)
        (place,) = data[0]["waveform"].nonzero().flatten().tolist()
        offsets.append(place - 200)
    assert max(map(abs, offsets)) <= most
    assert max(offsets) >= 0.9 * most
    assert min(offsets) <= -0.9 * most


def test_a_mix_is_that_of_two_clips_and_of_their_targets(tmp_path: Path) -> None:
    shapes = torch.eye(3).repeat_interleave(SAMPLES // 4, dim=1)[:, :SAMPLES]
    clips = [Clip(write(tmp_path / f"{i}.wav", 0.5 * shape), (i,)) for i, shape in enumerate(shapes)]
    data = samples(clips, Augmentation(mixup=0.5))
    mixed = 0
    for epoch in range(100):
        data.set_epoch(epoch)
        item = data[epoch % 3]
        torch.testing.assert_close(item["target"].sum(), torch.tensor(1.0), atol=1e-6, rtol=0)
        expected = 0.5 * item["target"] @ torch.nn.functional.pad(shapes, (0, SAMPLES - shapes.shape[1]))
        torch.testing.assert_close(item["waveform"], expected, atol=1e-6, rtol=0)
        assert bool((item["target"] >= 0).all())
        mixed += int((item["target"] > 0.01).sum() == 2)
    assert 20 < mixed < 80


def test_the_noise_is_added_to_the_mix_as_loud_as_it_says(clips: list[Clip]) -> None:
    mix = {"time_shift": 0.01, "mixup": 0.4}
    quiet = samples(clips, Augmentation(**mix))
    loud = samples(clips, Augmentation(**mix, noise=1.0, noise_db=(12.0, 12.0)))
    for i in range(len(clips)):
        signal = quiet[i]["waveform"].double()
        noise = loud[i]["waveform"].double() - signal
        assert 20 * math.log10(float(signal.norm() / noise.norm())) == pytest.approx(12.0, abs=1e-3)


def test_a_clip_that_is_gone_is_silence_without_weight_and_named_once(
    clips: list[Clip], caplog: pytest.LogCaptureFixture
) -> None:
    data = samples(clips, EVERYTHING)
    clips[2].path.unlink()
    clips[4].path.write_bytes(b"RIFF")
    for index in (2, 4):
        item = data[index]
        assert not item["waveform"].any()
        assert item["weight"] == 0
        assert item["target"].sum() == 1
        assert item["masks"].shape == (3, 4)
        assert item["waveform"].shape == (SAMPLES,)
    for epoch in range(20):
        data.set_epoch(epoch)
        for index in (0, 1, 3, 5):
            assert data[index]["weight"] == 1
            assert bool(data[index]["waveform"].any())
    assert data.unreadable() == [clips[2].path, clips[4].path]
    named = [record.getMessage().partition(": ")[0] for record in caplog.records]
    assert named == [f"no sound of {clips[2].path}", f"no sound of {clips[4].path}"]


def test_a_mix_with_a_clip_that_is_gone_is_the_clip_alone(tmp_path: Path) -> None:
    tone = torch.full((SAMPLES,), 0.5)
    clips = [Clip(write(tmp_path / "here.wav", tone), (0,)), Clip(tmp_path / "gone.wav", (1,))]
    data = samples(clips, Augmentation(mixup=0.5))
    for epoch in range(10):
        data.set_epoch(epoch)
        item = data[0]
        torch.testing.assert_close(item["waveform"], tone, atol=1e-7, rtol=0)
        assert item["target"].tolist() == [1, 0, 0]
    assert data.unreadable() == [clips[1].path]


def test_clips_that_a_worker_could_not_read_are_counted_here(clips: list[Clip]) -> None:
    data = samples(clips)
    clips[3].path.unlink()
    loader: DataLoader[Sample] = DataLoader(data, batch_size=6, num_workers=1, multiprocessing_context="fork")
    (batch,) = loader
    assert batch["weight"].tolist() == [1, 1, 1, 0, 1, 1]
    assert data.unreadable() == [clips[3].path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "seconds: expected a time of at least one sample, got 0.0 s at 8000 Hz"),
        ({"seconds": math.nan}, "seconds: expected a time of at least one sample, got nan s"),
        ({"rate": 0}, "seconds: expected a time of at least one sample, got 1.0 s at 0 Hz"),
        ({"classes": 2}, "clips: expected labels of 0 up to 1, got 2: "),
    ],
    ids=["no-time", "nan", "rate", "label"],
)
def test_arguments_out_of_range_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Samples([Clip(Path("x.wav"), (2,))], **{"classes": 3, "rate": RATE, "seconds": 1.0, **options})


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_beyond_the_clips_raises(index: int, clips: list[Clip]) -> None:
    with pytest.raises(IndexError, match=f"^index: expected 0 up to 5, got {index}"):
        samples(clips)[index]
