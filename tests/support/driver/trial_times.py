"""The trial of a first launch, by Triton's own launcher on the stub of a driver: what it takes of the host.

Run as a program, it prints for each dtype how many launches and results there are, and the seconds that they take once
the kernels are compiled. Nothing runs on the stub, so what a GPU takes besides is not in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from septr_fast.kernels import launch

from septr_fast.forecast.stub import Stub
from septr_fast.passes import backend
from septr_fast.passes.triton import trial

CPU, ARCHITECTURE = torch.device("cpu"), 90
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def told(folder: Path) -> Iterator[dict[str, Any]]:
    """Of each dtype the second of two runs; the first one compiles."""
    stub = Stub(folder, ARCHITECTURE)
    triton.runtime.driver.set_active(stub.driver)
    stub.expect([])
    with (
        mock.patch.object(launch, "architecture", return_value=ARCHITECTURE),
        mock.patch.object(backend, "why_not_triton", return_value=None),
    ):
        for dtype in DTYPES:
            trial.figures(CPU, dtype)
            before, begun = stub.last().launches, time.perf_counter()
            results = len(trial.figures(CPU, dtype))
            seconds = time.perf_counter() - begun
            launches = stub.last().launches - before
            yield {"dtype": str(dtype), "launches": launches, "results": results, "seconds": round(seconds, 3)}


def main() -> None:
    """Print what comes of it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for one in told(Path(folder)):
            sys.stdout.write(json.dumps(one) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
