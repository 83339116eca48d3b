"""Passes whose kernels Triton's own launcher starts on the stub of a driver; run as a program.

Arguments are names of `support.execution.trials`. For each launch a JSON object is printed, on its own line: what the
driver was asked for otherwise than it is recorded, compiled and executed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Launch
from support.execution import launches
from support.execution.machine import parameter
from support.execution.parsing import parse
from support.execution.trials import CPU, TRIALS, Trial

from septr_fast.forecast.stub import Recorded, Stub
from septr_fast.passes import backend
from septr_fast.tuning import compiled


def launched(trial: Trial) -> list[Launch]:
    """The launches of a pass, in order."""
    with (
        launch.record(trial.arch) as recorded,
        mock.patch.object(backend, "why_not_triton", return_value=None),
    ):
        trial.results(trial.case(), "triton")
    return recorded


def otherwise(described: Launch, stub: Stub, wanted: Launch | None = None) -> list[str]:
    """What the driver is asked for otherwise than it should be, when a launch runs.

    Args:
        described: the launch.
        stub: what stands in for the driver.
        wanted: the launch that should run; by default `described`.
    """
    wanted = wanted or described
    with compiled.driver():
        kernel = compiled._warm_up(described, stub.arch, "launching")
    kinds = [kind for kind, _ in parse(kernel.asm["ptx"]).parameters]
    values = launches._values(wanted, kernel.src.signature)
    stub.expect([int(kind[1:]) // 8 for kind in kinds])
    before = stub.last().launches
    triton.runtime.driver.set_active(stub.driver)
    launch.run(described, CPU)
    found = stub.last()
    right = Recorded(
        name=kernel.metadata.name,
        grid=(wanted.programs, 1, 1),
        block=(32 * wanted.config.warps, 1, 1),
        shared=kernel.metadata.shared,
        attributes=0,
        values=[int(parameter(*both)) for both in zip(kinds, values, strict=True)],
        launches=before + 1,
    )
    return [
        f"{described.name}, {what}: expected {one}, got {other}"
        for what, one, other in zip(Recorded._fields, right, found, strict=True)
        if one != other
    ]


def planted(described: Launch) -> Launch:
    """A launch of one program more, every number among whose arguments is another."""
    changed = {name: value + 1 if type(value) is int else value for name, value in described.arguments.items()}
    return replace(described, programs=described.programs + 1, arguments=changed)


def told(names: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """What comes of every launch of trials, of those that are specialised alike of the first; all on one architecture.

    Of a trial with `/planted` behind its name the first launch is compared with what it is not.
    """
    stub = Stub(folder, TRIALS[names[0].partition("/")[0]].arch)
    for name in names:
        trial, *plants = name.split("/")
        if TRIALS[trial].arch != stub.arch:
            raise ValueError(f"names: expected those for sm_{stub.arch}, got {trial!r}")
        seen: set[str] = set()
        for described in launched(TRIALS[trial]):
            identity = compiled.identity(described, stub.arch)
            if described.programs and identity not in seen and not (plants and seen):
                seen.add(identity)
                wrong = otherwise(described, stub, planted(described) if plants else None)
                yield {"name": name, "kernel": described.name, "wrong": wrong}


def main(names: Sequence[str]) -> None:
    """Print what comes of trials by name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for one in told(names, Path(folder)):
            sys.stdout.write(json.dumps(one) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
