"""More cores, reckoned from what one does in a forward pass: `python -m benchmarks.measuring.scaling`.

One thread and two are timed, operations and bytes are counted, and chunks are cut as for any number of cores. The rest
is reckoned: nothing here ran on more than the cores that there are. Writes docs/scaling.json and
docs/scaling.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.measuring.counting import Operations
from benchmarks.measuring.timing import seconds, threads
from benchmarks.suite.stamp import ROOT, stamp
from septr_fast import SepTr
from septr_fast.passes.torch import chunks, cores, passes
from septr_fast.report.tables import markdown
from septr_fast.report.units import duration, quantity

RECORDS, PAGE = Path("docs/scaling.json"), Path("docs/scaling.md")
CORES = (1, 2, 4, 8, 16, 64, 128)
BATCHES = (1, 8)
ROUNDS = 7
HEAD = """# More cores, reckoned

Made by `python -m benchmarks.measuring.scaling`; edits by hand are lost. **One thread and two were measured.** All else
is reckoned from them, from counted operations, and from the chunks that the code cuts for so many cores; no machine of
more cores has run it."""
LEGEND = """A pass is one transformer along one axis. At most {most} threads share its chunks, each with an equal share
of the cores for its products, and all wait once, at the end. A pass is taken to last as long as the longest of
these, and what rules most of the time is named:

- *products*: the work of one core, divided by all, the last round of chunks counted whole;
- *starts*: Python starts one operation at a time, {start} each, whatever thread asks;
- *memory*: what operations read and write, at the speed at which one core copies, {speed}/s, times the cores, up to
  {channels} of them. All of it is taken to come from memory, though chunks are cut to stay in caches: the darkest case.

Beyond {most} cores every thread has several, whose operations end in barriers of their own: they are not in it."""
MEMORY_CORES = 16
"""Cores whose copies alone are taken to fill a machine's memory channels."""


@dataclass(frozen=True)
class Pass:
    """A pass as counted.

    Attributes:
        flops: of a sample.
        rows: of samples and rows, `(batch, rows)`; what chunks are cut from.
        bytes_per_row: of intermediate results.
        operations: of a chunk.
        bytes_moved: of a sample.
    """

    flops: int
    rows: tuple[int, int]
    bytes_per_row: int
    operations: float
    bytes_moved: float


@dataclass(frozen=True)
class Measured:
    """What one thread and two were measured at, in seconds and bytes per second."""

    one: float
    two: float
    start: float
    copy: float


def chunk_count(one: Pass, count: int) -> int:
    """How many chunks a forward pass on so many threads is cut into."""
    rows = torch.empty(*one.rows, 0)
    with mock.patch.object(cores, "count", return_value=min(count, cores.MOST)), torch.no_grad():
        samples, rows_each = chunks.chunk_size(rows, one.bytes_per_row)
    return ceil(one.rows[0] / samples) * ceil(one.rows[1] / rows_each)


def reckoned(counted: Sequence[Pass], measured: Measured, count: int) -> dict[str, Any]:
    """Time of a forward pass on so many cores, and what bounds most of it."""
    total = sum(one.flops for one in counted)
    times: dict[str, float] = dict.fromkeys(("products", "starts", "memory"), 0.0)
    total_seconds, pieces = 0.0, 0
    for one in counted:
        number = chunk_count(one, count)
        takers = min(count, cores.MOST, number)
        work = measured.one * one.flops / total
        found = {
            "products": work * ceil(number / takers) / number / (count / takers if takers > 1 else count),
            "starts": number * one.operations * measured.start if count > 1 else 0.0,
            "memory": one.rows[0] * one.bytes_moved / measured.copy / min(count, MEMORY_CORES),
        }
        longest = max(found, key=lambda name: found[name])
        times[longest] += found[longest]
        total_seconds, pieces = total_seconds + found[longest], pieces + number
    return {
        "cores": count,
        "chunks": pieces,
        "seconds": total_seconds,
        "bound": max(times, key=lambda name: times[name]),
    }


def measure(batch: int) -> dict[str, Any]:
    """Count the passes of the default model's forward pass, and time it on one thread and on two."""
    torch.manual_seed(0)
    model, x = SepTr().eval(), torch.randn(batch, 1, 128, 128)

    def call() -> None:
        with torch.no_grad():
            model(x)

    counted = passes_of(model, x, call)
    timed = {count: _median(call, count) for count in (1, 2)}
    with threads(1):
        start, copy = _start(), _copy()
    measured = Measured(timed[1], timed[2], start, copy)
    return {"batch": batch, "measured": asdict(measured), "passes": [asdict(one) for one in counted]}


def passes_of(model: SepTr, x: torch.Tensor, call: Callable[[], None]) -> list[Pass]:
    """The passes of a forward pass of `model`, counted while `call` runs it on `x`."""
    cut: list[tuple[tuple[int, int], int]] = []
    real = chunks.chunk_size

    def spy(rows: torch.Tensor, bytes_per_row: int) -> tuple[int, int]:
        cut.append(((rows.shape[0], rows.shape[1]), bytes_per_row))
        return real(rows, bytes_per_row)

    call()
    with (
        threads(2),
        mock.patch.object(chunks, "chunk_size", spy),
        mock.patch.object(passes, "chunk_size", spy),
        Operations() as operations,
    ):
        call()
    steps = model.plan().steps
    if len(cut) != len(steps):
        raise RuntimeError(f"passes: expected {len(steps)}, one for each transformer, got {len(cut)}")
    blank = [Pass(step.flops, rows, size, 0.0, 0.0) for step, (rows, size) in zip(steps, cut, strict=True)]
    pieces = sum(chunk_count(one, 2) for one in blank)
    total = sum(one.flops for one in blank)
    return [
        Pass(
            one.flops,
            one.rows,
            one.bytes_per_row,
            operations.operations / pieces,
            operations.bytes_moved / len(x) * one.flops / total,
        )
        for one in blank
    ]


def _start() -> float:
    """Seconds from the start of an operation on next to nothing to that of the next."""
    x, weight = torch.randn(2, 2), torch.randn(2, 2)

    def call() -> None:
        for _ in range(1000):
            torch.addmm(x, x, weight)

    return _median(call, 1) / 1000


def _copy() -> float:
    """Bytes per second that one core reads and writes, of far more than fits a cache."""
    source = torch.zeros(1 << 27)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(lambda: target.copy_(source), 1)


def _median(call: Callable[[], object], count: int) -> float:
    with threads(count):
        call()
        return statistics.median(seconds(call, torch.device("cpu")) for _ in range(ROUNDS))


def page(content: Mapping[str, Any]) -> str:
    """The page of a record."""
    machine = content["machine"]
    torch_version = str(machine["versions"]["torch"]).partition("+")[0]
    first = Measured(**content["runs"][0]["measured"])
    blocks = [
        HEAD,
        f"Default model, 128x128, float32, forward, no gradients; {machine['device']}, PyTorch {torch_version},\n"
        f"commit {machine['commit']}, {machine['date'][:10]}.",
    ]
    for run in content["runs"]:
        measured, counted = Measured(**run["measured"]), [Pass(**one) for one in run["passes"]]
        rows = [reckoned(counted, measured, number) for number in CORES]
        error = rows[CORES.index(2)]["seconds"] / measured.two - 1
        blocks += [
            f"## Batch {run['batch']}",
            f"Measured: {duration(measured.one)} on one thread, {duration(measured.two)} on two, "
            f"{measured.one / measured.two:.2f} times as fast; what is reckoned for two is {abs(error):.0%} "
            f"{'more' if error > 0 else 'less'}.",
            markdown(
                ["cores", "chunks", "reckoned", "times one core", "bound by"],
                [
                    [
                        str(row["cores"]),
                        str(row["chunks"]),
                        duration(row["seconds"]),
                        f"{rows[0]['seconds'] / row['seconds']:.1f}",
                        row["bound"],
                    ]
                    for row in rows
                ],
            ),
        ]
    speed = quantity(first.copy, "B")
    blocks.append(LEGEND.format(most=cores.MOST, start=duration(first.start), speed=speed, channels=MEMORY_CORES))
    return "\n\n".join(blocks) + "\n"


def main(root: Path = ROOT) -> int:
    """Measure, reckon and write both files."""
    content = {"machine": stamp(torch.device("cpu")), "runs": [measure(batch) for batch in BATCHES]}
    (root / RECORDS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (root / PAGE).write_text(page(content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
