"""What a run begins with and keeps to the end: its options, clips and statistics, in `run.json`.

A run that goes on reads them from there, so it has the same clips in the same order whatever has happened to the
folder meanwhile; a file that is gone is then named and counted when it is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from septr_fast import LogMel, dataset_statistics, reference
from septr_fast.audio.spectrogram import Spectrogram
from septr_fast.progress import track
from training import options
from training.data import data_sets, spoken
from training.data.data_sets import Clip, DataSet
from training.data.samples import Samples
from training.data.scan import scan
from training.data.tables import labelled_files
from training.learning import start
from training.options import Options
from training.state import write_json
from training.stopping import leave_signals_to_the_main_process

_VERSION = 2
_LEAST_FFT = 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What a run begins with.

    Attributes:
        data: clips by split.
        activation: "softmax" or "sigmoid".
        front_end: settings of the front-end, waveforms to spectrograms. But for weights that came with another, these
            are log-mel spectrograms that have, over the training clips, mean 0 and deviation 1.
        model: arguments of the model's constructor.
        skipped: files that were left out, each with "file" and "reason".
    """

    data: DataSet
    activation: str
    front_end: dict[str, Any]
    model: dict[str, Any]
    skipped: list[dict[str, str]]


def log_mel(settings: Options, mean: float | None = None, deviation: float | None = None) -> LogMel:
    """Log-mel spectrograms of the size that the options ask for."""
    fft_size = max(_LEAST_FFT, 1 << (2 * settings.hop - 1).bit_length())
    return LogMel(
        settings.rate,
        settings.mels,
        fft_size=fft_size,
        hop=settings.hop,
        frames=settings.frames,
        mean=mean,
        deviation=deviation,
    )


def begin(settings: Options, device: torch.device) -> None:
    """Find or make the clips, read each once, and write `run.json`, unless it is there; for one process.

    Raises:
        ValueError: for a folder that holds no data set, or one of which nothing can be used.
    """
    if (settings.out / start.RUN).exists():
        return
    found = _found(settings)
    activation = _activation(settings, found)
    settings.augmentation()  # It checks its options.
    known, model = _of_start(settings, found.classes)
    settings.out.mkdir(parents=True, exist_ok=True)
    data, skipped = scan(found, settings.out / "skipped.json", workers=max(settings.workers, 1), rate=settings.rate)
    for line in data_sets.summary(data).splitlines():
        _logger.info("%s", line)
    content = {
        "version": _VERSION,
        "options": settings.as_json(),
        "name": data.name,
        "classes": data.classes,
        "splits": {
            split: [[str(clip.path.absolute()), clip.labels] for clip in clips] for split, clips in data.splits.items()
        },
        "activation": activation,
        "front_end": known or _log_mel_of(data, settings, device),
        "model": model,
        "skipped": [{"file": str(skip.path), "reason": skip.reason} for skip in skipped],
    }
    write_json(settings.out / start.RUN, content)


def check_options(settings: Options) -> None:
    """Refuse to go on with a run of other options, or of another version of this program.

    Raises:
        ValueError: naming each of them.
    """
    if (settings.out / start.RUN).exists():
        began = _read(settings.out)
        if began.get("version") != _VERSION:
            raise ValueError(f"out: expected a run of this version, {settings.out} is of another; give another --out")
        options.check_unchanged(began["options"], settings)


def read(settings: Options) -> Preparation:
    """What `begin` wrote."""
    content = _read(settings.out)
    splits = {
        split: tuple(Clip(Path(path), tuple(labels)) for path, labels in clips)
        for split, clips in content["splits"].items()
    }
    data = DataSet(content["name"], tuple(content["classes"]), splits)
    return Preparation(data, content["activation"], content["front_end"], content["model"], content["skipped"])


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / start.RUN).read_text(encoding="utf-8"))
    return content


def _found(settings: Options) -> DataSet:
    if settings.data is not None and settings.labels is not None:
        return labelled_files(settings.labels, settings.data, seed=settings.seed)
    if settings.data is not None:
        return data_sets.find(settings.data, settings.layout, fold=settings.fold, seed=settings.seed)
    return spoken.spoken_words(settings.speech, settings.words, rates=settings.speaking_rates, pitches=settings.pitches)


def _of_start(settings: Options, classes: tuple[str, ...]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The front-end that came with the weights to start from, None without, and the arguments of the model.

    Raises:
        ValueError: for weights that do not fit the model.
    """
    if settings.from_ is None:
        return None, settings.model_arguments(len(classes))
    origin = start.read(settings.from_)
    model = {**(origin.arguments or {}), **settings.model_arguments(len(classes)), "return_cls": False}
    with torch.device("meta"):
        start.load(origin, reference.SepTr(**model), classes)
    return start.front_end(origin, (settings.mels, settings.frames)), model


def _activation(settings: Options, data: DataSet) -> str:
    """What the options ask for, or what fits the labels."""
    if settings.activation == "softmax" and not data.has_one_label_each:
        raise ValueError(
            "activation: expected sigmoid, for there is one class, or clips have several labels or none; got softmax"
        )
    if settings.activation != "auto":
        return settings.activation
    return "softmax" if data.has_one_label_each else "sigmoid"


def _log_mel_of(data: DataSet, settings: Options, device: torch.device) -> dict[str, Any]:
    """Settings of log-mel spectrograms with the statistics of the training clips."""
    samples = Samples(data.splits["train"], len(data.classes), settings.rate, settings.seconds, None, settings.seed)
    statistics = dataset_statistics(_spectrograms(samples, log_mel(settings).to(device), settings, device))
    return log_mel(settings, statistics.mean[0], statistics.deviation[0]).settings


def _spectrograms(samples: Samples, compute: Spectrogram, settings: Options, device: torch.device) -> Iterator[Tensor]:
    """Spectrograms of all clips, in batches, not normalized."""
    loader = DataLoader(
        samples,
        batch_size=settings.batch,
        num_workers=settings.workers,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    for items in track(loader, "batches", "statistics"):
        readable = items["waveform"][items["weight"] > 0]
        if len(readable):
            yield compute(readable.to(device))
