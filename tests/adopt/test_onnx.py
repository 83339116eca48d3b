"""Exported to ONNX and run by ONNX Runtime: the model by both exporters, and waveforms to logits in one graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.versions import needs_torch
from torch import Tensor, nn

from septr_fast import ComplexSpectrogram, LogMel, SepTr, reference

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES: dict[str, Any] = {"num_classes": 4, "depth": 2, "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}
SAMPLES = 12000

CLIPS = {"sample_rate": 16000, "fft_size": 512, "hop": 500, "frames": 24}
FRONT_ENDS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "frames cut": {"frames": 20},
    "frames in silence": {"frames": 30},
    "not centred": {"center": False},
    "not centred, in silence": {"center": False, "frames": 40},
    "hop beyond half of the transform": {"hop": 700, "frames": 16},
    "hop beyond the transform, not centred": {"hop": 700, "frames": 16, "center": False},
    "reflected": {"pad_mode": "reflect"},
    "reflected, in silence": {"pad_mode": "reflect", "frames": 30},
    "a narrow window": {"window_length": 400},
    "an odd transform": {"fft_size": 511},
    "standardized": {"standardize": True},
    "with statistics": {"mean": -4.0, "deviation": 2.5},
    "time first": {"time_first": True},
}


def run(file: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(inputs)
    return [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


def export(module: nn.Module, inputs: tuple[Tensor, ...], file: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, verbose=False, **options)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", [{}, {"down_sample_input": (2, 2), "return_cls": True}], ids=["plain", "pooled"])
def test_by_the_exporter_that_traces(padded: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """`dynamo=False`, for any batch."""
    model = SepTr(input_size=(16, 24), **SIZES, **options).eval()
    plain = reference.SepTr(input_size=(16, 24), **SIZES, **options).eval()
    plain.load_state_dict(model.state_dict())
    names = ["x", "lengths"] if padded else ["x"]
    inputs = (torch.randn(2, 1, 16, 24), torch.tensor([24, 12]))[: len(names)]
    axes = {name: {0: "batch"} for name in names}
    export(model, inputs, tmp_path / "model.onnx", dynamo=False, input_names=names, dynamic_axes=axes)
    for batch in (1, 2, 5):
        x, lengths = torch.randn(batch, 1, 16, 24), torch.randint(1, 12, (batch,)) * 2
        given = {"x": x, "lengths": lengths} if padded else {"x": x}
        found = run(tmp_path / "model.onnx", given)
        expected = model(*given.values()) if padded else plain(x)
        for left, right in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("formulation", ["direct", "merged"])
def test_forced_formulations_by_the_exporter_that_traces(formulation: str, tmp_path: Path) -> None:
    """For the batch that they are traced with."""
    model = SepTr(input_size=(16, 24), **SIZES, formulation=formulation).eval()
    x = torch.randn(2, 1, 16, 24)
    export(model, (x,), tmp_path / "model.onnx", dynamo=False, input_names=["x"])
    (found,) = run(tmp_path / "model.onnx", {"x": x})
    torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-4)


class Classifiers(nn.Module):
    """Spectrograms of every setting of the front-ends, and logits of a model for each size of them."""

    def __init__(self) -> None:
        super().__init__()
        front_ends: dict[str, Any] = {
            name: LogMel(**{**CLIPS, "mels": 16, **settings}) for name, settings in FRONT_ENDS.items()
        }
        for magnitude in (True, False):
            front_ends[f"complex, {magnitude}"] = ComplexSpectrogram(**{**CLIPS, "fft_size": 30}, magnitude=magnitude)
        self.front_ends = nn.ModuleList(front_ends.values())
        self.names = list(front_ends)
        channels, height, width = front_ends["as it comes"].size
        self.model = SepTr(channels, (height, width), **{**SIZES, "depth": 1})

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        spectrograms = [front_end(waveform) for front_end in self.front_ends]
        return self.model(spectrograms[0]), *spectrograms


@needs_torch("2.10", "ONNX for any batch")
def test_waveforms_to_logits_in_one_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For any batch of clips."""
    classifiers = Classifiers().eval()
    batch = torch.export.Dim("batch")
    with caplog.at_level(logging.ERROR):
        export(
            classifiers,
            (torch.randn(2, SAMPLES),),
            tmp_path / "model.onnx",
            dynamo=True,
            input_names=["waveform"],
            dynamic_shapes=({0: batch},),
        )
    for size in (1, 3):
        waveform = torch.randn(size, SAMPLES)
        found = run(tmp_path / "model.onnx", {"waveform": waveform})
        for name, left, right in zip(["logits", *classifiers.names], found, classifiers(waveform), strict=True):
            assert torch.allclose(left, right, atol=1e-4, rtol=1e-3), name
