"""The page of figures, docs/trust.md, and the README's part, written from what runs have kept in docs/trust.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import figures as gpu_figures
from benchmarks.suite.stamp import ROOT, stamp
from septr_fast.report.tables import markdown

START, END = "<!-- trust -->\n", "<!-- end of trust -->"


@dataclass(frozen=True)
class Paths:
    """Where things lie.

    Attributes:
        records: JSON file of all records.
        page: to write.
        readme: whose part between the markers is to be written.
        results: folder with the files of GPUs that were checked.
    """

    records: Path = ROOT / "docs" / "trust.json"
    page: Path = ROOT / "docs" / "trust.md"
    readme: Path = ROOT / "README.md"
    results: Path = ROOT / "benchmarks" / "results"


PATHS = Paths()

HEAD = """# Trust

What was tried to break `septr_fast`, how often, and how it came out. `make trust` runs everything and writes this
page; a short form of each part is in `make test`. Edits by hand are lost."""

INTERPRETED = (
    """The kernels ran in Triton's interpreter, mended to round as a GPU does and to poison what is undefined."""
)

LIMITS = f"""## What none of this finds

{INTERPRETED} So races between the threads of a program and miscompilation of compiled kernels are untested here;
`python -m benchmarks.gpu --stage check` is for a GPU."""

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
    """Write the page and the README's part from what is stored."""
    records = stored(paths)
    paths.page.write_text(text(records, gpu_figures.checks(paths.results)), encoding="utf-8")
    before, _, rest = paths.readme.read_text(encoding="utf-8").partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"readme: expected the markers {START!r} and {END!r} in {paths.readme}")
    paths.readme.write_text(f"{before}{START}{brief(records)}\n{END}{after}", encoding="utf-8")


def stored(paths: Paths = PATHS) -> list[dict[str, Any]]:
    """The records of all parts, in the order of their names; none where there is no file."""
    kept = json.loads(paths.records.read_text(encoding="utf-8")) if paths.records.exists() else {}
    return [kept[name] for name in sorted(kept)]


def text(records: list[dict[str, Any]], checks: Sequence[dict[str, Any]] = ()) -> str:
    """The page of `records`, and of `checks` of GPUs."""
    header = ("part", "tried", "wrong", "minutes", "what is tried", "what it cannot find")
    rows = [
        (
            f"[{record['part']}](#{record['part']})",
            f"{record['tried']:,}",
            str(len(record["wrong"])),
            f"{record['seconds'] / 60:.1f}",
            record.get("what", ""),
            record.get("cannot", ""),
        )
        for record in records
    ]
    sections = [
        HEAD,
        _total(records),
        markdown(header, rows),
        _compiled(checks),
        *(_section(record) for record in records),
    ]
    return "\n\n".join(sections) + "\n"


def brief(records: list[dict[str, Any]]) -> str:
    """What the README tells of `records`."""
    rows = [
        (record["part"], record.get("what", ""), f"{record['tried']:,}", str(len(record["wrong"])))
        for record in records
    ]
    return "\n\n".join([_total(records), markdown(("part", "what is tried", "tried", "wrong"), rows)])


def _total(records: list[dict[str, Any]]) -> str:
    tried, wrong = (sum(record["tried"] for record in records), sum(len(record["wrong"]) for record in records))
    return f"{tried:,} cases in {len(records)} parts, {wrong} wrong."


def _compiled(checks: Sequence[dict[str, Any]]) -> str:
    """What was tried on GPUs, or that nothing was."""
    return "\n\n".join([ON_GPU, *map(_checked, checks)]) if checks else LIMITS


def _checked(check: dict[str, Any]) -> str:
    results = check.get("results", {})
    rows = [(part.what, f"{part.tried:,}", f"{part.wrong:,}") for part in gpu_figures.parts(results)]
    blocks = [f"### {check['stamp']['device']}", _origin(check["stamp"])]
    blocks += [markdown(("what is tried", "tried", "wrong"), rows)] if rows else []
    wrong = gpu_figures.faults(results) + check.get("error", "").strip().splitlines()[-1:]
    listed = {"Wrong": wrong, "Left out": check.get("left_out", [])}
    blocks += [
        "\n".join([f"{title}:", "", *(f"- {line}" for line in found)]) for title, found in listed.items() if found
    ]
    return "\n\n".join(blocks)


def _origin(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items() if version)
    machine = f"Run on {measured['device']}, {measured['cores']} cores; {versions}; "
    return f"{machine}commit {measured['commit']}; {measured['date'][:10]}."


def _section(record: dict[str, Any]) -> str:
    parts = [f"## {record['part']}", _origin(record["stamp"])]
    if record["wrong"]:
        parts.append("\n".join(["Wrong:", "", *(f"- {line}" for line in record["wrong"])]))
    return "\n\n".join([*parts, *_figures(record["figures"])])


def _figures(figures: dict[str, Any]) -> Iterator[str]:
    """Single figures as one table, each of the others as a table of its own."""
    single = {name: value for name, value in figures.items() if not isinstance(value, (dict, list))}
    if single:
        yield markdown(("figure", "value"), [(name, _cell(value)) for name, value in single.items()])
    for name, value in figures.items():
        if isinstance(value, dict):
            yield f"**{name}**"
            yield markdown(("", "value"), [(key, _cell(x)) for key, x in value.items()])
        elif isinstance(value, list):
            yield f"**{name}**"
            yield _rows(value)


def _rows(rows: list[Any]) -> str:
    if not rows:
        return "None."
    if not isinstance(rows[0], dict):
        return "\n".join(f"- {_cell(row)}" for row in rows)
    return markdown(tuple(rows[0]), [tuple(_cell(x) for x in row.values()) for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
