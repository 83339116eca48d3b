"""Kernels under the roofs of their device: what a copy and a matrix product would allow."""

from __future__ import annotations

from dataclasses import dataclass

from septr_fast.report.results import Kernel, Run
from septr_fast.report.summary import is_cpu
from septr_fast.report.tables import markdown
from septr_fast.report.units import duration, quantity, share, significant


@dataclass(frozen=True)
class Roofs:
    """What a device can do at best.

    Attributes:
        copy: bytes per second, read and written.
        product: FLOP per second in `precision`.
        precision: that of the kernels.
    """

    copy: float
    product: float
    precision: str

    def rate(self, intensity: float) -> float:
        """FLOP per second at `intensity` FLOP per byte."""
        return min(self.product, self.copy * intensity)

    def seconds(self, kernel: Kernel) -> float:
        """The least time for the bytes and for the products of `kernel`, whichever takes longer."""
        return max(kernel.bytes / self.copy, kernel.flops / self.product)


def roofs(run: Run, case: str) -> Roofs | None:
    """The roofs for the kernels of `case`; None for a CPU, where no kernel ran, and without ceilings of theirs."""
    precision, *others = {kernel.precision for kernel in by_case(run)[case]}
    if is_cpu(run) or others or not {"copy", precision} <= run.ceilings.keys():
        return None
    return Roofs(run.ceilings["copy"], run.ceilings[precision], precision)


def by_case(run: Run) -> dict[str, list[Kernel]]:
    """The kernels of each case; their number in chart and table is their place, from 1."""
    found: dict[str, list[Kernel]] = {}
    for kernel in run.kernels:
        found.setdefault(kernel.case, []).append(kernel)
    return found


def intensity(kernel: Kernel) -> float | None:
    """FLOP per byte; None without matrix products or bytes."""
    return kernel.flops / kernel.bytes if kernel.flops and kernel.bytes else None


def measured(run: Run, kernel: Kernel) -> float | None:
    """Seconds in all launches of `kernel`; None where it was not timed on the device it is for."""
    return None if is_cpu(run) else kernel.seconds


def status(run: Run, case: str) -> str:
    """What the figures of the kernels of `case` are."""
    kernels = by_case(run)[case]
    timed = sum(measured(run, kernel) is not None for kernel in kernels)
    if is_cpu(run):
        return "Counted, not measured: the GPU's kernels, without a GPU."
    if roofs(run, case) is None:
        return "Counted: no roofs without the ceilings of a copy and of products in the kernels' precision."
    if timed == len(kernels):
        return "Measured."
    text = "Not measured: what the ceilings would allow"
    return f"{text}." if not timed else f"Filled: measured. Hollow: {text[0].lower()}{text[1:]}."


def table(run: Run, case: str) -> str:
    """The kernels of `case`, numbered as in the chart."""
    above = roofs(run, case)
    rows = [_cells(number, kernel, run, above) for number, kernel in enumerate(by_case(run)[case], 1)]
    header = (
        *("", "kernel", "launches", "GFLOP", "bytes", "FLOP per byte", "time", "FLOP/s"),
        *("of what the ceilings allow", "of the copy's bandwidth", "at best"),
    )
    return markdown(header, rows)


def _cells(number: int, kernel: Kernel, run: Run, above: Roofs | None) -> tuple[str, ...]:
    timed = measured(run, kernel)
    ratio = intensity(kernel)
    return (
        str(number),
        kernel.name,
        str(kernel.launches),
        significant(kernel.flops / 1e9) if kernel.flops else "",
        quantity(kernel.bytes, "B"),
        "" if ratio is None else significant(ratio),
        "" if timed is None else duration(timed),
        quantity(kernel.flops / timed, "FLOP/s") if timed and kernel.flops else "",
        share(above.seconds(kernel) / timed) if timed and above else "",
        share(kernel.bytes / timed / above.copy) if timed and above else "",
        "" if above is None else duration(above.seconds(kernel)),
    )
