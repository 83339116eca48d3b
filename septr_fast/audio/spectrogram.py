"""From waveforms to spectrograms: the short-time Fourier transform that the front-ends share.

A front-end is a module without parameters and with an empty state dict: its tables are buffers that are not
saved, made again from its `settings`. A checkpoint of a model therefore loads with or without one around it.
It works in float32 (float64 for float64 waveforms), autocast included, and its tables stay in float32 whatever is done
to the module: `half()`, `bfloat16()` and `double()` say in which dtype spectrograms come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from septr_fast.audio.standardization import standardize_clips
from septr_fast.passes import lengths as valid_lengths
from septr_fast.passes.inputs import autocasts, check_dense
from septr_fast.reference import as_python, check_sizes

PAD_MODES = ("constant", "reflect")

Self = TypeVar("Self", bound="Spectrogram")


def _numbers(name: str, value: float | Sequence[float]) -> Tensor:
    """`value` as float32 `(numbers, 1, 1)`; raise `ValueError` for what is none."""
    try:
        return torch.as_tensor(value, dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
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
        center: whether frame `i` has its middle at sample `i * hop`, as in librosa; otherwise it starts there.
        pad_mode: what is beyond both ends with `center`: "constant" for zeros, as in librosa, or "reflect", as in
            torchaudio.
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
    pad_mode = "constant"
    output_dtype = torch.float32
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
        pad_mode: str,
        frames: int | None,
        standardize: bool,
        mean: float | Sequence[float] | None,
        deviation: float | Sequence[float] | None,
        time_first: bool,
    ) -> None:
        super().__init__()
        sample_rate, fft_size = check_sizes(sample_rate=sample_rate, fft_size=fft_size)
        self.sample_rate, self.fft_size, self.center = sample_rate, fft_size, center
        self.standardize, self.time_first, self.pad_mode = standardize, time_first, pad_mode
        if pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode: expected one of {', '.join(PAD_MODES)}, got {pad_mode!r}")
        (self.hop,) = check_sizes(hop=max(fft_size // 4, 1) if hop is None else hop)
        (self.window_length,) = check_sizes(window_length=fft_size if window_length is None else window_length)
        self.frames = None if frames is None else check_sizes(frames=frames)[0]
        if self.window_length > fft_size:
            raise ValueError(f"window_length: expected at most fft_size, {fft_size}, got {window_length}")
        self._statistics = self._checked_statistics(mean, deviation)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickle's state; those of 0.1.0 hold the statistics as buffers alone."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "_statistics" not in vars(self):
            tables = {"mean": self.mean, "deviation": self.deviation}
            self._statistics = {name: table.cpu() for name, table in tables.items() if table is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """The class's name and the constructor's arguments, ready for JSON; `front_ends.build` reads them."""
        values = {name: getattr(self, name) for name in self._shared()}
        for name in ("mean", "deviation"):
            statistic = self._statistics.get(name)
            values[name] = None if statistic is None else statistic.flatten().tolist()
        return {"name": type(self).__name__, **as_python(values)}

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

    def forward(
        self, waveform: Tensor, lengths: Sequence[int] | Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute spectrograms.

        NaN and infinity come out as NaN or infinity, in the frames that hold them, with `standardize` in the whole
        spectrogram, and in no other sample.

        Args:
            waveform: `(batch, samples)`, floating point, on the device of the module. One clip is `clip[None]`.
            lengths: of padded clips, `(batch,)` integers: how many samples are real, those in front, whatever stands
                behind. Each clip gets the frames that it has alone, and zeros after. None for all.

        Returns:
            `(batch, channels, bins, frames)`, with `time_first` `(batch, channels, frames, bins)`; in the dtype of
            the module if that was set, otherwise float64 for a float64 waveform, else float32. With `lengths` also how
            many frames of each are real, `(batch,)`, int64, where `lengths` is, as `SepTr` takes them:
            `model(*front_end(waveform, lengths))`.

        Raises:
            ValueError: for a waveform of another shape, without samples or, without `center`, of fewer than
                `fft_size` where no number of frames is fixed, or too few to be reflected; for lengths out of range.
            TypeError: for a waveform that is not a dense floating-point tensor on the device of the module, or lengths
                that are no integers.
        """
        self._check(waveform)
        samples = None if lengths is None else self._samples(waveform, lengths)
        device_type = waveform.device.type
        with torch.autocast(device_type, enabled=False) if autocasts(device_type) else nullcontext():
            spectrum = self._transform(waveform, samples)
            frames = None if samples is None else self._frames_of(samples).clamp(1, spectrum.shape[2])
            valid = None if frames is None else _within(frames, spectrum)
            held = spectrum if valid is None else _silenced(spectrum, valid)
            values = self._standardized(self.features(held), valid)
            values = values if valid is None else torch.where(valid, values, 0.0)
        if self.output_dtype != torch.float32:
            values = values.to(self.output_dtype)
        values = values.transpose(2, 3) if self.time_first else values
        return values if frames is None else (values, frames)

    def features(self, spectrum: Tensor) -> Tensor:
        """`(batch, channels, bins, frames)` from the complex `spectrum` `(batch, fft_size // 2 + 1, frames)`."""
        raise NotImplementedError

    def _shared(self) -> tuple[str, ...]:
        """Arguments of the constructor that are attributes under the same name."""
        sizes = ("sample_rate", "fft_size", "hop", "window_length")
        return (*sizes, "center", "pad_mode", "frames", "standardize", "time_first")

    def _tables(self) -> dict[str, Tensor]:
        """What is kept as buffers by name, float32, on the CPU."""
        window = torch.hann_window(self.window_length, dtype=torch.float32, device="cpu")
        return {"window": window, **self._statistics}

    def _register_tables(self) -> None:
        """Keep `_tables` where PyTorch makes tensors."""
        place = torch.empty(0).device
        for name, table in self._tables().items():
            self.register_buffer(name, table.to(place), persistent=False)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As that of `nn.Module`, but tables only move; a dtype is that of what comes out."""
        before = dict(self.named_buffers(recurse=False))
        asked = fn(self.window.new_empty(0, dtype=self.output_dtype)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.output_dtype = asked if asked.is_floating_point else self.output_dtype
        gone = before["window"].is_meta and not self.window.is_meta
        for name, table in (self._tables() if gone else before).items():
            changed = getattr(self, name)
            if gone or changed.dtype != table.dtype:
                self.register_buffer(name, table.to(changed.device), persistent=False)
        return self

    def _checked_statistics(
        self, mean: float | Sequence[float] | None, deviation: float | Sequence[float] | None
    ) -> dict[str, Tensor]:
        """`mean` and `deviation` as tables `(1 or channels, 1, 1)`; none without."""
        if (mean is None) != (deviation is None):
            raise ValueError(f"deviation: expected it together with mean, got mean {mean!r}, deviation {deviation!r}")
        if mean is not None and self.standardize:
            raise ValueError("standardize: expected it without mean and deviation, or the other way round")
        if mean is None or deviation is None:
            self.mean = self.deviation = None
            return {}
        tables = {}
        for name, value in (("mean", mean), ("deviation", deviation)):
            numbers = _numbers(name, value)
            if len(numbers) not in (1, self.channels):
                raise ValueError(f"{name}: expected one number or {self.channels}, got {len(numbers)}")
            if not bool(numbers.isfinite().all()) or (name == "deviation" and float(numbers.min()) <= 0):
                kind = "positive" if name == "deviation" else "finite"
                raise ValueError(f"{name}: expected {kind} numbers, got {value!r}")
            tables[name] = numbers
        return tables

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
        if self._reflects and waveform.shape[1] <= self.fft_size // 2:
            raise ValueError(
                f"waveform: expected more than {self.fft_size // 2} samples, half of fft_size, to be reflected, "
                f"got {tuple(waveform.shape)}"
            )

    @property
    def _reflects(self) -> bool:
        return self.center and self.pad_mode == "reflect"

    def _samples(self, waveform: Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
        """Checked lengths `(batch,)`, int64, where they are."""
        place = lengths.device if isinstance(lengths, Tensor) else torch.device("cpu")
        batch, size = waveform.shape
        read = valid_lengths.read(lengths, "width", batch=batch, size=size, pool=1, device=place)
        samples = torch.full((batch,), size, device=place) if read is None else read.valid
        if self._reflects and not torch.compiler.is_compiling() and int(samples.min()) <= self.fft_size // 2:
            raise ValueError(
                f"lengths: expected more than {self.fft_size // 2}, to be reflected, got {samples.tolist()}"
            )
        return samples

    def _frames_of(self, samples: Tensor) -> Tensor:
        """Frames of clips of so many samples, alone; below one where they do not fill a frame."""
        beyond = 2 * (self.fft_size // 2) if self.center else 0
        return torch.div(samples + (beyond - self.fft_size), self.hop, rounding_mode="floor") + 1

    def _transform(self, waveform: Tensor, samples: Tensor | None) -> Tensor:
        """The complex spectrum `(batch, fft_size // 2 + 1, frames)` of `(batch, samples)`, cut at `samples`."""
        double = torch.float64 in (waveform.dtype, self.output_dtype)
        waveform = waveform.to(torch.float64 if double else torch.float32)
        if samples is not None:
            samples = samples.to(waveform.device, non_blocking=True)
            waveform = torch.where(valid_lengths.within(samples, waveform.shape[1]), waveform, 0.0)
        if self._reflects:
            return self._of_reflected(waveform, samples)
        if self.frames is not None:
            behind = self.fft_size - self.fft_size // 2 if self.center else self.fft_size
            reach = (self.frames - 1) * self.hop + behind
            waveform = nn.functional.pad(waveform, (0, reach - waveform.shape[1]))
        return self._cut(self._stft(waveform, self.center))

    def _of_reflected(self, waveform: Tensor, samples: Tensor | None) -> Tensor:
        """As `_transform`, with each clip reflected at both ends; frames that it has not alone are zeros."""
        half, size = self.fft_size // 2, waveform.shape[1]
        if samples is None:
            waveform = nn.functional.pad(waveform[:, None], (half, half), mode="reflect")[:, 0]
            own = torch.full((1,), size, device=waveform.device)
        else:
            places, last = torch.arange(-half, size + half, device=waveform.device), samples[:, None] - 1
            folded = last - (last - places.abs()).abs()
            reflected = waveform.gather(1, folded.clamp(0, size - 1))
            waveform, own = torch.where(places <= last + half, reflected, 0.0), samples
        if self.frames is not None:
            reach = (self.frames - 1) * self.hop + self.fft_size
            waveform = nn.functional.pad(waveform, (0, reach - waveform.shape[1]))
        spectrum = self._stft(waveform, center=False)
        if self.frames is None:
            return spectrum
        return _silenced(spectrum, _within(self._frames_of(own), spectrum))

    def _stft(self, waveform: Tensor, center: bool) -> Tensor:
        return torch.stft(
            waveform,
            n_fft=self.fft_size,
            hop_length=self.hop,
            win_length=self.window_length,
            window=self.window.to(waveform.dtype),
            center=center,
            pad_mode="constant",
            return_complex=True,
        )

    def _cut(self, spectrum: Tensor) -> Tensor:
        """The first `frames`; exporters have no rule for a slice that cuts nothing."""
        return spectrum if self.frames in (None, spectrum.shape[2]) else spectrum[..., : self.frames]

    def _standardized(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
        if self.standardize:
            return standardize_clips(values, valid)
        if self.mean is None or self.deviation is None:
            return values
        return (values - self.mean.to(values.dtype)) / self.deviation.to(values.dtype)


def _within(frames: Tensor, spectrum: Tensor) -> Tensor:
    """Which of the frames `(batch, bins, frames)` are the first `frames` of their sample, `(batch, 1, 1, frames)`."""
    return valid_lengths.within(frames.to(spectrum.device, non_blocking=True), spectrum.shape[2])[:, None, None]


def _silenced(spectrum: Tensor, valid: Tensor) -> Tensor:
    """`spectrum` with zeros in the place of frames that are not `valid`; exporters have no rule for complex values."""
    return torch.view_as_complex(torch.where(valid[:, 0, ..., None], torch.view_as_real(spectrum), 0.0))


class ComplexSpectrogram(Spectrogram):
    """The complex spectrum as real channels: real part, imaginary part and, if wanted, magnitude.

    Args:
        sample_rate: in hertz.
        magnitude: whether the magnitude is a third channel.
        fft_size: length of the Fourier transform, in samples; it has `fft_size // 2 + 1` bins.
        hop: from one frame to the next, in samples; None for a quarter of `fft_size`.
        window_length: of the Hann window in the middle of each frame, in samples; None for `fft_size`.
        center: whether frame `i` has its middle at sample `i * hop`, as in librosa; otherwise it starts there.
        pad_mode: what is beyond both ends with `center`: "constant" for zeros, as in librosa, or "reflect", as in
            torchaudio.
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
        pad_mode: str = "constant",
        frames: int | None = None,
        standardize: bool = False,
        mean: float | Sequence[float] | None = None,
        deviation: float | Sequence[float] | None = None,
        time_first: bool = False,
    ) -> None:
        self.channels = 3 if magnitude else 2
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
        self.magnitude = magnitude
        self.bins = fft_size // 2 + 1
        self._register_tables()

    def features(self, spectrum: Tensor) -> Tensor:
        """`(batch, 2 or 3, bins, frames)` from the complex `spectrum` `(batch, bins, frames)`."""
        parts = [spectrum.real, spectrum.imag, *([spectrum.abs()] if self.magnitude else [])]
        return torch.stack(parts, dim=1)

    def _shared(self) -> tuple[str, ...]:
        return (*super()._shared(), "magnitude")
