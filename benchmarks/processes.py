"""Python processes of the checks on a GPU: this checkout is importable to them, and they are ended in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.bare import ROOT

Process = subprocess.Popen[bytes]


def start(
    arguments: Sequence[str],
    log: Path,
    device: torch.device,
    *,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Process:
    """Start Python in the root of the checkout, in a session of its own.

    Args:
        arguments: of Python.
        log: file that gets all output.
        device: where its kernels run: compiled on a GPU, interpreted on a CPU.
        prefix: a command that runs Python, with its options.
        variables: of the environment, besides those of this process.
    """
    with log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            [*prefix, sys.executable, *arguments],
            cwd=ROOT,
            env={**_environment(device), **(variables or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: Process, limit: float) -> int | None:
    """The status of a process, which is ended with its children after `limit` seconds, one at least; None then."""
    try:
        return process.wait(timeout=max(1.0, limit))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def count() -> int:
    """How many processes share a GPU."""
    return min(8, os.cpu_count() or 1)


def _environment(device: torch.device) -> dict[str, str]:
    """This process's, with this checkout on the path, and no setting of another run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **({} if device.type == "cuda" else {"TRITON_INTERPRET": "1"})}
