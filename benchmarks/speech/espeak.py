"""eSpeak NG by its C API: one word at a time, the same sound every time.

It comes with the package `espeakng-loader` (GPL, the extra "speech"), which carries the shared library and its data.

Three properties of eSpeak NG 1.52 shape the code. A voice that is not found leaves the previous one in
place, which only the status tells. A variant that is not found ("en-us+nosuch") is ignored with status OK,
so the data folder is asked. The library seeds its noise from the clock, and its phase and flutter survive
`espeak_Terminate`, so each clip is spoken by a freshly loaded and seeded library; a clip is then the same in
every run and whatever was spoken before it, unless other code in the process holds the library loaded.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 175
"""Speaking rate in words per minute."""

PITCH = 50
"""Pitch of a voice, from 0 to 100 of its range."""

_SEED = 1
_SILENCE_PEAK = 300

# Constants of speak_lib.h.
_STATUS_OK = 0
_OUTPUT_SYNCHRONOUS = 2
_OPTION_DONT_EXIT = 0x8000
_POSITION_CHARACTER = 1
_CHARACTERS_UTF8 = 1
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3

_SAMPLES_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_PROTOTYPES: dict[str, list[Any]] = {
    "espeak_Initialize": [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int],
    "espeak_ng_SetRandSeed": [ctypes.c_long],
    "espeak_SetVoiceByName": [ctypes.c_char_p],
    "espeak_SetParameter": [ctypes.c_int, ctypes.c_int, ctypes.c_int],
    "espeak_Synth": [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ],
    "espeak_Synchronize": [],
    "espeak_Terminate": [],
}

_turn = threading.Lock()


class Engine:
    """A loaded eSpeak NG: the state behind it is that of the process, so there is one at a time.

    Attributes:
        rate: sampling rate in hertz.
    """

    def __init__(self, library: ctypes.CDLL, data: Path) -> None:
        """Start `library` on the data folder `data`; raise `RuntimeError` if it does not start."""
        self._library = library
        self._data = data
        self._chunks: list[bytes] = []
        self._callback = _SAMPLES_CALLBACK(self._collect)
        for name, types in _PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, ctypes.c_int
        library.espeak_SetSynthCallback.argtypes = [_SAMPLES_CALLBACK]
        library.espeak_SetSynthCallback.restype = None
        self.rate: int = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _OPTION_DONT_EXIT)
        if self.rate <= 0:
            raise RuntimeError(
                f"espeak_Initialize: expected a rate in hertz, got {self.rate} with the data in {data}"
                " (it takes paths of fewer than 160 characters)"
            )
        library.espeak_SetSynthCallback(self._callback)

    def say(self, voice: str, word: str, words_per_minute: int = RATE, pitch: int = PITCH) -> NDArray[np.int16]:
        """`word` in `voice`, as samples `(samples,)` at `rate`.

        Raises:
            RuntimeError: with voice, word and status if eSpeak NG refuses, or if it gives no sound.
        """
        self._set_voice(voice, word)
        self._call("espeak_SetParameter", voice, word, _PARAMETER_RATE, words_per_minute, 0)
        self._call("espeak_SetParameter", voice, word, _PARAMETER_PITCH, pitch, 0)
        self._call("espeak_ng_SetRandSeed", voice, word, _SEED)
        self._chunks.clear()
        text = word.encode() + b"\0"
        self._call(
            "espeak_Synth", voice, word, text, len(text), 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None
        )
        self._call("espeak_Synchronize", voice, word)
        samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16)
        peak = int(np.abs(samples.astype(np.int32)).max(initial=0))
        if peak < _SILENCE_PEAK:
            raise RuntimeError(
                f"voice {voice!r}, word {word!r}: expected sound, got {len(samples)} samples with a peak of {peak}"
            )
        return samples

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        """Keep `count` samples; the null pointer marks the end. Returns 0: go on."""
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * ctypes.sizeof(ctypes.c_short)))
        return 0

    def _set_voice(self, voice: str, word: str) -> None:
        """Choose `voice`; raise `RuntimeError` if its accent or its variant does not exist."""
        self._call("espeak_SetVoiceByName", voice, word, voice.encode())
        _, plus, variant = voice.partition("+")
        variants = self._data / "voices" / "!v"
        if plus and not (variants / variant).is_file():
            raise RuntimeError(f"voice {voice!r}: expected a variant in {variants}, got {variant!r}")

    def _call(self, name: str, voice: str, word: str, *arguments: Any) -> None:
        """Call a function of the library; raise `RuntimeError` unless its status is OK."""
        status = getattr(self._library, name)(*arguments)
        if status != _STATUS_OK:
            raise RuntimeError(f"voice {voice!r}, word {word!r}: {name} gave status {status}, expected {_STATUS_OK}")


def _unload(library: ctypes.CDLL) -> None:
    """Drop `library` from the process, so that loading it again starts from fresh variables."""
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


@contextmanager
def engine(library_path: Path, data: Path) -> Iterator[Engine]:
    """A freshly loaded engine, gone at the end; other threads wait.

    Raises:
        RuntimeError: if the library cannot be loaded, started or stopped.
    """
    with _turn:
        try:
            library = ctypes.CDLL(str(library_path))
        except OSError as error:
            raise RuntimeError(f"expected the library of eSpeak NG in {library_path}: {error}") from error
        try:
            yield Engine(library, data)
        finally:
            status = library.espeak_Terminate()
            _unload(library)
        if status != _STATUS_OK:
            raise RuntimeError(f"espeak_Terminate gave status {status}, expected {_STATUS_OK}")


def locate() -> tuple[Path, Path]:
    """The shared library and the data folder of eSpeak NG; raises `ImportError` without `espeakng_loader`."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "speaking the words needs espeakng_loader: pip install septr_fast[speech], or pass a folder of WAV files"
        ) from error
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
