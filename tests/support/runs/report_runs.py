"""Runs made up for the report's tests: what they tell was never measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.suite import pages
from septr_fast.report.charts.figures import DIGEST
from septr_fast.report.results import OURS, Kernel, NotRun, Result, Run, store

PICTURE = re.compile(r"!\[[^]]+\]\(([^)]+)\)")
STORED = pages.ROOT / pages.RESULTS / "cpu-all.json"
OLD = {"machine": {"processor": "Imaginary"}, "results": []}
"""What a file of an earlier format held."""

FORWARD = "forward, default 128x128, batch 1, float32"
TRAINING = "training step, default 64x64, batch 2, float32"
STEP = "training step, default, batch 8, bfloat16"
"""Of the kernels on a GPU; there are no results of this case."""

BASE = Result(
    group="forward",
    case=FORWARD,
    model=OURS,
    shape="default",
    size=(128, 128),
    batch=1,
    precision="float32",
    seconds=1.5,
    lower_quartile=1.45,
    upper_quartile=1.55,
    rounds=5,
    flops=158_000_000_000,
    useful_flops=150_000_000_000,
    parameters=4_200_000,
    audio_seconds=2.0,
    peak_bytes=250_000_000,
    error=6.3e-7,
)
"""SepTr: 1.5 s for one spectrogram of two seconds, with 150 GFLOP of use."""


def beside(own: Result, model: str, ratio: float, **changes: Any) -> Result:
    """A result of `model`, timed beside `own`, `ratio` of its time, 10 % down and 20 % up."""
    scale = {name: getattr(own, name) * ratio for name in ("seconds", "lower_quartile", "upper_quartile")}
    reach = {"ratio": ratio, "lowest_ratio": 0.9 * ratio, "highest_ratio": 1.2 * ratio}
    return replace(own, model=model, **{**scale, **reach, **changes})


def growth(axis: str, model: str, factor: float, power: float, memory_power: float | None) -> list[Result]:
    """Results on `seconds = factor * at ** power` and `bytes = 1000 * at ** memory_power`."""
    return [
        replace(
            BASE,
            group=f"growth: {axis}",
            case=f"growth: {axis}, {at}",
            model=model,
            seconds=factor * at**power,
            peak_bytes=None if memory_power is None else round(1000 * at**memory_power),
            at=float(at),
        )
        for at in (16, 32, 64, 128)
    ]


def largest_batch(model: str, batch: int) -> Result:
    """The most spectrograms at a time of `model`."""
    return replace(
        BASE, group="largest batch", case=f"largest batch, {model}", model=model, batch=batch, note="8 GB, made up"
    )


def cpu_run(**changes: Any) -> Run:
    """A run on a processor that does not exist, with results of every group."""
    training = replace(BASE, group="training step", case=TRAINING, size=(64, 64), batch=2, saved_bytes=720_000_000)
    results = [
        beside(BASE, "reference", 4.0, flops=351_000_000_000),
        BASE,
        beside(BASE, "AST | tiny", 0.5, error=None, note="another function"),
        beside(training, "reference", 3.0, saved_bytes=1_440_000_000),
        training,
        *growth("height", OURS, 0.001, 1.5, 1.0),
        *growth("height", "reference", 0.002, 2.0, None),
        *growth("batch", OURS, 0.01, 1.0, 1.0),
        largest_batch(OURS, 96),
        largest_batch("reference", 24),
    ]
    run = Run(
        stamp={
            "device": "Imaginary 9000",
            "kind": "cpu",
            "threads": 2,
            "versions": {"torch": "9.9", "triton": None},
            "commit": "abc1234",
            "date": "2030-01-02T03:04:05+00:00",
        },
        setting="full",
        input="35 made-up words",
        ceilings={"copy": 20e9, "float32": 200e9},
        results=results,
        not_run=[NotRun(FORWARD, "FlexAttention", "needs a GPU")],
        kernels=[
            Kernel("mlp_fwd", FORWARD, 6, 4_000_000_000, 20_000_000),
            Kernel("normalize", FORWARD, 3, 0, 500_000_000),
        ],
    )
    return replace(run, **changes)


def gpu_run(**changes: Any) -> Run:
    """A run on a GPU that does not exist: copies 1 TB/s, multiplies 100 TFLOP/s in bfloat16, more in float16."""
    results = [replace(BASE, precision="bfloat16"), beside(replace(BASE, precision="bfloat16"), "reference", 2.0)]
    run = cpu_run(
        stamp={"device": "Imaginary GPU", "kind": "cuda", "versions": {"driver": "1.2.3"}, "date": "2030-01-02"},
        ceilings={"copy": 1e12, "float32": 5e13, "bfloat16": 1e14, "float16": 2e14},
        results=results,
        not_run=[],
        kernels=[
            Kernel("attention_fwd", STEP, 2, 40_000_000_000, 100_000_000, 0.001, "bfloat16"),
            Kernel("mlp_fwd", STEP, 6, 4_000_000_000, 100_000_000, None, "bfloat16"),
            Kernel("normalize", STEP, 3, 0, 500_000_000, 0.001, "bfloat16"),
            Kernel("normalize_bwd", STEP, 3, 0, 200_000_000, None, "bfloat16"),
        ],
    )
    return replace(run, **changes)


def compiled_kernel(name: str = "mlp_fwd", **changes: Any) -> dict[str, Any]:
    """One kernel as `python -m septr_fast kernels --json` prints it."""
    return {
        "kernel": name,
        "model": "default",
        "dtype": "bfloat16",
        "arch": 90,
        "registers": 200,
        "spills": 0,
        "shared_memory": 98304,
        "tensor_cores": {"HGMMA": 24},
        "programs_per_multiprocessor": 2,
        "flops": 32_000_000_000,
        "executed_flops": 40_000_000_000,
        "least_bytes_moved": 279_000_000,
        "shortfalls": [],
        **changes,
    }


def compiled(*kernels: dict[str, Any]) -> dict[str, Any]:
    """A file of `kernels`."""
    versions = {"torch": "9.9", "triton": "8.8", "ptxas": {"sm_90": "7.7"}}
    return {"versions": versions, "kernels": list(kernels), "shortfalls": []}


def drawn_from(path: Path) -> str:
    """The hash of the data that the chart in a PNG file shows; empty where it has none."""
    with Image.open(path) as image:
        return str(image.info.get(DIGEST, ""))


def rows(table: str) -> list[dict[str, str]]:
    """A Markdown table as one dict for each row."""
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert set("".join(lines[1])) == {"-"}
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def row(table: str, **wanted: str) -> dict[str, str]:
    """The only row with the cells `wanted`."""
    (found,) = [one for one in rows(table) if all(one[name] == cell for name, cell in wanted.items())]
    return found


def is_png(path: Path) -> bool:
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


def write(folder: Path, name: str, content: object) -> Path:
    """`content`, a run or what JSON can hold, as a file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Run):
        store(content, path)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path
