"""`LogMel`: waveforms to log-mel spectrograms on any device, differentiable, as librosa computes them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from septr_fast.audio.mel import mel_filters
from septr_fast.audio.spectrogram import Spectrogram
from septr_fast.reference import check_sizes, is_number

LOGS = ("natural", "decibel", None)

_logger = logging.getLogger(__name__)


class LogMel(Spectrogram):
    """Log-mel spectrograms: the filters' sums over `|spectrum| ** power`, then a logarithm.

    Up to the logarithm equal to `librosa.feature.melspectrogram` of the same settings.

    Args:
        sample_rate: in hertz.
        mels: number of mel filters, the height of a spectrogram.
        fft_size: length of the Fourier transform, in samples.
        hop: from one frame to the next, in samples; None for a quarter of `fft_size`.
        window_length: of the Hann window in the middle of each frame, in samples; None for `fft_size`.
        center: whether frame `i` has its middle at sample `i * hop`, as in librosa; otherwise it starts there.
        pad_mode: what is beyond both ends with `center`: "constant" for zeros, as in librosa, or "reflect", as in
            torchaudio.
        low: where the first filter begins, in hertz.
        high: where the last filter ends, in hertz; None for half the rate.
        scale: the mel scale, "slaney" or "htk".
        norm: "slaney" for filters of equal area, None for filters of equal height 1.
        power: exponent of the magnitude, 2 for power, 1 for amplitude, the least there is.
        log: "natural" for `ln`, "decibel" for `20 / power * log10`, None for none.
        floor: least value of which the logarithm is taken.
        top_db: with "decibel", raise what is more than that below a spectrogram's maximum; None for nothing.
        frames: None for as many as the waveform has; a number to cut at the end, or to go on in silence.
        standardize: give each spectrogram zero mean and unit variance, all zeros if it is constant.
        mean: subtracted from every spectrogram; None for nothing.
        deviation: by which it is divided then; `mean` and `deviation` come together.
        time_first: `(batch, 1, frames, mels)` in place of `(batch, 1, mels, frames)`.

    Raises:
        ValueError: for a setting out of range, naming it.

    Example:
        >>> LogMel(16000, 128, hop=125, frames=128)(torch.zeros(8, 16000)).shape
        torch.Size([8, 1, 128, 128])
    """

    channels = 1
    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        mels: int = 128,
        *,
        fft_size: int = 1024,
        hop: int | None = None,
        window_length: int | None = None,
        center: bool = True,
        pad_mode: str = "constant",
        low: float = 0.0,
        high: float | None = None,
        scale: str = "slaney",
        norm: str | None = "slaney",
        power: float = 2.0,
        log: str | None = "natural",
        floor: float = 1e-10,
        top_db: float | None = None,
        frames: int | None = None,
        standardize: bool = False,
        mean: float | Sequence[float] | None = None,
        deviation: float | Sequence[float] | None = None,
        time_first: bool = False,
    ) -> None:
        super().__init__(
            sample_rate,
            fft_size,
            hop,
            window_length,
            center,
            pad_mode,
            frames,
            standardize,
            mean,
            deviation,
            time_first,
        )
        (mels,) = check_sizes(mels=mels)
        if not is_number(power) or not 1 <= power < math.inf:
            raise ValueError(f"power: expected a number of at least 1, got {power!r}")
        for name, value in (("floor", floor), ("top_db", 1.0 if top_db is None else top_db)):
            if not is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if log not in LOGS:
            raise ValueError(f"log: expected 'natural', 'decibel' or None, got {log!r}")
        if top_db is not None and log != "decibel":
            raise ValueError(f"top_db: expected it with log 'decibel' alone, got log {log!r}")
        self.low, self.high, self.scale, self.norm = low, high, scale, norm
        self.power, self.log, self.floor, self.top_db = power, log, floor, top_db
        self.bins = mels
        self._register_tables()
        dead = int((self._tables()["filters"].amax(dim=1) == 0).sum())
        if dead:
            _logger.warning("%d of %d mel filters catch no bin of %d samples' transform", dead, mels, fft_size)

    @property
    def mels(self) -> int:
        """Number of mel filters."""
        return self.bins

    def features(self, spectrum: Tensor) -> Tensor:
        """`(batch, 1, mels, frames)` from the complex `spectrum` `(batch, fft_size // 2 + 1, frames)`."""
        powers = _squares(spectrum) if self.power == 2 else spectrum.abs() ** self.power
        return self._logarithm(torch.matmul(self.filters.to(powers.dtype), powers)[:, None])

    def _tables(self) -> dict[str, Tensor]:
        with torch.device("cpu"):
            rate = self.sample_rate
            filters = mel_filters(self.bins, self.fft_size, rate, self.low, self.high, self.scale, self.norm)
        return {**super()._tables(), "filters": filters}

    def _shared(self) -> tuple[str, ...]:
        return (*super()._shared(), "mels", "low", "high", "scale", "norm", "power", "log", "floor", "top_db")

    def _logarithm(self, values: Tensor) -> Tensor:
        if self.log is None:
            return values
        logarithms = values.clamp(min=self.floor).log()
        if self.log == "natural":
            return logarithms
        decibels = logarithms * (20.0 / (self.power * math.log(10.0)))
        if self.top_db is None:
            return decibels
        return torch.maximum(decibels, decibels.amax(dim=(1, 2, 3), keepdim=True) - self.top_db)


def _squares(spectrum: Tensor) -> Tensor:
    """Squared magnitudes, without a square root on the way."""
    return spectrum.real.square() + spectrum.imag.square()
