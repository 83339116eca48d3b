"""`python -m trust`: run what is out of date, write what came out to docs/trust.json, docs/trust.md, docs/trust."""

from __future__ import annotations

import argparse
import os
import sys

import torch

from benchmarks.suite.pages import write_kernels
from benchmarks.suite.stamp import stamp
from septr_fast import progress
from trust import page, registry, runner


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 1 where anything is wrong."""
    os.environ["OMP_NUM_THREADS"] = "1"
    options = _parser().parse_args(arguments)
    if options.page:
        _write()
        return 0
    names = longest_first(options.part or _due(options))
    wrong, stamped = 0, stamp(torch.device("cpu"))
    sources = {name: registry.sources(name) for name in names}
    with progress.start(len(names), "parts") as bar:

        def show(running: list[runner.Job]) -> None:
            bar.say(", ".join(f"{job.name} {job.tried}" for job in running))

        for record in runner.run(names, options.full, options.workers, 60 * options.minutes, show):
            bar.advance()
            wrong += len(record["wrong"])
            took = f"{record['seconds'] / 60:.1f} minutes"
            bar.write(f"{record['part']}: {record['tried']} tried, {len(record['wrong'])} wrong, {took}")
            for line in record["wrong"]:
                bar.write(f"  {line}")
            if options.full:
                page.keep({**record, "stamp": stamped, "sources": sources[record["part"]]})
    if options.full:
        _write()
    return int(wrong > 0)


def _write() -> None:
    """The page of all parts, and that of kernels, which shows what one of them counts."""
    page.write()
    write_kernels()


def _due(options: argparse.Namespace) -> list[str]:
    """The parts to run: all of them, or in the long form those that are out of date."""
    if options.all or not options.full:
        return registry.names()
    due = registry.out_of_date(page.stored())
    for record in page.stored():
        if record["part"] not in due:
            sys.stderr.write(f"{record['part']}: unchanged since {record['stamp']['commit']}\n")
    return due


def longest_first(names: list[str]) -> list[str]:
    """`names` in the order in which the parts took long at their last run, so that none is left at the end alone."""
    seconds = {record["part"]: record["seconds"] for record in page.stored()}
    return sorted(names, key=lambda name: -seconds.get(name, float("inf")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trust", description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--full", action="store_true", default=True, help="the long form, which writes the page (default)"
    )
    form.add_argument("--short", dest="full", action="store_false", help="the form that the tests run; writes nothing")
    form.add_argument("--page", action="store_true", help="run nothing: write the page from what is kept")
    parser.add_argument("--part", action="append", choices=registry.names(), help="this part alone; may be repeated")
    parser.add_argument("--all", action="store_true", help="also parts whose sources have not changed")
    parser.add_argument("--workers", type=int, default=2, help="parts that run at a time (default: 2)")
    parser.add_argument("--minutes", type=float, default=60, help="after which the run is ended (default: 60)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
