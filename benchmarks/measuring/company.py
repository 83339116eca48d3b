"""Other processes that keep cores busy, as data loaders, a browser or another user of the machine do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = "print('busy', flush=True)\nwhile True: pass"


@contextmanager
def company(processes: int) -> Iterator[None]:
    """So many busy processes beside what runs inside."""
    started = [subprocess.Popen([sys.executable, "-S", "-c", BUSY], stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()
