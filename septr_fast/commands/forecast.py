"""`septr-fast forecast`: how long a pass should take on a GPU that need not be here, by compiled kernels alone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from septr_fast import progress
from septr_fast.passes.backend import cache_folder
from septr_fast.report.tables import aligned
from septr_fast.report.units import duration

CACHE = cache_folder() / "forecast"
BACKENDS = {"auto": "", "triton": "kernels", "torch": "PyTorch alone", "reference": "the reference"}
"""What is forecast, in words; "auto" is the kernels in 16 bits and PyTorch alone in float32."""
PRECISIONS = ("bfloat16", "float16", "float32", "tf32", "autocast")
NAMES = ("h100", "h200", "b200", "a100", "l4", "4090", "3090")

HELP = "forecast the time of a pass on a GPU from its compiled kernels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the forecast."""
    parser.add_argument("--device", nargs="+", choices=NAMES, default=["h100"], help="(default: %(default)s)")
    parser.add_argument("--batch", nargs="+", type=int, default=[64], help="spectrograms at a time")
    parser.add_argument("--training", action="store_true", help="a step of training without optimizer")
    parser.add_argument("--dtype", nargs="+", choices=PRECISIONS, default=["bfloat16"], help="(default: %(default)s)")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto: kernels in 16 bits, PyTorch alone in float32; reference: the original, eager",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="objects for machines in place of tables")
    parser.add_argument("--published", action="store_true", help="only published figures beside their forecasts")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of earlier results (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="kernels compiled at a time")
    parser.add_argument(
        "--measured",
        nargs="+",
        type=Path,
        help="results of the benchmarks on GPUs (default: the project's, if at hand)",
    )


def run(
    device: Sequence[str],
    batch: Sequence[int],
    training: bool,
    as_json: bool,
    published: bool,
    cache: Path,
    jobs: int,
    measured: Sequence[Path] | None = None,
    dtype: Sequence[str] = ("bfloat16",),
    backend: str = "auto",
    config: Mapping[str, Any] | None = None,
) -> int:
    """Print forecasts of the default model, each with the error of forecasts of published figures.

    What was measured goes before them.

    Args:
        device: names of `septr_fast.forecast.devices.DEVICES`.
        batch: numbers of spectrograms.
        training: whether a step of training is forecast, without optimizer.
        as_json: whether to print objects in place of tables.
        published: whether to print published figures beside their forecasts, and nothing else.
        cache: folder of earlier results.
        jobs: kernels compiled at a time.
        measured: files of results on GPUs; None for the project's, which an installed package does not hold.
        dtype: of everything; some of `PRECISIONS`.
        backend: of `BACKENDS`.
        config: constructor arguments of `SepTr` for another model.

    Returns:
        The exit status: 2 without Triton, or where a file holds no results.
    """
    try:
        import triton
    except ImportError:
        sys.stderr.write("septr-fast forecast: the package triton is not installed\n")
        return 2
    if triton.knobs.runtime.interpret:
        return _without_interpreter(device, batch, training, as_json, published, cache, jobs, measured, dtype, backend)
    from septr_fast.forecast import forecasts
    from septr_fast.forecast.measured import at_hand

    try:
        runs = at_hand(measured)
    except ValueError as error:
        sys.stderr.write(f"septr-fast forecast: {error}\n")
        return 2
    if backend == "reference" and "autocast" in dtype:
        sys.stderr.write("septr-fast forecast: the reference is not recorded under autocast\n")
        return 2
    found = forecasts.published(cache, jobs, _progress)
    made = []
    if not published:
        made = forecasts.forecasts(config or {}, device, batch, training, cache, jobs, _progress, runs, dtype, backend)
    if as_json:
        told = {"published": [forecasts.as_json(one) for one in found], "error": forecasts.ERROR, "forecasts": made}
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        sys.stdout.write("\n\n".join([_published_table(found), *(_table(one) for one in made)]) + "\n")
    return 0


def _published_table(found: Sequence[Any]) -> str:
    from septr_fast.forecast import forecasts
    from septr_fast.forecast import known as known_figures

    rows = [("published by others", "GPU", "published", "forecast", "", "ruled by", "source")]
    for one in found:
        known = one.published
        figures = (f"{known.figure:.4g} {known.unit}", f"{one.forecast:.4g} {known.unit}", f"{one.error:+.0%}")
        rows.append((known.name, known.device, *figures, one.bound, known.source))
    mean = known_figures.mean_error(found)
    errors = f"mean error {mean:.0%}; of figures left out when the model was fitted {forecasts.ERROR:.0%}"
    return "\n".join([*aligned(rows), errors])


def _table(one: Mapping[str, Any]) -> str:
    kind = "training step" if one["training"] else "forward pass"
    title = f"FORECAST, not measured: {kind}, batch {one['batch']}, {_computed(one)}, {one['device']}"
    rows = [("kernel or operation", "count", "time", "ruled by", "programs per multiprocessor", "cycles of a program")]
    for line in one["lines"]:
        cycles = ", ".join(f"{unit} {count:,.0f}" for unit, count in line["cycles"].items() if count >= 1)
        time = duration(line["seconds"])
        rows.append((line["name"], str(line["count"]), time, line["bound"], str(line["resident"] or "-"), cycles))
    low, high = one["per_second_range"]
    lines = [
        *_measured(one),
        title,
        *aligned(rows),
        f"GPU {duration(one['gpu_seconds'])}: {one['per_second']:,.0f} spectrograms a second "
        f"({low:,.0f} to {high:,.0f} by the mean error)",
    ]
    if one["host_seconds"] is None:
        by_kernels = one["backend"] == "triton"
        reason = "as no C compiler built the stub of the driver" if by_kernels else "it is for kernels alone"
        lines.append(f"host: not measured, {reason}")
    else:
        lines.append(
            f"host, measured here for as many launches: {duration(one['host_seconds'])}; the pass takes "
            f"{duration(one['seconds'])}, in a CUDA graph {duration(one['gpu_seconds'])}"
        )
    return "\n".join(lines)


def _computed(one: Mapping[str, Any]) -> str:
    """In what, and by what."""
    return f"{one['precision']}, {BACKENDS[one['backend']]}"


def _measured(one: Mapping[str, Any]) -> list[str]:
    """What goes before the forecast, if anything was measured."""
    found = one["measured"]
    if found is None:
        return []
    what = "training step and optimizer" if one["training"] else "forward pass"
    return [
        f"MEASURED: {what}, batch {one['batch']}, {one['precision']}, {found['device']}, commit {found['commit']}: "
        f"{duration(found['seconds'])}, {found['per_second']:,.0f} spectrograms a second; "
        f"the forecast below is off by {one['off_by']:+.0%}"
    ]


def _without_interpreter(
    device: Sequence[str],
    batch: Sequence[int],
    training: bool,
    as_json: bool,
    published: bool,
    cache: Path,
    jobs: int,
    measured: Sequence[Path] | None,
    dtype: Sequence[str],
    backend: str,
) -> int:
    """Start the forecast in a process of its own: kernels that were imported to be interpreted do not compile."""
    options = ["--device", *device, "--batch", *map(str, batch), "--cache", str(cache), "--jobs", str(jobs)]
    options += ["--dtype", *dtype, "--backend", backend]
    options += ["--measured", *map(str, measured)] if measured is not None else []
    flags = {"--training": training, "--json": as_json, "--published": published}
    command = [sys.executable, "-m", "septr_fast", "forecast", *options, *(name for name, on in flags.items() if on)]
    return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}).returncode


def _progress(total: int) -> Callable[[], object]:
    """Show how many of `total` kernels are compiled."""
    return progress.start(total, "distinct kernels", "compiling").advance
