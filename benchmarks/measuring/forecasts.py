"""Forecasts of the default model, kept with the result: `TRITON_INTERPRET=0 python -m benchmarks.measuring.forecasts`.

Nothing of it ran on a GPU. Writes docs/forecast.json and docs/forecast.md; `--page` the page alone, from
the file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.suite.stamp import ROOT, stamp
from septr_fast.forecast import forecasts, known
from septr_fast.forecast.measured import at_hand
from septr_fast.report.tables import markdown
from septr_fast.report.units import duration

RECORDS, PAGE = Path("docs/forecast.json"), Path("docs/forecast.md")
DEVICES = ("h100", "h200", "b200", "a100", "l4", "4090")
BATCHES = (1, 64)
COMPARED = ("h100", "a100", "l4", "4090")
VARIANTS = (
    ("bfloat16", "reference"),
    ("bfloat16", "torch"),
    ("bfloat16", "triton"),
    ("autocast", "triton"),
    ("tf32", "reference"),
    ("tf32", "torch"),
    ("float32", "reference"),
    ("float32", "torch"),
    ("float32", "triton"),
)
"""Precisions, and by what, that are compared in a step of training of `SHOWN`'s batch."""
CALLED = {"reference": "reference", "torch": "PyTorch", "triton": "kernels"}
SHOWN = "H100 SXM", 64
"""Whose kernels the page shows one by one."""
LONGEST = 12
"""Rows of a table of kernels."""
HEAD = """# Forecast: what a GPU should take

Made by `python -m benchmarks.measuring.forecasts`; edits by hand are lost. **No forecast on this page was measured
on a GPU.** The default model's kernels were compiled for each GPU's architecture, their machine code read, and times
reckoned from what a program asks of each unit of a multiprocessor and of memory. Forecasts of kernels that others have
published figures of are off by {mean:.0%} on average, and by {error:.0%} where the figure had no part in the fit:
every time on this page is uncertain by that, at least. A measured figure, once there is one in
[results.md](results.md), goes before any of these. `septr-fast forecast` makes one for you."""
PRECISIONS = f"""A step of training of {SHOWN[1]} spectrograms: by the reference, which is the original operation by
operation (eager: no compiler, no fused attention); by this package on PyTorch's operations alone; and on the kernels.
`backend="auto"` takes the kernels in 16 bits and PyTorch in float32, where tensor cores have no part in the kernels'
products. TF32 is `torch.set_float32_matmul_precision("high")`. The kernels compute again in the backward pass what
PyTorch keeps for it, several times as many bytes, unless `set_grad_checkpointing()` was called."""
METHOD = """## How it is reckoned

- **Instructions**: of every loop of the machine code, times its rounds, which Triton's own form of the kernel tells. A
  quarter of a multiprocessor starts one instruction in a cycle; whole numbers and special functions take it longer.
- **Tensor cores**: at the rate that the vendor's library attains on that GPU in large products, as others measured it.
  What those of a B200 read of shared memory is not counted, and no published figure below is of one.
- **Memory**: operands from the L2 cache where they take less than half of it, otherwise from memory at 90 % of its
  stated speed. Sectors of requests and conflicts over banks are those counted where `make trust` executes the kernels.
- **Together**: a program takes what its busiest unit takes, and a share of the rest, {exposed:.0%}, divided by the
  programs beside it; an L2 cache gives a multiprocessor {cache:.0f} bytes in a cycle. These two numbers are fitted to
  the figures below.
- **Host**: what Triton's own launcher takes here on a stub of the driver that runs nothing, for as many launches. A
  pass takes the longer of host and GPU; in a CUDA graph that of the GPU."""


def measure(cache: Path, jobs: int) -> dict[str, Any]:
    """Compile everything and make the forecasts, as plain values."""
    figures = known.published()
    works = known.works(figures, cache, jobs, _silent)
    checked = known.check(figures, works, forecasts.FIT)
    made = [
        one
        for training in (False, True)
        for one in forecasts.forecasts({}, DEVICES, BATCHES, training, cache, jobs, _silent, at_hand())
    ]
    compared = [
        one
        for precision, backend in VARIANTS
        for one in forecasts.forecasts(
            {}, COMPARED, SHOWN[1:], True, cache, jobs, _silent, at_hand(), (precision,), backend
        )
    ]
    return {
        "stamp": stamp(torch.device("cpu")),
        "fit": forecasts.FIT._asdict(),
        "error": forecasts.ERROR,
        "published": [
            {**forecasts.as_json(one), "works": {number: asdict(work) for number, work in its.items()}}
            for one, its in zip(checked, works, strict=True)
        ],
        "forecasts": made,
        "compared": compared,
    }


def _silent(total: int) -> Any:
    return lambda: None


def page(content: Mapping[str, Any]) -> str:
    """The page."""
    found = content["published"]
    mean = sum(abs(one["error"]) for one in found) / len(found)
    head = HEAD.format(mean=mean, error=content["error"])
    method = METHOD.format(exposed=content["fit"]["exposed"], cache=content["fit"]["cache_bytes"])
    parts = [head, _machine(content["stamp"]), "## Passes", _passes(content["forecasts"])]
    for training in (False, True):
        shown = next(
            one for one in content["forecasts"] if (one["device"], one["batch"], one["training"]) == (*SHOWN, training)
        )
        kind = "training step" if training else "forward pass"
        parts += [f"### {SHOWN[0]}, {kind}, batch {SHOWN[1]}", _lines(shown["lines"])]
    parts += ["## Precisions", PRECISIONS, _compared(content["compared"])]
    parts += [method, "## Published figures and their forecasts", _published(found)]
    return "\n\n".join(parts) + "\n"


def _machine(told: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("torch", "triton"))
    return f"Compiled with {versions}; host measured on {told['device']}; commit {told['commit']}; {told['date'][:10]}."


def _passes(made: Iterable[Mapping[str, Any]]) -> str:
    header = (
        "forecast for",
        "pass",
        "batch",
        "GPU",
        "host",
        "spectrograms/s, GPU alone",
        "by the mean error, or measured",
    )
    rows = []
    for one in made:
        low, high = one["per_second_range"]
        kind = "training step" if one["training"] else "forward"
        host = "-" if one["host_seconds"] is None else duration(one["host_seconds"])
        rate = f"{one['per_second']:,.0f}", f"{low:,.0f} to {high:,.0f}"
        if one["measured"] is not None:
            rate = rate[0], f"measured: {one['measured']['per_second']:,.0f}"
        rows.append((one["device"], kind, str(one["batch"]), duration(one["gpu_seconds"]), host, *rate))
    return markdown(header, rows)


def _compared(made: Sequence[Mapping[str, Any]]) -> str:
    """A row for each GPU, a column for each variant."""
    header = ["forecast for", *(f"{precision}, {CALLED[by]}" for precision, by in VARIANTS)]
    rows = []
    for device in dict.fromkeys(one["device"] for one in made):
        times = {(one["precision"], one["backend"]): one["gpu_seconds"] for one in made if one["device"] == device}
        rows.append((device, *(duration(times[variant]) for variant in VARIANTS)))
    return markdown(header, rows)


def _lines(lines: Sequence[Mapping[str, Any]]) -> str:
    header = ("kernel or operation", "count", "time", "ruled by", "programs per multiprocessor", "cycles of a program")
    rows = [
        (*_counted(line["name"], [line]), line["bound"], str(line["resident"] or ""), _busiest(line)) for line in lines
    ]
    left = lines[LONGEST:]
    return markdown(header, [*rows[:LONGEST], (*_counted(f"{len(left)} others", left), "", "", "")])


def _counted(name: str, lines: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    return name, str(sum(line["count"] for line in lines)), duration(sum(line["seconds"] for line in lines))


def _busiest(line: Mapping[str, Any]) -> str:
    """The three units that a program keeps busy longest."""
    busiest = sorted(line["cycles"].items(), key=lambda pair: -pair[1])[:3]
    return ", ".join(f"{unit} {count:,.0f}" for unit, count in busiest)


def _published(found: Iterable[Mapping[str, Any]]) -> str:
    header = ("what", "GPU", "published", "forecast", "off by", "ruled by", "source")
    rows = [
        (
            one["name"], one["device"], f"{one['figure']:,.4g} {one['unit']}", f"{one['forecast']:,.4g} {one['unit']}",
            f"{one['error']:+.0%}", one["ruled by"], one["source"],
        )
        for one in found
    ]  # fmt: skip
    return markdown(header, rows)


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Write both files, or with `--page` the page alone."""
    if "--page" not in arguments:
        with tempfile.TemporaryDirectory() as cache:
            content = measure(Path(cache), os.cpu_count() or 1)
        (root / RECORDS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    content = json.loads((root / RECORDS).read_text(encoding="utf-8"))
    (root / PAGE).write_text(page(content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
