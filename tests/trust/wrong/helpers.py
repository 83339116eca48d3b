"""Wrong calls of what stands around the model: front-ends, windows, statistics, `accelerate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from support import originals
from torch import nn

from septr_fast import ComplexSpectrogram, LogMel, accelerate, dataset_statistics, predict_long
from septr_fast.audio import front_ends
from trust.wrong.calls import SIZES, Subject, WrongCall

NAN = float("nan")

SETTINGS: list[tuple[str, Any]] = [
    ("sample_rate", 0),
    ("sample_rate", "16000"),
    ("mels", 0),
    ("mels", 64.0),
    ("fft_size", -1),
    ("hop", 0),
    ("window_length", 2048),
    ("frames", 0),
    ("frames", "all"),
    ("low", -1.0),
    ("low", NAN),
    ("low", "bass"),
    ("low", 9000.0),
    ("high", 9000.0),
    ("high", NAN),
    ("high", "treble"),
    ("scale", "bark"),
    ("norm", "l2"),
    ("power", 0.5),
    ("power", NAN),
    ("power", "2"),
    ("log", "binary"),
    ("floor", 0.0),
    ("floor", "tiny"),
    ("top_db", 80.0),
    ("top_db", -80.0),
]


def calls() -> Iterator[WrongCall]:
    """All of them."""
    for name, value in SETTINGS:
        yield WrongCall(
            f"LogMel({name}={value!r})", ValueError, name, lambda on, name=name, value=value: LogMel(**{name: value})
        )
    yield from _statistics()
    yield from _waveforms()
    yield from _windows()
    yield from _accelerate()


def _statistics() -> Iterator[WrongCall]:
    def call(name: str, culprit: str, made: Any, error: type[Exception] = ValueError) -> WrongCall:
        return WrongCall(name, error, culprit, made)

    yield call("a mean without a deviation", "deviation", lambda on: LogMel(mean=0.0))
    yield call("two means for one channel", "mean", lambda on: LogMel(mean=[0.0, 1.0], deviation=1.0))
    yield call("a mean of NaN", "mean", lambda on: LogMel(mean=NAN, deviation=1.0))
    yield call("a mean that is a text", "mean", lambda on: LogMel(mean="0", deviation=1.0))
    yield call("a deviation of zero", "deviation", lambda on: ComplexSpectrogram(mean=0.0, deviation=[1.0, 0.0, 1.0]))
    yield call("standardized twice", "standardize", lambda on: LogMel(mean=0.0, deviation=1.0, standardize=True))
    yield call("settings of an unknown front-end", "front_end", lambda on: front_ends.build({"name": "Mfcc"}))
    yield call(
        "settings with an unknown argument", "wolume", lambda on: front_ends.build({"name": "LogMel", "wolume": 1})
    )
    yield call("the size of any length", "frames", lambda on: LogMel().size)
    yield call("statistics of nothing", "batches", lambda on: dataset_statistics([]))
    yield call("statistics of a clip", "batches", lambda on: dataset_statistics([torch.zeros(3, 4)]))
    yield call("statistics of integers", "batches", lambda on: dataset_statistics([torch.zeros(1, 1, 2, 2).int()]))
    yield call("statistics of NaN", "batches", lambda on: dataset_statistics([torch.full((1, 1, 2, 2), NAN)]))
    yield call("statistics of lists", "batches", lambda on: dataset_statistics([[[1.0]]]), TypeError)
    mixed = [torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)]
    yield call("statistics of mixed channels", "batches", lambda on: dataset_statistics(mixed))


def _waveforms() -> Iterator[WrongCall]:
    front_end = LogMel(16000, 16, fft_size=256, center=False)
    waveform = torch.zeros(2, 1000)
    given: list[tuple[str, Any, type[Exception]]] = [
        ("a list", [0.0] * 1000, TypeError),
        ("int16", waveform.short(), TypeError),
        ("complex", waveform.to(torch.complex64), TypeError),
        ("sparse", waveform.to_sparse(), TypeError),
        ("nested", torch.nested.nested_tensor(list(waveform)), TypeError),
        ("meta", waveform.to("meta"), TypeError),
        ("one clip", waveform[0], ValueError),
        ("stereo", waveform[None], ValueError),
        ("empty", waveform[:, :0], ValueError),
        ("too short", waveform[:, :255], ValueError),
    ]
    for name, value, error in given:
        yield WrongCall(f"LogMel()(waveform), {name}", error, "waveform: expected", lambda on, x=value: front_end(x))


def _windows() -> Iterator[WrongCall]:
    def long(error: type[Exception], culprit: str, name: str, **changes: Any) -> WrongCall:
        def call(on: Subject) -> object:
            given = {"model": on.model, "x": torch.zeros(1, 1, 6, 20), "window": 8, "hop": 4, **changes}
            return predict_long(**given)

        return WrongCall(f"predict_long, {name}", error, culprit, call)

    yield long(ValueError, "window", "no window", window=0)
    yield long(ValueError, "window", "a window of 8.0", window=8.0)
    yield long(ValueError, "window", "a window longer than the clip", window=21)
    yield long(ValueError, "hop", "no hop", hop=0)
    yield long(ValueError, "hop", "a negative hop", hop=-4)
    yield long(ValueError, "batch", "no batch", batch=0)
    yield long(ValueError, "average", "an unknown average", average="median")
    yield long(ValueError, "axis", "an unknown axis", axis="time")
    yield long(ValueError, "x: expected", "one clip", x=torch.zeros(1, 6, 20))
    yield long(ValueError, "x: expected", "no clip", x=torch.zeros(0, 1, 6, 20))
    yield long(TypeError, "x: expected a tensor", "a list", x=[[0.0]])
    yield long(TypeError, "x: expected a dense tensor", "a sparse clip", x=torch.zeros(1, 1, 6, 20).to_sparse())
    yield long(ValueError, "x: expected input_size", "a window that the model does not take", window=5)
    yield long(TypeError, "x: expected torch.float32", "another dtype", x=torch.zeros(1, 1, 6, 20).double())


def _accelerate() -> Iterator[WrongCall]:
    def call(name: str, error: type[Exception], culprit: str, made: Any) -> WrongCall:
        return WrongCall(f"accelerate, {name}", error, culprit, made)

    def given(**changes: Any) -> Any:
        def made(on: Subject) -> object:
            model = originals.SeparableTr(**SIZES)
            return accelerate(model, **changes)

        return made

    yield call("nothing", TypeError, "model: expected a module", lambda on: accelerate(None))
    yield call("a state dict", TypeError, "model: expected a module", lambda on: accelerate(on.model.state_dict()))
    yield call("no SepTr inside", ValueError, "model: expected a SepTr", lambda on: accelerate(nn.Linear(1, 1)))
    yield call("an unknown backend", ValueError, "backend", lambda on: accelerate(on.model, backend="cuda"))
    yield call("other heads", ValueError, "heads", given(heads=3))
    yield call("another size", TypeError, "input_size", given(input_size=(6, 9)))
    yield call("a size that is none", ValueError, "input_size", given(input_size=(6, 0)))
    yield call("another axis first", ValueError, "first_axis", given(first_axis="time"))
    yield call("an unknown formulation", ValueError, "formulation", given(formulation="fast"))
    yield call("a class token that is not returned", ValueError, "return_cls", given(return_cls=True))
