"""`septr-fast kernels`: the kernel report from the command line."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from septr_fast import progress
from septr_fast.kernels.launch import ARCHITECTURES
from septr_fast.passes.backend import cache_folder

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

CACHE = cache_folder() / "kernels"

HELP = "compile every kernel and say what falls short"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the report."""
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", action="store_true", dest="as_json", help="objects for machines in place of tables")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of earlier results (default: %(default)s)")
    parser.add_argument("--known", type=Path, help="an earlier report by --json, for kernels that have not changed")
    parser.add_argument(
        "--counts", type=Path, help="counts of executed kernels, CSV (default: the project's, if at hand)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="kernels compiled at a time")


def run(
    arch: Sequence[int],
    dtype: Sequence[str],
    as_json: bool,
    cache: Path,
    jobs: int,
    known: Path | None = None,
    counts: Path | None = None,
) -> int:
    """Compile, print the report and return the exit status: 1 where a kernel falls short.

    Args:
        arch: compute capabilities.
        dtype: names out of `DTYPES`.
        as_json: whether to print objects in place of tables.
        cache: folder of earlier results.
        jobs: kernels compiled at a time.
        known: an earlier report in JSON; its findings stand for kernels whose source, configuration, arguments
            and compiler are the same.
        counts: file of what was counted where kernels were executed, by `make trust`; None for the project's, which
            an installed package does not hold.
    """
    try:
        import triton
    except ImportError:
        sys.stderr.write("septr-fast kernels: the package triton is not installed\n")
        return 2
    if triton.knobs.runtime.interpret:
        return _without_interpreter(arch, dtype, as_json, cache, jobs, known, counts)
    from septr_fast.tuning import executed, kernel_report

    if known is not None:
        cache.mkdir(parents=True, exist_ok=True)
        kernel_report.remember(json.loads(known.read_text(encoding="utf-8"))["kernels"], cache)

    entries = kernel_report.examine(_recorded(arch, dtype), cache, jobs, _progress)
    shortfalls = [text for entry in entries for text in kernel_report.complaints(entry)]
    if not entries:
        shortfalls = ["no model launched a kernel"]
    counted = executed.read() if counts is None else executed.read(counts)
    text = _as_json(entries, shortfalls, counted) if as_json else _as_text(entries, shortfalls, counted)
    sys.stdout.write(f"{text}\n")
    return 1 if shortfalls else 0


def _recorded(archs: Sequence[int], dtypes: Sequence[str]) -> list[Any]:
    from septr_fast.tuning.kernel_launches import MIXED, MODELS, launches
    from septr_fast.tuning.kernel_report import Case

    return [
        (Case(model, name, arch), launches(config, DTYPES[name], arch, mixed=model in MIXED))
        for name in dtypes
        for model, config in MODELS.items()
        for arch in archs
    ]


def _as_text(entries: Sequence[Any], shortfalls: Sequence[str], counted: Sequence[dict[str, str]]) -> str:
    from septr_fast.tuning.kernel_report import table

    if not entries:
        return "\n".join(shortfalls)
    return f"{table(entries, counted)}\n\n{len(entries)} kernels, shortfalls: {len(shortfalls) or 'none'}"


def _as_json(entries: Sequence[Any], shortfalls: Sequence[str], counted: Sequence[dict[str, str]]) -> str:
    import triton

    from septr_fast.tuning.compiled import ptxas_version
    from septr_fast.tuning.kernel_report import as_json, counts

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    assemblers = {f"sm_{arch}": ptxas_version(arch) for arch in sorted({entry.case.arch for entry in entries})}
    report = {
        "versions": {**versions, "ptxas": assemblers},
        "kernels": [as_json(entry) for entry in entries],
        "executed": [
            {**case._asdict(), **row}
            for case in dict.fromkeys(entry.case for entry in entries)
            for row in counts(case, [entry for entry in entries if entry.case == case], counted).values()
        ],
        "shortfalls": list(shortfalls),
    }
    return json.dumps(report, indent=1)


def _without_interpreter(
    arch: Sequence[int], dtype: Sequence[str], as_json: bool, cache: Path, jobs: int, *files: Path | None
) -> int:
    """Start the report in a process of its own: kernels that were imported to be interpreted do not compile."""
    options = ["--arch", *map(str, arch), "--dtype", *dtype, "--cache", str(cache), "--jobs", str(jobs)]
    for name, file in zip(("--known", "--counts"), files, strict=True):
        options += [] if file is None else [name, str(file)]
    command = [sys.executable, "-m", "septr_fast", "kernels", *options, *(["--json"] if as_json else [])]
    return subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}).returncode


def _progress(total: int) -> Callable[[], object]:
    """Show how many of `total` kernels are compiled."""
    return progress.start(total, "distinct kernels", "compiling").advance
