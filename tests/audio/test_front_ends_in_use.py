"""Front-ends as people use them: broken clips, padded batches, any dtype and device, other libraries' settings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from septr_fast import ComplexSpectrogram, LogMel, SepTr
from septr_fast.audio.front_ends import build
from septr_fast.audio.spectrogram import Spectrogram

RATE = 16000
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "standardized": {"standardize": True},
    "by statistics": {"mean": -3.0, "deviation": 2.0},
    "cut": {"frames": 20},
    "longer": {"frames": 60, "standardize": True},
    "not centred": {"center": False},
    "reflected": {"pad_mode": "reflect"},
    "reflected and longer": {"pad_mode": "reflect", "frames": 60},
    "odd": {"fft_size": 511, "window_length": 400, "hop": 160},
    "time first": {"time_first": True, "standardize": True},
    "a hop beyond the window": {"hop": 1200, "frames": 14},
}
OF_LOG_MEL: dict[str, dict[str, Any]] = {"decibel": {"log": "decibel", "top_db": 30.0}, "no logarithm": {"log": None}}


def front_ends() -> list[Any]:
    """Every front-end in every setting."""
    kinds = [pytest.param(LogMel, settings, id=f"LogMel, {name}") for name, settings in (SETTINGS | OF_LOG_MEL).items()]
    return kinds + [
        pytest.param(ComplexSpectrogram, settings, id=f"complex, {name}") for name, settings in SETTINGS.items()
    ]


def made(kind: type[Spectrogram], settings: dict[str, Any]) -> Spectrogram:
    own: dict[str, Any] = {"mels": 24} if kind is LogMel else {}
    return kind(RATE, **{"hop": 400, "fft_size": 1024, **own, **settings})


def noise() -> Tensor:
    return torch.randn(3, RATE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "settings"), front_ends())
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_clip_is_seen_and_no_other(kind: type[Spectrogram], settings: dict[str, Any], broken: float) -> None:
    front_end, waveform = made(kind, settings), noise()
    expected = front_end(waveform)
    waveform[1, 2500] = broken
    found = front_end(waveform)
    assert not found[1].isfinite().all()
    assert found[1].isnan().any()
    if front_end.standardize:
        assert found[1].isnan().all()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])


def test_constant_spectrograms_are_still_zeros() -> None:
    assert LogMel(RATE, 24, frames=20, standardize=True)(torch.zeros(2, RATE)).eq(0).all()


@pytest.mark.parametrize(("kind", "settings"), front_ends())
def test_padded_clips_are_as_alone(kind: type[Spectrogram], settings: dict[str, Any]) -> None:
    """Whatever stands in the padding; with more frames than a clip has, those that it has."""
    front_end, waveform, lengths = made(kind, settings), noise(), [RATE, 9001, 4000]
    padded = waveform.clone()
    padded[1, 9001:], padded[2, 4000:] = float("nan"), 1e9
    found, frames = front_end(padded, lengths)
    assert frames.dtype == torch.int64
    alone = made(kind, {**settings, "frames": None})
    for sample, length in enumerate(lengths):
        expected = alone(waveform[sample : sample + 1, :length])
        own, expected = (x.transpose(2, 3) if front_end.time_first else x for x in (found[sample][None], expected))
        count, whole = int(frames[sample]), expected.shape[3]
        assert count == min(whole, front_end.frames or whole)
        assert own[..., count:].eq(0).all()
        if count == whole or not front_end.standardize:
            torch.testing.assert_close(own[..., :count], expected[..., :count], rtol=1e-5, atol=1e-5)


def test_lengths_go_on_to_the_model() -> None:
    """The logits of padded clips are those of the clips alone, standardized."""
    torch.manual_seed(1)
    front_end = LogMel(RATE, 16, hop=500, standardize=True)
    model = SepTr(input_size=(16, 33), num_classes=5, depth=1, heads=2, dim_head=8, dim=16).eval()
    waveform = noise()
    together = model(*front_end(waveform, [RATE, 9001, 4000]))
    for sample, length in enumerate([RATE, 9001, 4000]):
        one = front_end(waveform[sample : sample + 1, :length])
        padded = nn.functional.pad(one, (0, 33 - one.shape[3]))
        alone = model(padded, [one.shape[3]])
        torch.testing.assert_close(together[sample], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([RATE, 0, 5], ValueError, "lengths: expected 1 to 16000"),
        ([RATE, RATE + 1, 5], ValueError, "lengths: expected 1 to 16000"),
        ([RATE, 5], ValueError, "lengths: expected one for each of 3 samples"),
        ([1.5, 2.0, 3.0], TypeError, "lengths: expected integers"),
    ],
)
def test_wrong_lengths_raise(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogMel(RATE, 24)(noise(), lengths)


def test_too_few_samples_to_reflect_raise() -> None:
    front_end = LogMel(RATE, 24, pad_mode="reflect")
    with pytest.raises(ValueError, match="waveform: expected more than 512 samples"):
        front_end(torch.zeros(1, 512))
    with pytest.raises(ValueError, match="lengths: expected more than 512"):
        front_end(torch.zeros(2, 1000), [1000, 512])
    assert front_end(torch.zeros(1, 513)).shape == (1, 1, 24, 3)
    with pytest.raises(ValueError, match="pad_mode: expected one of constant, reflect"):
        LogMel(RATE, 24, pad_mode="replicate")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("settings", [{}, {"mean": -3.3, "deviation": 2.1}], ids=["plain", "by statistics"])
def test_the_dtype_of_the_module_is_that_of_the_result(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    waveform, front_end = noise(), LogMel(RATE, 24, **settings)
    expected = front_end(waveform)
    changed = copy.deepcopy(copy.deepcopy(front_end).to(dtype))
    for form in (waveform, waveform.to(dtype), waveform.double()):
        found = changed(form)
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= 8 * max(torch.finfo(dtype).eps, 1e-6) * (1 + expected.abs().max())
    assert all(table.dtype == torch.float32 for table in changed.buffers())
    assert torch.equal(changed.float()(waveform), expected)
    assert changed.settings == front_end.settings


@pytest.mark.parametrize("name", ["half", "bfloat16", "double", "float"])
def test_a_model_behind_it_takes_what_comes(name: str) -> None:
    model = SepTr(input_size=(16, 32), num_classes=5, depth=1, heads=2, dim_head=8, dim=16)
    both = getattr(nn.Sequential(LogMel(RATE, 16, hop=500, frames=32), model), name)()
    assert both(noise()).dtype == model.cls_token.dtype


@pytest.mark.parametrize("kind", [LogMel, ComplexSpectrogram])
def test_tables_are_the_same_wherever_it_was_built(kind: type[Spectrogram]) -> None:
    settings: dict[str, Any] = {"mean": -3.3, "deviation": 2.1}
    expected, waveform = made(kind, settings), noise()
    torch.set_default_dtype(torch.bfloat16)
    try:
        built = made(kind, settings)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        empty = made(kind, settings)
    assert empty.window.is_meta
    assert empty.settings == expected.settings
    for one in (built, empty.to_empty(device="cpu"), build(expected.settings)):
        assert torch.equal(one(waveform), expected(waveform))


@pytest.mark.parametrize("center", [True, False])
def test_reflected_spectrograms_equal_those_of_librosa(center: bool) -> None:
    librosa = pytest.importorskip("librosa")
    waveform = noise().double()
    settings: dict[str, Any] = {"hop_length": 400, "n_fft": 1024, "center": center, "pad_mode": "reflect"}
    expected = librosa.feature.melspectrogram(y=waveform.numpy(), sr=RATE, n_mels=24, **settings)
    found = LogMel(RATE, 24, hop=400, center=center, pad_mode="reflect", log=None)(waveform)
    torch.testing.assert_close(found[:, 0], torch.from_numpy(expected), rtol=1e-5, atol=1e-7)


def test_the_defaults_of_torchaudio_by_the_formulas_of_transformers() -> None:
    """`torchaudio.transforms.MelSpectrogram()`: the page on audio maps its settings onto these."""
    audio_utils = pytest.importorskip("transformers.audio_utils")
    waveform = noise()[0]
    filters = audio_utils.mel_filter_bank(201, 64, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    expected = audio_utils.spectrogram(
        waveform.numpy(),
        audio_utils.window_function(400, "hann"),
        400,
        200,
        power=2.0,
        center=True,
        pad_mode="reflect",
        mel_filters=filters,
    )
    front_end = LogMel(RATE, 64, fft_size=400, hop=200, scale="htk", norm=None, log=None, pad_mode="reflect")
    torch.testing.assert_close(
        front_end(waveform[None])[0, 0], torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    "settings",
    [{"frames": 24, "center": False}, {"frames": 14, "hop": 1200}, {"frames": 60, "pad_mode": "reflect"}],
    ids=["not centred", "a hop beyond the window", "reflected"],
)
def test_no_slice_of_an_exported_graph_cuts_nothing(settings: dict[str, Any]) -> None:
    """Exporters to ONNX have no rule for it."""
    front_end, waveform = made(LogMel, settings), noise()
    exported = torch.export.export(front_end, (waveform,))
    torch.testing.assert_close(exported.module()(waveform), front_end(waveform))
    assert "aten.alias" not in str(exported.run_decompositions().graph)
