"""Which results belong together, and which model the others are held against."""

from __future__ import annotations

from collections.abc import Sequence

from septr_fast.report.fits import GROWTH
from septr_fast.report.results import OURS, Result, Run

LARGEST_BATCH = "largest batch"
"""The group whose results tell by `batch` the most spectrograms that fit, and by `note` into what."""

PLAIN = "reference"
"""The baseline that summaries speak of; where it is missing, the first that is not a variant of `OURS`."""

_TITLES = {"forward": "forward pass"}


def speed_groups(run: Run) -> list[str]:
    """Names of the groups that compare speed, in the order of the run."""
    names = dict.fromkeys(result.group for result in run.results)
    return [name for name in names if name != LARGEST_BATCH and not name.startswith(GROWTH)]


def title(group: str) -> str:
    """The group in words, as a heading."""
    words = _TITLES.get(group, group)
    return words[:1].upper() + words[1:]


def ours(results: Sequence[Result]) -> Result | None:
    """The result of `OURS` among those of a case."""
    return next((result for result in results if result.model == OURS), None)


def baseline(results: Sequence[Result]) -> Result | None:
    """The result among those of a case that `OURS` is held against first."""
    timed = [result for result in results if result.ratio is not None and not result.model.startswith(OURS)]
    return next((result for result in timed if result.model == PLAIN), timed[0] if timed else None)


def main_cases(run: Run) -> dict[str, list[Result]]:
    """The first case of every group that compares speed."""
    return dict(next(iter(run.cases(group).items())) for group in speed_groups(run))


def reach(result: Result) -> str:
    """Lowest and highest ratio: " (3.45 to 4.63)"; empty where they are not known."""
    if result.lowest_ratio is None or result.highest_ratio is None:
        return ""
    return f" ({result.lowest_ratio:.2f} to {result.highest_ratio:.2f})"
