"""Judgements of compiled kernels by content: what is unchanged is not compiled again.

A judgement belongs to a kernel's `compiled.identity` (its source, what it is specialised for, architecture, Triton and
assembler), to the dtype that its products were asked in, and to the code that judges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.suite.evidence import ROOT, digest

FILE = ROOT / "docs" / "trust" / "compilation-kernels.json"
JUDGES = (
    *(ROOT / "tests" / "trust" / "machine" / f"{name}.py" for name in ("compiling", "machine_code")),
    *(
        ROOT / "septr_fast" / "tuning" / f"{name}.py"
        for name in ("compiled", "kernel_report", "assembly/disassembly", "assembly/running_products")
    ),
)
"""Files that decide what a judgement says."""

Told = dict[str, Any]


def key(identity: str, dtype: str, both_ways: bool) -> str:
    """The name of a judgement; `dtype` is empty where a kernel has no products."""
    return hashlib.sha256(repr((identity, dtype, both_ways)).encode()).hexdigest()[:24]


def read(file: Path = FILE) -> dict[str, Told]:
    """Judgements by `key`, none of them wrong; none where there is no file, or other code has judged."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["kernels"] if content["judges"] == digest((), JUDGES) else {}


def write(told: Iterable[Told], file: Path = FILE) -> None:
    """Keep those that have nothing wrong in the place of all that were kept before."""
    kept = {one["key"]: one for one in told if "key" in one and not one["wrong"]}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept))
    file.write_text(f'{{"judges": "{digest((), JUDGES)}", "kernels": {{\n{lines}\n}}}}\n', encoding="utf-8")
