"""Front-ends by name: from the settings in a checkpoint back to the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from septr_fast.audio.log_mel import LogMel
from septr_fast.audio.spectrogram import ComplexSpectrogram, Spectrogram

FRONT_ENDS: dict[str, type[LogMel] | type[ComplexSpectrogram]] = {
    "LogMel": LogMel,
    "ComplexSpectrogram": ComplexSpectrogram,
}


def build(settings: Mapping[str, Any]) -> Spectrogram:
    """The front-end that `settings` came from.

    Args:
        settings: "name", one of `FRONT_ENDS`, and arguments of its constructor; see `Spectrogram.settings`.

    Raises:
        ValueError: for an unknown name or argument, or a value that the constructor refuses.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    front_end = FRONT_ENDS.get(name) if isinstance(name, str) else None
    if front_end is None:
        raise ValueError(f"front_end: expected the name of one of {', '.join(FRONT_ENDS)}, got {name!r}")
    try:
        return front_end(**arguments)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"front_end: {name} does not take these settings: {error}") from error


def resized(settings: Mapping[str, Any], input_size: tuple[int, int]) -> dict[str, Any]:
    """`settings` of the same front-end for spectrograms of another size.

    Frames are as far apart as before, so more of them are a longer clip; more mel filters divide the same range of
    frequencies. What a Fourier transform's length decides cannot change.

    Args:
        settings: of a front-end, with its "name".
        input_size: `(height, width)` of a spectrogram.

    Raises:
        ValueError: for settings that `build` refuses, or another number of bins where these are no mel filters.
    """
    front_end = build(settings)
    bins, frames = reversed(input_size) if front_end.time_first else input_size
    changes = {"frames": frames}
    if bins != front_end.bins:
        if not isinstance(front_end, LogMel):
            axis = "width" if front_end.time_first else "height"
            raise ValueError(
                f"input_size: expected {front_end.bins} along the {axis}, the bins of the front-end's Fourier "
                f"transform, got {tuple(input_size)}"
            )
        changes["mels"] = bins
    return {**settings, **changes}
