"""What a run found, in sentences; every number in them is from the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from septr_fast.report.groups import baseline, ours, reach, speed_groups, title
from septr_fast.report.results import Result, Run
from septr_fast.report.units import duration, quantity

MEASURED_AS_CEILINGS = ("forward", "training step")
"""Groups of whole passes with the device to themselves."""

NO_TIMES = "This was a trial on tiny models, to see that everything runs: its times say nothing."


def is_cpu(run: Run) -> bool:
    """Whether the run was on a processor, not on a GPU."""
    return run.stamp.get("kind") == "cpu"


def device(run: Run) -> str:
    """The name of what was measured."""
    return str(run.stamp.get("device", "unknown device"))


def machine(run: Run) -> str:
    """One line: device, threads, versions, commit, date, setting and input."""
    versions = [f"{name} {version}" for name, version in run.stamp.get("versions", {}).items() if version]
    threads, date = run.stamp.get("threads"), str(run.stamp.get("date", "unknown"))[:10]
    parts = [
        f"{device(run)}, {threads} threads" if threads else device(run),
        ", ".join(versions),
        f"commit {run.stamp.get('commit', 'unknown')}",
        date,
        f"setting: {run.setting}",
        f"input: {run.input}",
    ]
    return f"Measured on {'; '.join(part for part in parts if part)}."


def ceilings(run: Run) -> str:
    """One line: what the device can do at best; empty where that was not measured."""
    copy = run.ceilings.get("copy")
    found = [] if copy is None else [f"copy {quantity(copy, 'B/s')} (read and written)"]
    products = [f"{quantity(rate, 'FLOP/s')} in {name}" for name, rate in run.ceilings.items() if name != "copy"]
    found += [f"matrix products {', '.join(products)}"] if products else []
    return f"Ceilings, measured in the same run: {'; '.join(found)}." if found else ""


def sentences(run: Run) -> Iterator[str]:
    """The findings, one paragraph for each group that compares speed."""
    if run.setting == "smoke":
        yield NO_TIMES
    for group in speed_groups(run):
        found = [*_main(run, group), *_range(run, group), *_faster(run, group)]
        if found:
            yield " ".join(found)


def _main(run: Run, group: str) -> Iterator[str]:
    """The first case of `group` that has a baseline."""
    for results in run.cases(group).values():
        own, other = ours(results), baseline(results)
        if own is None or other is None:
            continue
        beside = own.seconds if other.ours_seconds is None else other.ours_seconds
        name = _the(other) if other.ours_seconds is None else f"{_the(other)} beside it"
        yield (
            f"{title(group)}, {model_size(own)}, batch {own.batch}, {own.precision}: SepTr takes "
            f"{duration(beside)}, {name} {duration(other.seconds)}: "
            f"{other.ratio:.2f} times as long{reach(other)}."
        )
        ceiling = run.ceilings.get(own.precision)
        if own.useful_flops and ceiling and group in MEASURED_AS_CEILINGS:
            least = own.useful_flops / ceiling
            most = f"{other.seconds / least:.2f} times as long at most"
            yield f"At the ceiling its products alone would take {duration(least)}: {most}."
        if own.saved_bytes and other.saved_bytes:
            saved, plain = (quantity(size, "B") for size in (own.saved_bytes, other.saved_bytes))
            yield f"It keeps {saved} for the backward pass, {_the(other)} {plain}."
        return


def _range(run: Run, group: str) -> Iterator[str]:
    """From case to case, where there are several."""
    found = [other for results in run.cases(group).values() if (other := baseline(results)) is not None]
    ratios = [other.ratio for other in found if other.model == found[0].model and other.ratio is not None]
    if len(ratios) > 1:
        cases = "both" if len(ratios) == 2 else f"all {len(ratios)}"
        yield f"In {cases} cases {_the(found[0])} takes {min(ratios):.2f} to {max(ratios):.2f} times as long."


def _faster(run: Run, group: str) -> Iterator[str]:
    """Which models took less time than SepTr, and how often."""
    timed = [result for result in run.results if result.group == group and result.ratio is not None]
    cases = Counter(result.model for result in timed)
    wins = Counter(result.model for result in timed if result.ratio is not None and result.ratio < 1)
    if wins:
        yield f"Less time than SepTr took: {', '.join(_often(model, wins[model], cases[model]) for model in wins)}."


def _often(model: str, wins: int, cases: int) -> str:
    return model if wins == cases else f"{model} (in {wins} of {cases} cases)"


def model_size(result: Result) -> str:
    """The model's shape with the size of a spectrogram: "default model 128x128"."""
    size = f"{result.size[0]}x{result.size[1]}"
    return f"{result.shape} model" if size in result.shape else f"{result.shape} model {size}"


def _the(result: Result) -> str:
    return f"the {result.model}" if result.model.startswith("reference") else result.model
