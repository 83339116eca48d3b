"""Front-ends against librosa: values, frames, standardization, gradients, export; statistics of a data set."""

from __future__ import annotations

import inspect
import json
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.versions import needs_torch
from torch import Tensor

from septr_fast import ComplexSpectrogram, LogMel, dataset_statistics
from septr_fast.audio import front_ends
from septr_fast.audio.mel import hertz_to_mel, mel_edges, mel_filters, mel_to_hertz
from septr_fast.audio.spectrogram import Spectrogram

RATE = 8000

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "window-and-hop": {"fft_size": 512, "window_length": 400, "hop": 160, "mels": 40},
    "odd": {"fft_size": 401, "window_length": 255, "hop": 77, "mels": 24},
    "htk": {"scale": "htk", "mels": 64},
    "heights-of-1": {"norm": None, "mels": 64},
    "htk-heights-of-1": {"scale": "htk", "norm": None, "mels": 40},
    "amplitude": {"power": 1.0, "mels": 40},
    "power-1.5": {"power": 1.5, "mels": 40},
    "band": {"low": 300.0, "high": 3400.0, "mels": 32},
    "not-centred": {"center": False, "fft_size": 320, "hop": 160, "mels": 24},
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Float64 noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mel_spectrogram(waveform: Tensor, settings: dict[str, Any]) -> Tensor:
    """`(batch, 1, mels, frames)` by librosa."""
    librosa = pytest.importorskip("librosa")
    given = {"fft_size": 1024, "mels": 128, **settings}
    spectrograms = librosa.feature.melspectrogram(
        y=waveform.numpy(),
        sr=RATE,
        n_fft=given["fft_size"],
        hop_length=given.get("hop") or given["fft_size"] // 4,
        win_length=given.get("window_length"),
        center=given.get("center", True),
        power=given.get("power", 2.0),
        n_mels=given["mels"],
        fmin=given.get("low", 0.0),
        fmax=given.get("high"),
        htk=given.get("scale") == "htk",
        norm=given.get("norm", "slaney"),
    )
    return torch.from_numpy(np.ascontiguousarray(spectrograms))[:, None]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_mel_spectrograms_equal_those_of_librosa(settings: dict[str, Any]) -> None:
    waveform = noise(3, 2 * RATE + 77)
    expected = mel_spectrogram(waveform, settings)
    own = LogMel(RATE, **settings, log=None)
    torch.testing.assert_close(own(waveform), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(own(waveform.float()), expected.float(), rtol=1e-4, atol=0)
    logarithms = LogMel(RATE, **settings)(waveform.float())
    torch.testing.assert_close(logarithms, expected.clamp(min=1e-10).log().float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("top_db", [None, 30.0])
def test_decibels_equal_those_of_librosa(power: float, top_db: float | None) -> None:
    librosa = pytest.importorskip("librosa")
    waveform = torch.cat([noise(2, RATE // 2), torch.zeros(2, RATE // 2)], dim=1) * torch.tensor([[1.0], [0.01]])
    mel = LogMel(RATE, 40, power=power, log=None)(waveform)
    floor = 1e-10 if power == 2 else 1e-5
    convert = librosa.power_to_db if power == 2 else librosa.amplitude_to_db
    expected = torch.from_numpy(np.stack([convert(clip.numpy(), amin=floor, top_db=top_db) for clip in mel]))
    own = LogMel(RATE, 40, power=power, log="decibel", floor=floor, top_db=top_db)
    torch.testing.assert_close(own(waveform), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", "parts"])
def test_complex_spectrograms_equal_those_of_librosa(center: bool, magnitude: bool) -> None:
    librosa = pytest.importorskip("librosa")
    waveform = noise(2, RATE)
    spectra = librosa.stft(waveform.numpy(), n_fft=320, hop_length=150, win_length=300, center=center)
    parts = [spectra.real, spectra.imag, *([np.abs(spectra)] if magnitude else [])]
    settings: dict[str, Any] = {"fft_size": 320, "hop": 150, "window_length": 300, "center": center}
    own = ComplexSpectrogram(RATE, magnitude, **settings)(waveform)
    torch.testing.assert_close(own, torch.from_numpy(np.stack(parts, axis=1)), rtol=1e-5, atol=1e-5)


def test_five_seconds_are_499_frames_of_161_bins_time_first() -> None:
    settings: dict[str, Any] = {"fft_size": 320, "hop": 160, "center": False}
    waveform = noise(2, 5 * 16000).float()
    front_end = ComplexSpectrogram(16000, **settings, frames=499, time_first=True)
    assert front_end.size == (3, 499, 161)
    assert front_end.span == 5 * 16000
    torch.testing.assert_close(front_end(waveform), ComplexSpectrogram(16000, **settings)(waveform).transpose(2, 3))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("samples", [1, 100, 1999, 2000, 2001, 9000])
@pytest.mark.parametrize("frames", [1, 7, 25])
def test_fixed_frames_are_the_first_and_then_silence(frames: int, samples: int, center: bool) -> None:
    settings: dict[str, Any] = {"fft_size": 128, "hop": 80, "center": center}
    waveform = noise(2, samples)
    long = torch.cat([waveform, torch.zeros(2, 4000)], dim=1)
    own = LogMel(RATE, 16, **settings, frames=frames)(waveform)
    assert own.shape == (2, 1, 16, frames)
    torch.testing.assert_close(own, LogMel(RATE, 16, **settings)(long)[..., :frames])


@pytest.mark.parametrize("center", [True, False])
def test_span_is_what_the_frames_stand_for(center: bool) -> None:
    front_end = LogMel(RATE, 16, fft_size=128, hop=80, center=center, frames=25)
    free = LogMel(RATE, 16, fft_size=128, hop=80, center=center)
    assert free(noise(1, front_end.span - 1)).shape[3] == 25 - (not center)
    assert free(noise(1, front_end.span)).shape[3] == 25 + center


@pytest.mark.parametrize("front_end", [LogMel(RATE, 24), ComplexSpectrogram(RATE)], ids=["log-mel", "complex"])
def test_a_clip_is_the_same_in_any_batch(front_end: Spectrogram) -> None:
    waveform = noise(4, 3000)
    alone = torch.cat([front_end(clip[None]) for clip in waveform])
    torch.testing.assert_close(front_end(waveform), alone, rtol=1e-12, atol=1e-12)


def test_standardized_per_clip_whatever_the_volume() -> None:
    waveform = noise(3, RATE).float() * torch.tensor([[1.0], [0.01], [0.0]])
    values = LogMel(RATE, 40, standardize=True)(waveform)
    torch.testing.assert_close(values[:2].mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values[:2].var(dim=(1, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.equal(values[2], torch.zeros_like(values[2]))


@pytest.mark.parametrize("front_end", [LogMel, ComplexSpectrogram])
def test_quiet_is_not_constant(front_end: type[LogMel] | type[ComplexSpectrogram]) -> None:
    options: dict[str, Any] = {"log": None} if front_end is LogMel else {}
    values = front_end(RATE, standardize=True, **options)(noise(2, RATE) * 1e-6)
    torch.testing.assert_close(values.var(dim=(1, 2, 3), correction=0), torch.ones(2, dtype=torch.float64))


def test_standardized_by_stored_statistics_of_each_channel() -> None:
    waveform = noise(2, RATE)
    plain = ComplexSpectrogram(RATE)(waveform)
    mean, deviation = [0.5, -0.25, 2.0], [1.0, 2.0, 4.0]
    own = ComplexSpectrogram(RATE, mean=mean, deviation=deviation)(waveform)
    for channel in range(3):
        torch.testing.assert_close(own[:, channel], (plain[:, channel] - mean[channel]) / deviation[channel])


def test_own_statistics_standardize_the_data_set() -> None:
    waveform = noise(6, RATE)
    found = dataset_statistics(LogMel(RATE, 40)(batch) for batch in waveform.split(2))
    values = LogMel(RATE, 40, mean=found.mean, deviation=found.deviation)(waveform)
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "front_end",
    [
        LogMel(RATE, 4, fft_size=32, hop=16, standardize=True),
        LogMel(RATE, 4, fft_size=32, hop=16, power=1.0, log="decibel", top_db=20.0),
        ComplexSpectrogram(RATE, fft_size=16, hop=8, frames=5, time_first=True),
    ],
    ids=["log-mel", "decibel", "complex"],
)
def test_gradients_are_those_of_finite_differences(front_end: Spectrogram) -> None:
    waveform = noise(2, 24).requires_grad_()
    assert torch.autograd.gradcheck(front_end.double(), waveform)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("log", ["natural", None])
def test_gradients_of_silence_are_finite(log: str | None, power: float, standardize: bool) -> None:
    waveform = torch.zeros(2, 2000, requires_grad=True)
    LogMel(RATE, 16, power=power, log=log, standardize=standardize)(waveform).sum().backward()
    assert waveform.grad is not None
    assert bool(waveform.grad.isfinite().all())


def test_works_in_float32_under_autocast_and_for_half_precision() -> None:
    waveform = noise(2, RATE).bfloat16()
    front_end = LogMel(RATE, 40)
    expected = front_end(waveform.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(front_end(waveform.float()), expected)
    assert torch.equal(front_end(waveform), expected)


def test_the_state_dict_is_empty_and_the_settings_hold_all() -> None:
    waveform = noise(2, RATE).float()
    for front_end in (
        LogMel(RATE, 32, hop=100, low=50.0, scale="htk", norm=None, power=1.0, log="decibel", top_db=60.0, frames=40),
        LogMel(RATE, 32, standardize=True, center=False, window_length=300, floor=1e-6, time_first=True),
        ComplexSpectrogram(RATE, False, mean=(0.0, 1.0), deviation=(2.0, 0.5), time_first=True),
    ):
        assert not front_end.state_dict()
        again = front_ends.build(json.loads(json.dumps(front_end.settings)))
        assert again.settings == front_end.settings
        assert torch.equal(again(waveform), front_end(waveform))


@pytest.mark.parametrize("kind", [LogMel, ComplexSpectrogram])
def test_every_argument_is_a_setting(kind: type[LogMel] | type[ComplexSpectrogram]) -> None:
    assert set(kind().settings) == {"name", *inspect.signature(kind).parameters}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "front_end: expected the name of one of LogMel, ComplexSpectrogram, got None"),
        ({"name": ["LogMel"]}, "front_end: expected the name"),
        ({"name": "LogMel", "colour": 1}, "front_end: LogMel does not take these settings: .*colour"),
        ({"name": "LogMel", "mels": 0}, "mels: expected"),
        ({"name": "LogMel", "hop": "8"}, "hop: expected"),
        ({"name": "LogMel", "power": "2"}, "power: expected"),
        ({"name": "LogMel", "mean": {}, "deviation": {}}, "mean: expected a number"),
    ],
    ids=["no-name", "list", "unknown", "out-of-range", "text", "text-power", "dict"],
)
def test_settings_that_fit_no_front_end_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        front_ends.build(settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"sample_rate": 0}, "sample_rate"),
        ({"mels": 0}, "mels"),
        ({"fft_size": 0}, "fft_size"),
        ({"hop": 0}, "hop"),
        ({"window_length": 0}, "window_length"),
        ({"window_length": 2000}, "window_length"),
        ({"frames": 0}, "frames"),
        ({"low": -1.0}, "low"),
        ({"low": 4000.0}, "low"),
        ({"high": 4001.0}, "high"),
        ({"low": 500.0, "high": 400.0}, "low"),
        ({"scale": "bark"}, "scale"),
        ({"norm": "l2"}, "norm"),
        ({"power": 0.5}, "power"),
        ({"power": math.nan}, "power"),
        ({"log": "log2"}, "log"),
        ({"floor": 0.0}, "floor"),
        ({"top_db": 80.0}, "top_db"),
        ({"top_db": 0.0, "log": "decibel"}, "top_db"),
        ({"mean": 0.0}, "deviation"),
        ({"mean": 0.0, "deviation": 0.0}, "deviation"),
        ({"mean": math.inf, "deviation": 1.0}, "mean"),
        ({"mean": (0.0, 0.0), "deviation": 1.0}, "mean"),
        ({"mean": 0.0, "deviation": 1.0, "standardize": True}, "standardize"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_raise_with_their_name(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        LogMel(**{"sample_rate": RATE, **settings})


@pytest.mark.parametrize(
    ("waveform", "error", "message"),
    [
        (torch.zeros(50), ValueError, r"expected \(batch, samples\), got \(50,\): a single clip is clip\[None\]"),
        (torch.zeros(2, 1, 50), ValueError, r"expected \(batch, samples\), got \(2, 1, 50\)"),
        (torch.zeros(2, 0), ValueError, r"expected at least 1 samples"),
        (torch.zeros(2, 50, dtype=torch.int16), TypeError, r"expected a floating-point tensor .* got torch.int16"),
        ([[0.0]], TypeError, r"expected a floating-point tensor .* got list"),
    ],
    ids=["one-clip", "channels", "empty", "integers", "list"],
)
def test_wrong_waveforms_raise(waveform: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^waveform: {message}"):
        LogMel(RATE, 16)(waveform)


def test_too_short_without_centring_raises() -> None:
    front_end = ComplexSpectrogram(RATE, fft_size=320, center=False)
    assert front_end(torch.zeros(1, 320)).shape[3] == 1
    with pytest.raises(ValueError, match=r"^waveform: expected at least 320 samples"):
        front_end(torch.zeros(1, 319))


def test_size_needs_a_number_of_frames() -> None:
    with pytest.raises(ValueError, match=r"^frames: expected a number, got None"):
        _ = LogMel(RATE).size


def test_dead_filters_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="septr_fast"):
        LogMel(16000, 128)
        assert not caplog.records
        LogMel(16000, 128, fft_size=256)
    dead = int((mel_filters(128, 256, 16000).sum(dim=1) == 0).sum())
    (record,) = caplog.records
    assert dead > 0
    assert record.getMessage().startswith(f"{dead} of 128 mel filters")


FRONT_ENDS = {
    "log-mel": LogMel(RATE, 24, frames=20, standardize=True),
    "decibel": LogMel(RATE, 24, log="decibel", top_db=60.0, mean=-30.0, deviation=10.0),
    "complex": ComplexSpectrogram(RATE, frames=20, time_first=True),
}


@needs_torch("2.8", "exporting a front-end for any batch")
@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS.keys())
def test_can_be_exported_for_any_batch(front_end: Spectrogram) -> None:
    example, other = noise(2, 3000).float(), noise(5, 3000, seed=1).float()
    exported = torch.export.export(front_end, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(other), front_end(other))


@needs_torch("2.9", "exporting a front-end for any number of samples")
def test_can_be_exported_for_any_number_of_samples() -> None:
    front_end = LogMel(16000, 16, fft_size=256)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=256)},)
    exported = torch.export.export(front_end, (torch.randn(2, 4000),), dynamic_shapes=shapes).module()
    for batch, samples in ((1, 4000), (3, 9001), (2, 300)):
        waveform = torch.randn(batch, samples)
        torch.testing.assert_close(exported(waveform), front_end(waveform))


@needs_torch("2.7", "compiling a front-end for a batch of varying size")
@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS.keys())
def test_can_be_compiled_as_one_graph(front_end: Spectrogram) -> None:
    waveform = noise(2, 3000).float()
    compiled = torch.compile(front_end, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(waveform), front_end(waveform))


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_scales_equal_those_of_librosa_and_have_an_inverse(scale: str) -> None:
    librosa = pytest.importorskip("librosa")
    hertz = [0.0, 440.0, 999.0, 1000.0, 6400.0]
    mels = [hertz_to_mel(value, scale) for value in hertz]
    assert mels == pytest.approx(librosa.hz_to_mel(np.array(hertz), htk=scale == "htk").tolist())
    back = mel_to_hertz(torch.tensor(mels, dtype=torch.float64), scale)
    assert back.tolist() == pytest.approx(hertz)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_corners_span_the_band(scale: str) -> None:
    edges = mel_edges(10, RATE, 100.0, 3000.0, scale)
    assert len(edges) == 12
    assert edges[[0, -1]].tolist() == pytest.approx([100.0, 3000.0])
    assert bool((edges.diff() > 0).all())


@pytest.mark.parametrize("cuts", [[1] * 12, [12], [5, 7], [1, 1, 10], [11, 1]], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["centred", "far-from-zero"])
def test_statistics_are_those_of_the_whole_whatever_the_cuts(cuts: list[int], offset: float) -> None:
    scales = torch.tensor([1.0, 0.01, 3.0], dtype=torch.float64)[:, None, None]
    values = noise(12, 3, 5, 7) * scales + offset
    found = dataset_statistics(values.split(cuts))
    assert found.count == 12 * 5 * 7
    assert found.mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-10, abs=1e-12)
    deviation = values.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    assert found.deviation == pytest.approx(deviation.tolist(), rel=1e-8)


def test_statistics_of_float32_spectrograms_of_different_lengths() -> None:
    batches = [noise(2, 1, 4, frames).float() + frames for frames in (3, 10, 40)]
    values = torch.cat([batch.flatten() for batch in batches]).double()
    found = dataset_statistics(batches)
    assert found.mean == pytest.approx([float(values.mean())], rel=1e-12)
    assert found.deviation == pytest.approx([float(values.std(correction=0))], rel=1e-12)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "expected at least one batch"),
        ([torch.zeros(2, 4, 4)], r"expected floating-point .* as batch 0"),
        ([torch.zeros(1, 1, 2, 2), torch.zeros(0, 1, 2, 2)], r"expected floating-point .* as batch 1"),
        ([torch.zeros(1, 1, 2, 2, dtype=torch.int64)], r"expected floating-point .* got torch.int64"),
        ([torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)], "expected 1 channels as before, got 3 in batch 1"),
        ([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), math.nan)], "expected finite values, .* in batch 1"),
    ],
    ids=["none", "3-d", "empty", "integers", "channels", "nan"],
)
def test_statistics_refuse_what_has_none(batches: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^batches: {message}"):
        dataset_statistics(batches)
