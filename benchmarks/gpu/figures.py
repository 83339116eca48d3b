"""What the stage `check` found, to read, part by part: made from its file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Results = Mapping[str, Any]


class Part(NamedTuple):
    """What a part of the stage tried.

    Attributes:
        what: was tried.
        tried: how often.
        wrong: how many of these were wrong.
        faults: a sentence each; none where the part is passed.
    """

    what: str
    tried: int
    wrong: int
    faults: list[str]


def parts(results: Results) -> list[Part]:
    """What was tried and found, in the order in which it ran."""
    return [read(results[name]) for name, read in _READERS.items() if name in results]


def faults(results: Results) -> list[str]:
    """All that is wrong; nothing where the check is passed."""
    broken = [f"{name}: {error.strip().splitlines()[-1]}" for name, error in results.get("errors", {}).items()]
    return [*(fault for part in parts(results) for fault in part.faults), *broken]


def checks(folder: Path) -> list[dict[str, Any]]:
    """The stage's files in `folder` that are of a GPU, oldest first."""
    found = [check for check in map(content, sorted(folder.glob("*.json"))) if is_check(check)]
    on_gpu = [check for check in found if check["stamp"]["kind"] == "cuda" and not check["tiny"]]
    return sorted(on_gpu, key=lambda check: str(check["stamp"]["date"]))


def is_check(found: Any) -> bool:
    """Whether this is what the stage writes."""
    return isinstance(found, dict) and found.get("stage") == "check"


def content(file: Path) -> Any:
    """What a JSON file holds; None where it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _replay(found: Any) -> Part:
    passed, failed = (found["counts"].get(outcome, 0) for outcome in ("passed", "failed"))
    reasons = [f"{entry['test']}: {entry['reason'].splitlines()[-1]}" for entry in found["failures"]]
    reasons += [f"tests, {text}" for text in found["unfinished"]]
    reasons += [] if passed else ["tests: none passed"]
    return Part("tests of the kernels, compiled", passed + failed, failed, reasons)


def _repeat(found: Any) -> Part:
    runs, different = (sum(entry[name] for entry in found) for name in ("runs", "different"))
    reasons = [f"{one['different']} of {one['runs']} runs differ: {one['pass']}" for one in found if one["different"]]
    reasons += [] if runs else ["repeated runs: none done"]
    return Part(f"runs of {len(found)} passes, bit for bit", runs, different, reasons)


def _graphs(found: Any) -> Part:
    reasons = [f"other bits in a graph's replay: {name}" for name, same in found.items() if not same]
    return Part("CUDA graphs replayed on other inputs, bit for bit", len(found), len(reasons), reasons)


def _stream(found: Any) -> Part:
    reasons = [] if found else ["other bits on a side stream"]
    return Part("steps on a side stream while another is busy, bit for bit", 1, len(reasons), reasons)


def _configurations(found: Any) -> Part:
    reasons = []
    for one in found:
        tiles = "".join(f"{name} {size}, " for name, size in one["tiles"].items())
        name = f"{one['kernel']} ({tiles}{one['warps']} warps, {one['stages']} stages)"
        reasons += [f"{name}: {reason}" for reason in one["wrong"]]
    return Part("launch configurations, each alone", len(found), sum(bool(one["wrong"]) for one in found), reasons)


def _corpus(found: Any) -> Part:
    wrong, tried = len(found["wrong"]), sum(found["cases"].values())
    reasons = [f"stored cases, {text}" for text in (*found["wrong"], *found["unfinished"])]
    reasons += [] if tried else ["stored cases: none passed"]
    return Part("stored cases of operators, passes and models, compiled", tried + wrong, wrong, reasons)


def _sanitize(found: Any) -> Part:
    reasons = {}
    for one in found:
        errors = (
            f"{one['errors']} errors; kernels named: {', '.join(one['kernels']) or 'none'}" if one["errors"] else None
        )
        told = [text for text in (errors, one["problem"]) if text]
        if told:
            reasons[f"{one['tool']}, {one['dtype']}"] = "; ".join(told)
    tools = ", ".join(dict.fromkeys(one["tool"] for one in found)) or "not run"
    faults = [f"{name}: {text}" for name, text in reasons.items()]
    return Part(f"steps under compute-sanitizer ({tools})", len(found), len(reasons), faults)


_READERS = {
    "replay": _replay,
    "repeat": _repeat,
    "graphs": _graphs,
    "stream": _stream,
    "configurations": _configurations,
    "corpus": _corpus,
    "sanitize": _sanitize,
}
