"""Audio files to classes: read, cut into windows, classified in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio.clips import load_clip
from septr_fast.audio.windows import average_windows, logits_of, window_starts
from septr_fast.reference import check_sizes


@dataclass(frozen=True)
class Prediction:
    """What a model says of a file.

    Attributes:
        path: the file.
        seconds: its length.
        windows: number of windows whose logits were averaged.
        probabilities: `(classes,)`, float64, on the CPU; of several labels each for itself.
    """

    path: Path
    seconds: float
    windows: int
    probabilities: Tensor


@dataclass(frozen=True)
class Skipped:
    """A file that could not be classified, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class _Clip:
    path: Path
    seconds: float
    windows: list[Tensor]


def classify(
    bundle: Bundle, paths: Iterable[Path], *, batch: int = 16, hop: float | None = None, readers: int = 0
) -> Iterator[Prediction | Skipped]:
    """Classify audio files, each once it and those before it fill a batch.

    A file is resampled to the front-end's rate. One that is shorter than a spectrogram goes on in silence; a
    longer one is cut into windows of a spectrogram's length, the last one shifted back to the file's end, each
    gets its own spectrogram as in training, and their logits are averaged.

    Args:
        bundle: what `checkpoints.load` returned.
        paths: of files that libsndfile reads.
        batch: most windows in one call of the model.
        hop: from one window of a long file to the next, in seconds; None for half a window.
        readers: threads that read the next files meanwhile; none for 0.

    Yields:
        A prediction, or the reason why a file was skipped, for each path; skipped ones may come before others
        that precede them.

    Raises:
        ValueError: for an argument out of range.
        ImportError: where a package that reads files is missing.
    """
    (batch,) = check_sizes(batch=batch)
    rate, span = bundle.front_end.sample_rate, bundle.front_end.span
    step = max(span // 2, 1) if hop is None else round(hop * rate)
    if step < 1:
        raise ValueError(f"hop: expected at least {1 / rate:g} seconds, one sample, got {hop}")
    waiting: list[_Clip] = []
    for clip in _in_order(lambda path: _read(path, rate, span, step), paths, readers):
        if isinstance(clip, Skipped):
            yield clip
        else:
            waiting.append(clip)
        if sum(len(clip.windows) for clip in waiting) >= batch:
            yield from _classify(bundle, waiting, batch)
            waiting = []
    yield from _classify(bundle, waiting, batch)


def _in_order(
    read: Callable[[Path], _Clip | Skipped], paths: Iterable[Path], readers: int
) -> Iterator[_Clip | Skipped]:
    """What `read` makes of `paths`, by as many threads, each of which is at most two files ahead."""
    if readers == 0:
        yield from map(read, paths)
        return
    with ThreadPoolExecutor(readers, "septr_fast reader") as threads:
        coming: deque[Future[_Clip | Skipped]] = deque()
        for path in paths:
            coming.append(threads.submit(read, path))
            if len(coming) > 2 * readers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _read(path: Path, rate: int, span: int, hop: int) -> _Clip | Skipped:
    """A file's windows of `span` samples, `hop` apart."""
    try:
        waveform = load_clip(path, rate)
    except ValueError as error:
        return Skipped(path, str(error))
    padded = torch.nn.functional.pad(waveform, (0, max(span - len(waveform), 0)))
    windows = [padded[start : start + span] for start in window_starts(len(padded), span, hop)]
    return _Clip(path, len(waveform) / rate, windows)


def _classify(bundle: Bundle, clips: list[_Clip], batch: int) -> Iterator[Prediction | Skipped]:
    """Classify the windows of `clips`, `batch` at a time."""
    windows = [window for clip in clips for window in clip.windows]
    logits = [_logits(bundle, windows[first : first + batch]) for first in range(0, len(windows), batch)]
    counts = [len(clip.windows) for clip in clips]
    for clip, own in zip(clips, torch.cat(logits).split(counts) if logits else (), strict=True):
        probabilities = bundle.probabilities(average_windows(own))
        if bool(probabilities.isfinite().all()):
            yield Prediction(clip.path, clip.seconds, len(clip.windows), probabilities)
        else:
            yield Skipped(clip.path, f"model: expected finite logits, got NaN or infinity for {clip.path}")


@torch.no_grad()
def _logits(bundle: Bundle, windows: list[Tensor]) -> Tensor:
    """Logits `(windows, classes)`, float64, on the CPU, of waveforms `(samples,)`."""
    place = bundle.model.cls_token
    spectrograms: Tensor = bundle.front_end(torch.stack(windows).to(place.device))
    return logits_of(bundle.model, spectrograms.to(place.dtype)).cpu().double()
