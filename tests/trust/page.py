"""The page of what was tried, docs/trust.md, and its tables, from what runs have kept in docs/trust.json."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import figures as gpu_figures
from benchmarks.suite.stamp import ROOT, stamp
from septr_fast.report.tables import markdown


@dataclass(frozen=True)
class Paths:
    """Where things lie.

    Attributes:
        records: JSON file of all records.
        page: to write.
        tables: folder for the long tables of all parts, as CSV files.
        results: folder with the files of GPUs that were checked.
    """

    records: Path = ROOT / "docs" / "trust.json"
    page: Path = ROOT / "docs" / "trust.md"
    tables: Path = ROOT / "docs" / "trust"
    results: Path = ROOT / "benchmarks" / "results"


PATHS = Paths()
WRONG_SHOWN = 4
"""Of a part that the page shows."""

HEAD = """# Trust

What was tried to break `septr_fast`, how often, and how it came out. `make trust` runs what is out of date and writes
this page; a short form of each part is in `make test`. Edits by hand are lost."""

INTERPRETED = (
    """The kernels ran in Triton's interpreter, mended to round as a GPU does and to poison what is undefined."""
)

LIMITS = f"""## What none of this finds

{INTERPRETED} As compiled, they ran from their PTX in the part on execution alone. What the assembler makes of that, and
what a GPU does, is untested here; `python -m benchmarks.gpu --stage check` is for a GPU."""

ON_GPU = f"""## On a GPU

{INTERPRETED} Compiled, on a GPU, they were tried by `python -m benchmarks.gpu --stage check`; what it left out is
untested there. Other GPUs, and other versions of Triton, are untested."""


def keep(record: dict[str, Any], paths: Paths = PATHS) -> None:
    """Put the record of a part (see `trust.runner`) in the place of its last one, and write everything anew.

    A record without a stamp gets one. As keeping changes the checkout, a run takes its stamp before.
    """
    kept = {one["part"]: one for one in stored(paths)}
    kept[record["part"]] = {"stamp": stamp(torch.device("cpu")), **record}
    paths.records.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    write(paths)


def write(paths: Paths = PATHS) -> None:
    """Write the page and the tables from what is stored."""
    records = stored(paths)
    paths.page.write_text(text(records, gpu_figures.checks(paths.results), paths.tables.name), encoding="utf-8")
    paths.tables.mkdir(exist_ok=True)
    wanted = {paths.tables / name: rows for record in records for name, rows in _tables(record).items()}
    for file in {*paths.tables.glob("*.csv")} - wanted.keys():
        file.unlink()
    for file, rows in wanted.items():
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def stored(paths: Paths = PATHS) -> list[dict[str, Any]]:
    """The records of all parts, in the order of their names; none where there is no file."""
    kept = json.loads(paths.records.read_text(encoding="utf-8")) if paths.records.exists() else {}
    return [kept[name] for name in sorted(kept)]


def text(records: list[dict[str, Any]], checks: Sequence[dict[str, Any]] = (), tables: str = "trust") -> str:
    """The page of `records`, and of `checks` of GPUs; the long tables are in the folder `tables`."""
    header = ("part", "tried", "wrong", "minutes", "at commit", "on")
    rows = [
        (
            f"[{record['part']}](#{record['part']})",
            f"{record['tried']:,}",
            str(len(record["wrong"])),
            f"{record['seconds'] / 60:.1f}",
            record["stamp"]["commit"],
            record["stamp"]["date"][:10],
        )
        for record in records
    ]
    sections = [
        HEAD,
        _total(records),
        markdown(header, rows),
        *dict.fromkeys(_origin(record["stamp"]) for record in records),
        _compiled(checks),
        *(_section(record, tables) for record in records),
    ]
    return "\n\n".join(sections) + "\n"


def _total(records: list[dict[str, Any]]) -> str:
    tried, wrong = (sum(record["tried"] for record in records), sum(len(record["wrong"]) for record in records))
    return f"{tried:,} cases in {len(records)} parts, {wrong} wrong. Each part is of the version that its row names."


def _compiled(checks: Sequence[dict[str, Any]]) -> str:
    """What was tried on GPUs, or that nothing was."""
    return "\n\n".join([ON_GPU, *map(_checked, checks)]) if checks else LIMITS


def _checked(check: dict[str, Any]) -> str:
    results = check.get("results", {})
    rows = [(part.what, f"{part.tried:,}", f"{part.wrong:,}") for part in gpu_figures.parts(results)]
    blocks = [f"### {check['stamp']['device']}", f"{_origin(check['stamp'])[:-1]}; commit {check['stamp']['commit']}."]
    blocks += [markdown(("what is tried", "tried", "wrong"), rows)] if rows else []
    wrong = gpu_figures.faults(results) + check.get("error", "").strip().splitlines()[-1:]
    listed = {"Wrong": wrong, "Left out": check.get("left_out", [])}
    blocks += [
        "\n".join([f"{title}:", "", *(f"- {line}" for line in found)]) for title, found in listed.items() if found
    ]
    return "\n\n".join(blocks)


def _origin(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items() if version)
    return f"Run on {measured['device']}, {measured['cores']} cores; {versions}; {measured['date'][:10]}."


def _section(record: dict[str, Any], tables: str) -> str:
    parts = [f"## {record['part']}", f"{record.get('what', '')} Not found by it: {record.get('cannot', '')}"]
    if record["wrong"]:
        told, rest = record["wrong"][:WRONG_SHOWN], len(record["wrong"]) - WRONG_SHOWN
        parts.append(f"Wrong: {'; '.join([*told, *([f'{rest} more, in trust.json'] if rest > 0 else [])])}.")
    figures = [f"{name}: {_cell(value)}" for name, value in record["figures"].items() if not _is_long(value)]
    linked = [f"[{name[len(record['part']) + 1 : -4]}]({tables}/{name})" for name in _tables(record)]
    lines = [*([f"{'; '.join(figures)}."] if figures else []), *([f"Tables: {', '.join(linked)}."] if linked else [])]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def _tables(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The long figures of a part as tables, by the names of their files."""
    long = {name: value for name, value in record["figures"].items() if _is_long(value) and value}
    return {f"{record['part']}-{_slug(name)}.csv": list(_rows(value)) for name, value in long.items()}


def _is_long(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _rows(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield from ({"of": name, "value": one} for name, one in value.items())
    else:
        yield from (row if isinstance(row, dict) else {"value": row} for row in value)


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
