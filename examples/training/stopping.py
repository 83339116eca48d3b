"""Signals that ask a run to stop: it does so after the step that it is in, with its state saved."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 10
"""Seconds that a data loader's worker lives on after SIGTERM."""


class Stop:
    """Takes note of SIGTERM and SIGINT while it is entered; a second one acts as if it were not there.

    Attributes:
        signal: the number of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}


def leave_signals_to_the_main_process(worker: int) -> None:
    """Let a data loader's worker live on while its main process finishes a step, though both get the signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _end_soon())


def _end_soon() -> None:
    signal.alarm(_GRACE)
