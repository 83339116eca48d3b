"""What the processor takes to start everything that a model asks of a GPU; run as a program, prints it.

By Triton's own launcher on a stub of the driver, which takes launches and runs nothing; PyTorch's own operations run
on tensors of few values on this processor, in place of being started on a GPU, in float32, in which they are quickest.
For a process in which Triton does not interpret.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor

from septr_fast.forecast.stub import Stub
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Config
from septr_fast.model import SepTr
from septr_fast.passes import backend

ARCH = 90
SMALL: dict[str, Any] = {
    "input_size": (16, 16), "num_classes": 5, "heads": 2, "dim": 32, "dim_head": 32, "mlp_dim": 32,
    "formulation": "merged",
}  # fmt: skip
"""A model of few values whose passes are those of the default model."""
ROUNDS = 30


class Host(NamedTuple):
    """What starting a pass takes of a processor.

    Attributes:
        seconds: of a pass whose transformers take one chunk of rows each.
        kernels: that it launches.
        per_kernel: seconds that each further kernel adds, with the operations between, where there are more chunks.
    """

    seconds: float
    kernels: int
    per_kernel: float

    def of(self, kernels: int) -> float:
        """Seconds of a pass that launches so many kernels."""
        return self.seconds + self.per_kernel * max(0, kernels - self.kernels)


def measured(depth: int, training: bool) -> Host | None:
    """What passes of a small model take, in a process of its own; None where no C compiler builds the stub."""
    command = [sys.executable, "-m", "septr_fast.forecast.host", str(depth), str(int(training))]
    done = subprocess.run(command, capture_output=True, text=True)
    return Host(*json.loads(done.stdout)) if done.returncode == 0 else None


def main(depth: int, training: bool) -> None:
    """Print a `Host`."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stub = Stub(Path(folder), ARCH)
        triton.runtime.driver.set_active(stub.driver)
        stub.expect([])
        with (
            mock.patch.object(launch, "architecture", _architecture),
            mock.patch.object(backend, "why_not_triton", _nothing),
        ):
            model = SepTr(**SMALL, depth=depth, backend="triton").train(training)
            x = torch.randn(1, 1, *SMALL["input_size"])
            seconds, kernels = _timed(stub, model, x, training)
            with launch.override({"chunk": Config({"MIB": 0})}):
                longer, more = _timed(stub, model, x, training)
    sys.stdout.write(json.dumps([seconds, kernels, (longer - seconds) / (more - kernels)]))


def _architecture(device: torch.device) -> int:
    return ARCH


def _nothing(*given: Any) -> None:
    return None


def _timed(stub: Stub, model: SepTr, x: Tensor, training: bool) -> tuple[float, int]:
    """The median time of a pass, and how many kernels it launches."""
    _run(model, x, training)
    before, taken = stub.last().launches, []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        _run(model, x, training)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken), (stub.last().launches - before) // ROUNDS


def _run(model: SepTr, x: Tensor, training: bool) -> None:
    with torch.set_grad_enabled(training):
        answer = model(x)
    if training:
        answer.sum().backward()


if __name__ == "__main__":
    main(int(sys.argv[1]), bool(int(sys.argv[2])))
