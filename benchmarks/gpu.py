"""`python benchmarks/gpu.py --stage check|ceilings|bench|tune --out DIR`: what there is to know of one GPU.

Needs no network, and no installation of this package: PyTorch 2.11, Triton 3.6, einops, NumPy, pytest for `check`,
which draws cases where hypothesis is there and watches a step where compute-sanitizer is, pytest-benchmark and tqdm for
`bench`, which compares with ViT and AST where transformers is there. Every stage keeps below nine minutes, says what it
left out for that, prints a summary and writes `DIR/STAGE.json`; `--only` gives all that time to some parts of `check`.
`--tiny --device cpu` rehearses all of it in Triton's interpreter, on shapes of a few tokens.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = {"check": 480.0, "ceilings": 120.0, "bench": 450.0, "tune": 420.0}
"""After which a stage starts nothing new."""

PARTS = ("replay", "repeat", "graphs", "stream", "configurations", "corpus", "sanitize")
"""Of the stage `check`; see `benchmarks.gpu_check`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; return the exit status, 1 where it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=SECONDS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few tokens")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, help="after which a stage starts nothing new")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the stage check")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    from benchmarks.bare import prepare

    prepare(options.device)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny --device cpu rehearses without one")
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = options.seconds or SECONDS[options.stage]
    content, text = run(options.stage, device, options.tiny, options.out, seconds, options.only)
    file = options.out / f"{options.stage}.json"
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{text}\n{file}\n")
    return 0 if content["passed"] else 1


def run(
    stage: str, device: Any, tiny: bool, out: Path, seconds: float, only: Sequence[str] = PARTS
) -> tuple[dict[str, Any], str]:
    """The content of a stage's file, and what to read; what it raises is part of both."""
    import torch

    from benchmarks.stamp import stamp
    from benchmarks.timing import Budget

    start, budget = time.monotonic(), Budget(seconds)
    torch.manual_seed(0)
    module = importlib.import_module(f"benchmarks.gpu_{stage}")
    content: dict[str, Any] = {"stage": stage, "tiny": tiny, "stamp": stamp(device), "passed": False}
    try:
        measure: Callable[..., dict[str, Any]] = module.measure
        more: dict[str, tuple[Any, ...]] = {"ceilings": (), "check": (out, only)}
        results = measure(device, tiny, budget, *more.get(stage, (out,)))
        content |= {"passed": results.pop("passed", True), "results": results}
        text = module.summary(results)
    except Exception:
        text = content["error"] = traceback.format_exc()
    content |= {"left_out": budget.left_out, "seconds": round(time.monotonic() - start, 1)}
    return content, "\n".join([text, *(f"left out: {what}" for what in budget.left_out)])


if __name__ == "__main__":
    sys.exit(main())
