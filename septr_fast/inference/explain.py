"""What a checkpoint's model looks at in a recording: the last block's attention in terms of frequency and time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio import front_ends
from septr_fast.audio.log_mel import LogMel
from septr_fast.audio.mel import mel_edges
from septr_fast.audio.spectrogram import Spectrogram
from septr_fast.audio.windows import logits_of

RANGE = 80.0
"""Decibels below the loudest value that a spectrogram shows."""

_QUIETEST = 1e-10
"""Least magnitude of which a logarithm is taken."""


@dataclass(frozen=True)
class Explanation:
    """One window of a recording as the model sees it, on the CPU; bins and bands from low to high.

    The attention is that of the class token in the last block, averaged over heads. A token stands for `pooling`
    bins and frames. The rest of each distribution, up to one, is the class token's attention to itself.

    Attributes:
        decibels: `(bins, frames)`, from `-RANGE` to 0, the loudest.
        over_frequency: `(bands, intervals)`: each column is one distribution over the bands.
        over_time: `(bands, intervals)`: each row is one distribution over the intervals.
        pooling: bins and frames of a token.
        hertz: `(bins,)`, the middle of each bin.
        is_mel: whether the bins are mel filters.
        frame_seconds: from one frame to the next.
        first_seconds: the middle of the first frame, in seconds after the recording's start.
        probabilities: `(classes,)`, float64, of this window.
    """

    decibels: Tensor
    over_frequency: Tensor
    over_time: Tensor
    pooling: tuple[int, int]
    hertz: Tensor
    is_mel: bool
    frame_seconds: float
    first_seconds: float
    probabilities: Tensor

    @property
    def frequency_profile(self) -> Tensor:
        """Attention over frequency, the mean over all columns: `(bands,)`."""
        return self.over_frequency.mean(dim=1)

    @property
    def time_profile(self) -> Tensor:
        """Attention over time, the mean over all rows: `(intervals,)`."""
        return self.over_time.mean(dim=0)


@torch.no_grad()
def explain(bundle: Bundle, waveform: Tensor, start: float = 0.0) -> Explanation:
    """Look into the model while it classifies one window.

    Args:
        bundle: what `checkpoints.load` returned.
        waveform: `(samples,)` at the front-end's rate, as long as `front_end.span`; on any device.
        start: where in the recording it begins, in seconds.

    Raises:
        ValueError: for a waveform that the front-end refuses, or a model whose logits are not finite.
    """
    model, front_end = bundle.model, bundle.front_end
    place = model.cls_token
    waveforms = waveform[None].to(place.device)
    spectrogram = front_end(waveforms).to(place.dtype)
    probabilities = bundle.probabilities(logits_of(model, spectrogram).cpu().double())[0]
    if not bool(probabilities.isfinite().all()):
        raise ValueError("model: expected finite logits, got NaN or infinity")
    maps = [along[0, :, :, 0].mean(dim=1).float().cpu() for along in model.attention_maps(spectrogram)[-1]]
    pooling = model.blocks[-1].pooling
    if front_end.time_first:
        maps, pooling = maps[::-1], (pooling[1], pooling[0])
    rate = front_end.sample_rate
    return Explanation(
        decibels=_decibels(front_end, waveforms),
        over_frequency=maps[0][:, 1:].T,
        over_time=maps[1][:, 1:],
        pooling=pooling,
        hertz=bin_frequencies(front_end),
        is_mel=isinstance(front_end, LogMel),
        frame_seconds=front_end.hop / rate,
        first_seconds=start + (0.0 if front_end.center else front_end.fft_size / 2 / rate),
        probabilities=probabilities,
    )


def bin_frequencies(front_end: Spectrogram) -> Tensor:
    """The middle of each bin in hertz, `(bins,)`, float64: of a mel filter its peak."""
    if isinstance(front_end, LogMel):
        edges = mel_edges(front_end.mels, front_end.sample_rate, front_end.low, front_end.high, front_end.scale)
        return edges[1:-1]
    bins = torch.arange(front_end.bins, dtype=torch.float64, device="cpu")
    return bins * (front_end.sample_rate / front_end.fft_size)


def _decibels(front_end: Spectrogram, waveforms: Tensor) -> Tensor:
    """The spectrogram `(bins, frames)` of `waveforms` `(1, samples)`, not standardized, below its maximum."""
    settings = {**front_end.settings, "standardize": False, "mean": None, "deviation": None, "time_first": False}
    plain = front_ends.build(settings).to(waveforms.device)
    values: Tensor = plain(waveforms)[0]
    levels = _levels(plain, values).float().cpu()
    return (levels - levels.max()).clamp(min=-RANGE)


def _levels(front_end: Spectrogram, values: Tensor) -> Tensor:
    """Decibels `(bins, frames)` of what `front_end` gives, `(channels, bins, frames)`."""
    if not isinstance(front_end, LogMel):
        return 20.0 * torch.hypot(values[0], values[1]).clamp(min=_QUIETEST).log10()
    if front_end.log == "decibel":
        return values[0]
    logarithms = values[0] if front_end.log == "natural" else values[0].clamp(min=front_end.floor).log()
    return logarithms * (20.0 / (front_end.power * math.log(10.0)))
