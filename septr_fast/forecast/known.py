"""What others have published of kernels of known kinds, and how far a forecast of them is off.

Only figures are taken whose GPU, sizes and dtype are named. They were measured with other releases of Triton, drivers
and clocks than a forecast can know; that is part of its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from septr_fast.forecast import times, work
from septr_fast.forecast.devices import DEVICES
from septr_fast.forecast.known_kernels import attention, layer_norm, product
from septr_fast.forecast.times import Fit
from septr_fast.forecast.work import Work
from septr_fast.kernels.launch import Launch
from septr_fast.tuning.kernel_report import bytes_moved

CHOICES = tuple(Fit(round(0.05 * share, 2), 2.0 * bytes_) for share in range(21) for bytes_ in range(5, 25))
"""What a fit is chosen from."""


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        name: of what was measured.
        device: a name of `DEVICES`.
        figure: as published.
        unit: "TFLOP/s" or "GB/s" (read and written once).
        source: where.
        candidates: kernels of which the fastest is taken, as was done by those who measured.
    """

    name: str
    device: str
    figure: float
    unit: str
    source: str
    candidates: tuple[Launch, ...]


class Checked(NamedTuple):
    """A published figure beside its forecast, in one unit, and what bounds it."""

    published: Published
    forecast: float
    bound: str

    @property
    def error(self) -> float:
        """The forecast over the figure, less one."""
        return self.forecast / self.published.figure - 1


def _attention(heads: int, length: int, head_dim: int) -> tuple[Launch, ...]:
    tiles = ((128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (128, 32, 4, 3))
    return tuple(attention(heads, length, head_dim, (q, k), warps, stages) for q, k, warps, stages in tiles)


def _product(size: int) -> tuple[Launch, ...]:
    tiles = ((128, 256, 64, 8, 3), (128, 128, 32, 4, 4), (64, 256, 32, 4, 4))
    return tuple(product(size, size, size, (m, n, d), warps, stages) for m, n, d, warps, stages in tiles)


def published() -> list[Published]:
    """All that is compared."""
    tutorial = "triton-lang/triton, tutorial"
    return [
        Published(
            "attention, 128 heads of 128, 8,192 tokens", "h100", 469.1, "TFLOP/s", "meta-pytorch/tritonbench#141",
            _attention(128, 8192, 128),
        ),
        Published(
            "attention, 1,024 heads of 128, 1,024 tokens", "h100", 353.4, "TFLOP/s", "pytorch/benchmark#2296",
            _attention(1024, 1024, 128),
        ),
        Published(
            "attention, 1,024 heads of 128, 4,096 tokens", "h100", 404.7, "TFLOP/s", "pytorch/benchmark#2296",
            _attention(1024, 4096, 128),
        ),
        Published(
            "attention, 128 heads of 64, 1,024 tokens", "3090", 60.2, "TFLOP/s", "rationalism/flash-attn-triton",
            _attention(128, 1024, 64),
        ),
        Published(
            "attention, 128 heads of 64, 4,096 tokens", "3090", 69.0, "TFLOP/s", "rationalism/flash-attn-triton",
            _attention(128, 4096, 64),
        ),
        Published(f"product of 4,096 ({tutorial})", "a100", 214.4, "TFLOP/s", "triton-lang/triton#743", _product(4096)),
        Published(f"product of 8,192 ({tutorial})", "a100", 267.4, "TFLOP/s", "triton-lang/triton#743", _product(8192)),
        Published("product of 2,048", "4060", 31.0, "TFLOP/s", "triton-lang/triton#10851", _product(2048)),
        Published(
            "layer normalization, 4,096 x 4,096", "a100", 1130.0, "GB/s", "allenai/OLMo#258",
            (layer_norm(4096, 4096, 8),),
        ),
        Published(
            "layer normalization, 4,096 x 8,192", "a100", 1380.0, "GB/s", "allenai/OLMo#258",
            (layer_norm(4096, 8192, 8),),
        ),
    ]  # fmt: skip


def works(
    found: Sequence[Published], cache: Path, jobs: int, progress: Callable[[int], Callable[[], object]]
) -> list[dict[int, Work]]:
    """The work of every candidate of every figure, by its place."""
    result: list[dict[int, Work]] = [{} for _ in found]
    for arch in sorted({DEVICES[one.device].arch for one in found}):
        own = [
            (place, number, launch)
            for place, one in enumerate(found)
            if DEVICES[one.device].arch == arch
            for number, launch in enumerate(one.candidates)
        ]
        counted = work.of_launches({n: launch for n, (*_, launch) in enumerate(own)}, arch, cache, jobs, progress)
        for n, (place, number, _) in enumerate(own):
            result[place][number] = counted[n]
    return result


def check(found: Sequence[Published], counted: Sequence[Mapping[int, Work]], fit: Fit) -> list[Checked]:
    """Every figure beside its forecast."""
    return [_checked(one, its, fit) for one, its in zip(found, counted, strict=True)]


def _checked(one: Published, counted: Mapping[int, Work], fit: Fit) -> Checked:
    device = DEVICES[one.device]
    costs = [
        (times.of_kernel(launch, counted[number], device, fit), launch)
        for number, launch in enumerate(one.candidates)
        if counted[number].resident
    ]
    cost, launch = min(costs, key=lambda pair: pair[0].seconds)
    done = launch.flops / 1e12 if one.unit == "TFLOP/s" else bytes_moved(launch) / 1e9
    return Checked(one, done / cost.seconds, cost.bound)


def mean_error(checked: Sequence[Checked]) -> float:
    """The mean of the errors' sizes."""
    return sum(abs(one.error) for one in checked) / len(checked)


def fitted(found: Sequence[Published], counted: Sequence[Mapping[int, Work]]) -> Fit:
    """The one of `CHOICES` whose mean error is least."""
    return min(CHOICES, key=lambda fit: mean_error(check(found, counted, fit)))


def error_when_left_out(found: Sequence[Published], counted: Sequence[Mapping[int, Work]]) -> float:
    """The mean error of forecasts of each figure that was left out when a fit was chosen."""
    errors = []
    for place in range(len(found)):
        others = [*found[:place], *found[place + 1 :]], [*counted[:place], *counted[place + 1 :]]
        errors.append(abs(_checked(found[place], counted[place], fitted(*others)).error))
    return sum(errors) / len(errors)
