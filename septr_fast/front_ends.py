"""Front-ends by name: from the settings in a checkpoint back to the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from septr_fast.log_mel import LogMel
from septr_fast.spectrogram import ComplexSpectrogram, Spectrogram

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
