"""`python -m benchmarks.gpu --stage check|ceilings|bench|tune --out DIR`: what there is to know of one GPU.

Needs no network, and no installation of this package: PyTorch 2.11, Triton 3.6, einops, NumPy, pytest for `check`,
which watches a step where compute-sanitizer is there, pytest-benchmark for `bench`, which compares with ViT
and AST where transformers is there. Every stage keeps below nine minutes, says what it left out for that, prints a
summary and writes `DIR/STAGE.json`, which grows as the stage goes on; all else it writes goes to `--logs`.
`check` has more to try than one such time is enough for: `--only` gives all of it to some parts.
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

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {"check": 480.0, "ceilings": 120.0, "bench": 450.0, "tune": 420.0}
"""After which a stage starts nothing new."""

PACKAGES = {
    "check": ("torch", "triton", "einops", "numpy", "pytest"),
    "ceilings": ("torch", "triton", "einops", "numpy"),
    "bench": ("torch", "triton", "einops", "numpy", "pytest", "pytest-benchmark"),
    "tune": ("torch", "triton", "einops", "numpy"),
}
"""What a stage needs; all else is optional."""

PARTS = ("replay", "repeat", "graphs", "stream", "configurations", "corpus", "sanitize")
"""Of the stage `check`; see `benchmarks.gpu.check`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; return the exit status, 1 where it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=SECONDS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few tokens")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, help="after which a stage starts nothing new")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the stage check")
    parser.add_argument("--logs", type=Path, help="folder for what processes print and draw; default: DIR/logs")
    parser.add_argument("--commit", help="for the stamp, where the checkout is a copy that git does not know")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu.bare import prepare

    prepare(options.device)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny --device cpu rehearses without one")
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    logs = options.logs or options.out / "logs"
    for folder in (options.out, logs):
        folder.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{options.stage}.json"
    stage = Stage(options.stage, device, options.tiny, options.seconds or SECONDS[options.stage])
    if options.commit:
        stage.content["stamp"]["commit"] = options.commit

    def keep(results: dict[str, Any]) -> None:
        stage.add({"results": results})
        write({**stage.content, "error": "the stage was ended from outside"}, file)

    more: dict[str, tuple[Any, ...]] = {
        "check": (logs, options.only, keep),
        "ceilings": (),
        "bench": (logs, keep, options.commit),
        "tune": (options.out,),
    }
    text = stage.run(*more[options.stage])
    write(stage.content, file)
    sys.stdout.write(f"{text}\n{file}\n")
    return 0 if stage.content["passed"] else 1


def write(content: dict[str, Any], file: Path) -> None:
    """Store JSON whole or not at all: the stage may be ended at any time."""
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)


class Stage:
    """A stage, and the content of its file.

    Args:
        name: of the stage.
        device: that is looked at.
        tiny: whether shapes have few tokens.
        seconds: after which it starts nothing new.
    """

    def __init__(self, name: str, device: Any, tiny: bool, seconds: float) -> None:
        from benchmarks.measuring.timing import Budget
        from benchmarks.suite.stamp import stamp

        self.name, self.device, self.tiny = name, device, tiny
        self.start, self.budget = time.monotonic(), Budget(seconds)
        self.content: dict[str, Any] = {"stage": name, "tiny": tiny, "stamp": stamp(device), "passed": False}

    def run(self, *more: Any) -> str:
        """What to read of it; what it raises is part of that and of the content.

        Args:
            more: arguments of the stage's `measure` behind the device, whether shapes are tiny, and the budget.
        """
        import torch

        torch.manual_seed(0)
        module = importlib.import_module(f"benchmarks.gpu.{self.name}")
        measure: Callable[..., dict[str, Any]] = module.measure
        try:
            results = measure(self.device, self.tiny, self.budget, *more)
            self.add({"passed": results.pop("passed", True), "results": results})
            text: str = module.summary(results)
        except Exception:
            text = traceback.format_exc()
            self.add({"error": text})
        return "\n".join([text, *(f"left out: {what}" for what in self.budget.left_out)])

    def add(self, found: dict[str, Any]) -> None:
        """Put what is found into the content, with what is left out so far and the time taken."""
        seconds = round(time.monotonic() - self.start, 3)
        self.content |= {**found, "left_out": self.budget.left_out, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
