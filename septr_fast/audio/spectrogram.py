"""From waveforms to spectrograms: the short-time Fourier transform that the front-ends share.

A front-end is a module without parameters and with an empty state dict: its tables are buffers that are not
saved, made again from its `settings`. A checkpoint of a model therefore loads with or without one around it.
It works in float32 (float64 for float64 waveforms), whatever the model behind it is in, autocast included.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from septr_fast.passes.inputs import autocasts, check_dense
from septr_fast.reference import check_sizes

_CONSTANT = 1e-10
"""Variance, in squares of the mean, up to which a spectrogram counts as constant: what differs is rounding."""


def standardize_clips(values: Tensor) -> Tensor:
    """Each of `values` `(batch, channels, height, width)` with zero mean and unit variance; zeros if it is constant."""
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    centred = values - mean
    variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
    varies = variance > _CONSTANT * mean.square()
    return torch.where(varies, centred / torch.where(varies, variance, 1.0).sqrt(), 0.0)


def _numbers(name: str, value: float | Sequence[float]) -> Tensor:
    """`value` as float32 `(numbers, 1, 1)`; raise `ValueError` for what is none."""
    try:
        return torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected a number or numbers, got {value!r}") from error


class Spectrogram(nn.Module):
    """What every front-end shares: frames, their number, and standardization.

    A subclass sets `channels` and `bins`, and computes `features`.

    Args:
        sample_rate: in hertz.
        fft_size: length of the Fourier transform, in samples.
        hop: from one frame to the next, in samples; None for a quarter of `fft_size`.
        window_length: of the Hann window in the middle of each frame, in samples; None for `fft_size`.
        center: whether frame `i` has its middle at sample `i * hop`, with zeros beyond both ends, as in librosa;
            otherwise it starts there.
        frames: None for as many as the waveform has; a number to cut at the end, or to go on in silence.
        standardize: give each spectrogram zero mean and unit variance, all zeros if it is constant.
        mean: subtracted from every spectrogram, one number or one for each channel; None for nothing.
        deviation: by which it is divided then, likewise; `mean` and `deviation` come together.
        time_first: `(frames, bins)` in place of `(bins, frames)`.

    Raises:
        ValueError: for a setting out of range, naming it.
    """

    channels: int
    bins: int
    window: Tensor
    mean: Tensor | None
    deviation: Tensor | None

    def __init__(
        self,
        sample_rate: int,
        fft_size: int,
        hop: int | None,
        window_length: int | None,
        center: bool,
        frames: int | None,
        standardize: bool,
        mean: float | Sequence[float] | None,
        deviation: float | Sequence[float] | None,
        time_first: bool,
    ) -> None:
        super().__init__()
        self.sample_rate, self.fft_size, self.center, self.frames = sample_rate, fft_size, center, frames
        self.standardize, self.time_first = standardize, time_first
        check_sizes(sample_rate=sample_rate, fft_size=fft_size)
        self.hop = max(fft_size // 4, 1) if hop is None else hop
        self.window_length = fft_size if window_length is None else window_length
        check_sizes(hop=self.hop, window_length=self.window_length, **({} if frames is None else {"frames": frames}))
        if self.window_length > fft_size:
            raise ValueError(f"window_length: expected at most fft_size, {fft_size}, got {window_length}")
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)
        self._register_statistics(mean, deviation)

    @property
    def settings(self) -> dict[str, Any]:
        """The class's name and the constructor's arguments, ready for JSON; `front_ends.build` reads them."""
        values = {name: getattr(self, name) for name in self._shared()}
        for name in ("mean", "deviation"):
            statistic: Tensor | None = getattr(self, name)
            values[name] = None if statistic is None else statistic.flatten().tolist()
        return {"name": type(self).__name__, **values}

    @property
    def size(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of a spectrogram; raises `ValueError` where `frames` is None."""
        if self.frames is None:
            raise ValueError("frames: expected a number, got None: spectrograms are as long as their waveforms")
        plane = (self.frames, self.bins) if self.time_first else (self.bins, self.frames)
        return self.channels, *plane

    @property
    def span(self) -> int:
        """Samples that one spectrogram of `frames` stands for; raises `ValueError` where `frames` is None."""
        frames = self.size[1 if self.time_first else 2]
        return frames * self.hop if self.center else (frames - 1) * self.hop + self.fft_size

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute spectrograms.

        Args:
            waveform: `(batch, samples)`, floating point, on the device of the module. One clip is `clip[None]`.

        Returns:
            `(batch, channels, bins, frames)`, with `time_first` `(batch, channels, frames, bins)`; float64 for a
            float64 waveform, else float32.

        Raises:
            ValueError: for a waveform of another shape, without samples or, without `center`, of fewer than
                `fft_size` where no number of frames is fixed.
            TypeError: for a waveform that is not a dense floating-point tensor on the device of the module.
        """
        self._check(waveform)
        device_type = waveform.device.type
        with torch.autocast(device_type, enabled=False) if autocasts(device_type) else nullcontext():
            values = self._standardized(self.features(self._transform(waveform)))
        return values.transpose(2, 3) if self.time_first else values

    def features(self, spectrum: Tensor) -> Tensor:
        """`(batch, channels, bins, frames)` from the complex `spectrum` `(batch, fft_size // 2 + 1, frames)`."""
        raise NotImplementedError

    def _shared(self) -> tuple[str, ...]:
        """Arguments of the constructor that are attributes under the same name."""
        return ("sample_rate", "fft_size", "hop", "window_length", "center", "frames", "standardize", "time_first")

    def _register_statistics(
        self, mean: float | Sequence[float] | None, deviation: float | Sequence[float] | None
    ) -> None:
        """Keep `mean` and `deviation` as buffers `(1 or channels, 1, 1)`."""
        if (mean is None) != (deviation is None):
            raise ValueError(f"deviation: expected it together with mean, got mean {mean!r}, deviation {deviation!r}")
        if mean is not None and self.standardize:
            raise ValueError("standardize: expected it without mean and deviation, or the other way round")
        if mean is None or deviation is None:
            self.mean = self.deviation = None
            return
        for name, value in (("mean", mean), ("deviation", deviation)):
            numbers = _numbers(name, value)
            if len(numbers) not in (1, self.channels):
                raise ValueError(f"{name}: expected one number or {self.channels}, got {len(numbers)}")
            if not bool(numbers.isfinite().all()) or (name == "deviation" and float(numbers.min()) <= 0):
                kind = "positive" if name == "deviation" else "finite"
                raise ValueError(f"{name}: expected {kind} numbers, got {value!r}")
            self.register_buffer(name, numbers, persistent=False)

    def _check(self, waveform: Tensor) -> None:
        if not isinstance(waveform, Tensor) or not waveform.is_floating_point():
            found = waveform.dtype if isinstance(waveform, Tensor) else type(waveform).__name__
            raise TypeError(f"waveform: expected a floating-point tensor (batch, samples), got {found}")
        check_dense(waveform, "waveform")
        if waveform.device != self.window.device:
            raise TypeError(
                f"waveform: expected a tensor on {self.window.device}, where the module is, got {waveform.device}"
            )
        if waveform.dim() != 2:
            hint = ": a single clip is clip[None]" if waveform.dim() == 1 else ""
            raise ValueError(f"waveform: expected (batch, samples), got {tuple(waveform.shape)}{hint}")
        fewest = 1 if self.center or self.frames is not None else self.fft_size
        if waveform.shape[1] < fewest:
            raise ValueError(f"waveform: expected at least {fewest} samples, got {tuple(waveform.shape)}")

    def _transform(self, waveform: Tensor) -> Tensor:
        """The complex spectrum `(batch, fft_size // 2 + 1, frames)` of `waveform` `(batch, samples)`."""
        dtype = torch.float64 if waveform.dtype == torch.float64 else torch.float32
        if self.frames is not None:
            behind = self.fft_size - self.fft_size // 2 if self.center else self.fft_size
            reach = (self.frames - 1) * self.hop + behind
            waveform = nn.functional.pad(waveform, (0, reach - waveform.shape[1]))
        spectrum = torch.stft(
            waveform.to(dtype),
            n_fft=self.fft_size,
            hop_length=self.hop,
            win_length=self.window_length,
            window=self.window.to(dtype),
            center=self.center,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum if self.frames is None else spectrum[..., : self.frames]

    def _standardized(self, values: Tensor) -> Tensor:
        if self.standardize:
            return standardize_clips(values)
        if self.mean is None or self.deviation is None:
            return values
        return (values - self.mean.to(values.dtype)) / self.deviation.to(values.dtype)


class ComplexSpectrogram(Spectrogram):
    """The complex spectrum as real channels: real part, imaginary part and, if wanted, magnitude.

    Args:
        sample_rate: in hertz.
        magnitude: whether the magnitude is a third channel.
        fft_size: length of the Fourier transform, in samples; it has `fft_size // 2 + 1` bins.
        hop: from one frame to the next, in samples; None for a quarter of `fft_size`.
        window_length: of the Hann window in the middle of each frame, in samples; None for `fft_size`.
        center: whether frame `i` has its middle at sample `i * hop`, with zeros beyond both ends, as in librosa;
            otherwise it starts there.
        frames: None for as many as the waveform has; a number to cut at the end, or to go on in silence.
        standardize: give each spectrogram zero mean and unit variance, all zeros if it is constant.
        mean: subtracted from every spectrogram, one number or one for each channel; None for nothing.
        deviation: by which it is divided then, likewise; `mean` and `deviation` come together.
        time_first: `(batch, channels, frames, bins)` in place of `(batch, channels, bins, frames)`.

    Raises:
        ValueError: for a setting out of range, naming it.

    Example:
        >>> front_end = ComplexSpectrogram(16000, fft_size=320, hop=160, center=False, frames=499, time_first=True)
        >>> front_end(torch.zeros(10, 5 * 16000)).shape
        torch.Size([10, 3, 499, 161])
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        magnitude: bool = True,
        *,
        fft_size: int = 320,
        hop: int | None = None,
        window_length: int | None = None,
        center: bool = True,
        frames: int | None = None,
        standardize: bool = False,
        mean: float | Sequence[float] | None = None,
        deviation: float | Sequence[float] | None = None,
        time_first: bool = False,
    ) -> None:
        self.channels = 3 if magnitude else 2
        super().__init__(
            sample_rate, fft_size, hop, window_length, center, frames, standardize, mean, deviation, time_first
        )
        self.magnitude = magnitude
        self.bins = fft_size // 2 + 1

    def features(self, spectrum: Tensor) -> Tensor:
        """`(batch, 2 or 3, bins, frames)` from the complex `spectrum` `(batch, bins, frames)`."""
        parts = [spectrum.real, spectrum.imag, *([spectrum.abs()] if self.magnitude else [])]
        return torch.stack(parts, dim=1)

    def _shared(self) -> tuple[str, ...]:
        return (*super()._shared(), "magnitude")
