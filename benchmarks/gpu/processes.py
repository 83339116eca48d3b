"""Python processes of the checks on a GPU: this checkout is importable to them, and they are ended in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bare import ROOT

Process = subprocess.Popen[bytes]

LOST = 77
"""Status of a process that ended because an error of a kernel left the device unusable to it."""


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
            [*prefix, sys.executable, *isolation(), *arguments],
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


def wait(process: Process, seconds: float) -> int | None:
    """The status of a process, or None where it still runs after `seconds`."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def count() -> int:
    """How many processes share a GPU: most of their time goes into compiling, on a core each."""
    return min(16, os.cpu_count() or 1)


def isolation() -> list[str]:
    """The flag of this process that keeps installed packages out, where it was given."""
    return ["-S"] if sys.flags.no_site else []


def lines(path: Path) -> list[dict[str, Any]]:
    """What a process has noted so far, a line of JSON each; a last line that was cut off is left away."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def is_lost(device: torch.device) -> bool:
    """Whether an error of a kernel has left the device unusable to this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _environment(device: torch.device) -> dict[str, str]:
    """This process's, with this checkout on the path, and no setting of another run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **({} if device.type == "cuda" else {"TRITON_INTERPRET": "1"})}
