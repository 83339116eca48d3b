"""`make compat`: goldens, the tests of what runs on PyTorch, and kernels in the interpreter, in several versions.

Writes docs/versions.json and the table in docs/versions.md. Environments stay in build/compat.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compat import own_tests
from compat.environments import ROOT, VERSIONS, Version, python_with, with_wheel

PARTS = {
    "goldens": ("tests/network/test_goldens.py",),
    "tests": (
        "tests/network", "tests/algebra", "tests/adopt", "tests/audio", "tests/inference",
        *(f"tests/passes/test_{name}.py" for name in (
            "backend", "cores", "freed_memory", "linear", "merged_training", "shared_training",
            "torch_operators",
        )),
        "--ignore=tests/network/test_goldens.py", "--ignore=tests/network/test_counts.py",
    ),
    "transformers": ("tests/compat/common_models.py",),
    "kernels": ("tests/kernels/test_mlp.py", "tests/kernels/test_normalization.py", "tests/kernels/test_models.py"),
}  # fmt: skip
"""What is run, as pytest takes it. Counts of operations and bytes are those of the pinned version."""
OF_TRANSFORMERS = [2, 6]
"""The PyTorch that Transformers 5 asks for."""
ON_THE_WHEEL = "goldens"
"""The part that runs on an installed wheel, in a folder without the package's sources."""
ASKED = """
import platform, torch, triton
from septr_fast.passes import backend
print(torch.__version__, triton.__version__, platform.python_version(), backend._why_no_triton() and "old")
"""
RECORDS, PAGE = ROOT / "docs" / "versions.json", ROOT / "docs" / "versions.md"
START, END = "<!-- made by `make compat` -->", "<!-- end -->"
_COUNTED = re.compile(r"(\d+) (passed|failed|skipped|error)")
_LEFT_OUT = re.compile(r"SKIPPED \[\d+\] \S+ (?:PyTorch ([\d.]+): (.*)|(Triton kernels need .*))")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, keep it, write the page; the exit status is 1 where a test failed."""
    parser = argparse.ArgumentParser(prog="compat", description=__doc__)
    known = [version.name for version in VERSIONS]
    parser.add_argument("--versions", nargs="+", choices=["pinned", *known], default=["pinned", *known])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="versions at a time")
    given = parser.parse_args(arguments)
    chosen = [next((v for v in VERSIONS if v.name == name), None) for name in given.versions]
    with ThreadPoolExecutor(given.jobs) as pool:
        for record in pool.map(tried, chosen):
            keep(record)
            sys.stdout.write(f"{record['torch']}: {record['parts']}\n")
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    return int(any(part["failed"] for record in records.values() for part in record["parts"].values()))


def tried(version: Version | None) -> dict[str, Any]:
    """What came of each part in a version; None is the one that is installed here."""
    python = Path(sys.executable)
    if version is not None:
        python = python_with(version, ROOT / "build" / "compat" / version.name)
    found = subprocess.run([str(python), "-c", ASKED], capture_output=True, text=True, check=True).stdout.split()
    runs_kernels = found.pop() == "None"
    parts: dict[str, dict[str, int]] = {}
    left_out: set[tuple[str, str]] = set()
    for name, paths in PARTS.items():
        if not (runs_kernels if name == "kernels" else name != "transformers" or _parts(found[0]) >= OF_TRANSFORMERS):
            parts[name] = dict.fromkeys(("passed", "skipped", "failed"), 0)
            continue
        if name == ON_THE_WHEEL:
            folder = ROOT / "build" / "compat" / "wheel" / ("pinned" if version is None else version.name)
            output = _run(*with_wheel(python, folder), paths)
        else:
            own = [own_tests.folder(ROOT / "build" / "compat", python)] if name == "transformers" else []
            output = _run(python, ROOT, paths, *own)
        counts = {kind: int(number) for number, kind in _COUNTED.findall(output.splitlines()[-1])}
        parts[name] = {kind: counts.get(kind, 0) for kind in ("passed", "skipped")}
        parts[name]["failed"] = counts.get("failed", 0) + counts.get("error", 0)
        left_out |= set(_reasons(output))
        sys.stdout.writelines(f"{found[0]}: {line}\n" for line in output.splitlines() if line.startswith("FAILED"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "name": found[0].partition("+")[0] if version is None else version.name,
        **dict(zip(("torch", "triton", "python"), found, strict=True)),
        "commit": commit.strip(),
        "parts": parts,
        "left_out": sorted(left_out),
    }


def _run(python: Path, folder: Path, paths: Sequence[str], *imported: Path) -> str:
    path = os.pathsep.join(map(str, imported))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(python), "-m", "pytest", "-q", "-rfEs", "-W", "ignore", "-p", "no:cacheprovider", *paths]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if not _COUNTED.search(result.stdout):
        raise RuntimeError(f"pytest: expected results of {' '.join(paths)}, got {result.stdout}{result.stderr}")
    return result.stdout


def _reasons(output: str) -> Iterator[tuple[str, str]]:
    """From which version on each thing works that was left out, and what it is."""
    for line in output.splitlines():
        if found := _LEFT_OUT.match(line):
            least, what, kernels = found.groups()
            yield ("PyTorch 2.10, Triton 3.6", "kernels") if kernels else (f"PyTorch {least}", what)


def keep(record: dict[str, Any]) -> None:
    """Put a version's record in the place of its last one, and write the table anew."""
    kept = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    kept[record["name"]] = record
    RECORDS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n\n{table(kept)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table(records: dict[str, dict[str, Any]]) -> str:
    """Each version with what passed and failed, and what is left out below some version."""
    rows = [
        "| PyTorch | Triton | goldens, on the wheel | other tests | Transformers' own | kernels | Python | at commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records.values(), key=_order):
        cells = [_number(record["torch"]), record["triton"], *(_cell(record["parts"][name]) for name in PARTS)]
        rows.append(f"| {' | '.join([*cells, record['python'], record['commit']])} |")
    wanting: dict[tuple[str, str], None] = {}
    for record in records.values():
        wanting.update(dict.fromkeys(map(tuple, record["left_out"])))
    lines = [f"| {what} | {least} |" for least, what in sorted(wanting)]
    return "\n".join(
        [*rows, "", "| what is left out of these runs in older versions | works from |", "|---|---|", *lines]
    )


def _order(record: dict[str, Any]) -> list[int]:
    return [*_parts(record["torch"]), *_parts(record["python"])]


def _parts(version: str) -> list[int]:
    return [int(part) for part in _number(version).split(".")]


def _number(version: str) -> str:
    return version.partition("+")[0]


def _cell(part: dict[str, int]) -> str:
    if not part["passed"] and not part["failed"]:
        return "not run"
    return f"{part['passed']:,} passed" + (f", {part['failed']} failed" if part["failed"] else "")


if __name__ == "__main__":
    sys.exit(main())
