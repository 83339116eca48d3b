"""Augmentation of the training script, function by function; and its figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from training import figures
from training.data import augmentation
from training.data.augmentation import Augmentation, apply_masks, draw_masks

WHOLE = torch.iinfo(torch.int64).max


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("offset", [0, 3, -3, 10, -10, 25, -25])
def test_a_moved_waveform_keeps_what_stays_inside(offset: int) -> None:
    waveform = torch.arange(1.0, 11.0)
    expected = [float(i - offset + 1) if 0 <= i - offset < 10 else 0.0 for i in range(10)]
    assert augmentation.moved(waveform, offset).tolist() == expected
    assert waveform.tolist() == list(range(1, 11))


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 25.0])
def test_noise_has_the_ratio_it_says(decibels: float) -> None:
    signal = torch.sin(torch.arange(4000, dtype=torch.float64))
    noise = augmentation.add_noise(signal, 1.0, (decibels, decibels), generator()) - signal
    assert 20 * math.log10(float(signal.norm() / noise.norm())) == pytest.approx(decibels, abs=1e-9)
    correlation = float(noise[1:] @ noise[:-1] / noise.square().sum())
    assert abs(correlation) < 0.1


def test_noise_comes_with_its_probability_and_from_its_range() -> None:
    signal, ratios = torch.ones(500), []
    for seed in range(400):
        noise = augmentation.add_noise(signal, 0.25, (5.0, 20.0), generator(seed)) - signal
        if noise.any():
            ratios.append(20 * math.log10(float(signal.norm() / noise.norm())))
    assert 70 < len(ratios) < 130
    assert 4.99 < min(ratios) < 7
    assert 18 < max(ratios) < 20.01


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_silence_stays_silent(probability: float) -> None:
    assert not augmentation.add_noise(torch.zeros(100), probability, (0.0, 0.0), generator()).any()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_of_a_mix_has_the_moments_of_its_distribution(alpha: float) -> None:
    source = generator()
    shares = torch.tensor([augmentation.mix_share(alpha, source) for _ in range(4000)], dtype=torch.float64)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)
    assert 0 <= float(shares.min()) < float(shares.max()) <= 1


def test_no_mix_has_the_share_one() -> None:
    assert augmentation.mix_share(0.0, generator()) == 1.0


def test_masks_lie_within_and_reach_every_width_and_border() -> None:
    settings = Augmentation(frequency_masks=2, frequency_width=5, time_masks=1, time_width=9, bins=16, frames=9)
    source = generator()
    drawn = torch.stack([draw_masks(settings, source) for _ in range(500)])
    for rows, first, most, size in ((drawn[:, :2], 0, 5, 16), (drawn[:, 2:], 2, 9, 9)):
        start, end = rows[..., first], rows[..., first + 1]
        assert (end - start).unique().tolist() == list(range(most + 1))
        assert (int(start.min()), int(end.max())) == (0, size)
        others = rows[..., 2 - first], rows[..., 3 - first]
        assert (int(others[0].max()), int(others[1].min())) == (0, WHOLE)


def test_masks_cover_what_they_say_and_nothing_else() -> None:
    spectrograms = torch.randn(2, 3, 6, 7)
    masks = torch.tensor([[[1, 3, 0, WHOLE], [0, WHOLE, 4, 5]], [[0, 0, 0, WHOLE], [0, WHOLE, 5, 7]]])
    expected = spectrograms.clone()
    expected[0, :, 1:3] = -4.0
    expected[0, :, :, 4] = -4.0
    expected[1, :, :, 5:] = -4.0
    found = apply_masks(spectrograms, masks, -4.0)
    assert torch.equal(found, expected)
    assert torch.equal(apply_masks(spectrograms, masks, torch.full((2, 1, 1, 1), -4.0)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_masks_keep_the_dtype_and_no_masks_change_nothing(dtype: torch.dtype) -> None:
    spectrograms = torch.randn(2, 1, 4, 5).to(dtype)
    assert apply_masks(spectrograms, torch.tensor([[[0, 1, 0, 1]]] * 2)).dtype == dtype
    assert apply_masks(spectrograms, torch.zeros(2, 0, 4, dtype=torch.int64)) is spectrograms


@pytest.mark.parametrize("shape", [(2, 4), (1, 3, 4), (2, 3, 3)], ids=str)
def test_masks_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^masks: expected \(batch, n, 4\) .* got"):
        apply_masks(torch.randn(2, 1, 4, 5), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    "settings",
    [
        {"time_shift": -0.1},
        {"mixup": math.inf},
        {"noise": 1.5},
        {"noise_db": (20.0, 10.0)},
        {"frequency_masks": -1},
        {"time_width": -1},
        {"frequency_width": 3, "frequency_masks": 1, "bins": 2},
        {"time_width": 0, "time_masks": 1, "frames": 8},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range_raise_with_their_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: expected"):
        Augmentation(**settings)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file in pixels."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def pixels(path: Path) -> Tensor:
    """Colours `(height, width, channels)` of a PNG file."""
    image = pytest.importorskip("matplotlib.image").imread(path)
    return torch.from_numpy(np.array(image))


def test_curves_have_a_panel_for_each_kind_that_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"epoch": e, "train_loss": 1 / e, "validation_loss": None if e == 2 else 2 / e} for e in (1, 2, 3)]
    figures.curves(rows, tmp_path / "one.png")
    full = [row | {"train_accuracy": 0.5, "learning_rate": 1e-3, "samples_per_second": 9.0} for row in rows]
    figures.curves(full, tmp_path / "four.png")
    one, four = size_of(tmp_path / "one.png"), size_of(tmp_path / "four.png")
    assert four == (2 * one[0], 2 * one[1])
    with pytest.raises(ValueError, match=r"^history: expected epochs with a number for loss, .* got no epoch"):
        figures.curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("count", [2, 10, 50])
def test_a_confusion_matrix_grows_with_its_classes(count: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "confusion.png"
    figures.confusion(np.eye(count, dtype=int) * 7, [f"class {i}" for i in range(count)], path)
    width, height = size_of(path)
    assert width > height >= max(600, 20 * count)


def test_a_confusion_matrix_takes_any_names(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ("Ba$$in", "$x", "two\nlines", "not utf-8 \udcff", "\x1b[0m", "日本語", "")
    figures.confusion(np.eye(len(names), dtype=int), names, tmp_path / "confusion.png")
    assert size_of(tmp_path / "confusion.png")


def test_a_confusion_matrix_shows_classes_without_clips_and_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / f"{name}.png" for name in ("right", "wrong", "nothing")]
    for path, matrix in zip(paths, ([[5, 0], [0, 5]], [[5, 0], [5, 0]], [[0, 0], [0, 0]]), strict=True):
        figures.confusion(torch.tensor(matrix), ("bell", "horn"), path)
    right, wrong, nothing = map(pixels, paths)
    assert not torch.equal(right, wrong)
    assert float(nothing[..., :3].mean()) > float(right[..., :3].mean())
    with pytest.raises(ValueError, match=r"^matrix: expected \(2, 2\) for the classes, got \(3, 3\)"):
        figures.confusion(np.zeros((3, 3)), ("bell", "horn"), paths[0])
