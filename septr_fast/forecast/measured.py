"""What the benchmarks have measured on a GPU: it goes before any forecast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from septr_fast.forecast.devices import Device
from septr_fast.report import results
from septr_fast.report.results import OURS, Run

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
"""Where a checkout of the project keeps them."""
GROUPS = {False: "forward", True: "training step"}


def at_hand(files: Sequence[Path] | None = None) -> list[Run]:
    """Results measured on a GPU.

    Args:
        files: results of the benchmarks; None for those of the project, which an installed package does not hold.

    Raises:
        ValueError: where one of `files` is none.
    """
    found = _readable(RESULTS.glob("*.json")) if files is None else map(results.load, files)
    return [run for run in found if run.stamp["kind"] == "cuda"]


def _readable(files: Iterable[Path]) -> Iterable[Run]:
    """Of files that lie beside results some are of other kinds."""
    for file in files:
        try:
            yield results.load(file)
        except ValueError:
            continue


def latest(
    runs: Iterable[Run], device: Device, batch: int, training: bool, precision: str = "bfloat16"
) -> dict[str, Any] | None:
    """The last figure of the default model, as plain values; None where nobody has measured it."""
    of_device = [run for run in runs if run.stamp["device"] == device.called]
    for run in sorted(of_device, key=lambda run: str(run.stamp["date"]), reverse=True):
        for one in run.results:
            figure = (one.group, one.model, one.shape, one.batch, one.precision)
            if figure == (GROUPS[training], OURS, "default", batch, precision):
                stamp = {key: run.stamp[key] for key in ("device", "commit", "date")}
                return {"seconds": one.seconds, "per_second": one.samples_per_second, **stamp}
    return None
