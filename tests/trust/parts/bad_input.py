"""Wrong calls: each ends in an error that names the culprit, launches no kernel and changes nothing."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from trust.outcome import Outcome, Progress
from trust.wrong import (
    calls as wrong_calls,
)
from trust.wrong import (
    files as wrong_files,
)
from trust.wrong import (
    helpers as wrong_helpers,
)
from trust.wrong import (
    models as wrong_models,
)
from trust.wrong import (
    operators as wrong_operators,
)
from trust.wrong.calls import WrongCall

NAME = "bad_input"
WHAT = (
    "Wrong calls of everything public: ranks, sizes, dtypes, devices, layouts, lengths, state dicts, broken and "
    "malicious files; each must raise the stated error, name the culprit, launch nothing and change nothing."
)
CANNOT = (
    "A wrong call that nobody thought of; values that are wrong in a well-formed call; what PyTorch has copied of a "
    "state dict that fails to load into a module around a model."
)

SOURCES = {
    "model and blocks": wrong_models,
    "operators and passes": wrong_operators,
    "front-ends, windows, accelerate": wrong_helpers,
    "files": wrong_files,
}


def calls() -> Iterator[tuple[str, WrongCall]]:
    """All wrong calls, with what they are calls of."""
    for name, source in SOURCES.items():
        yield from ((name, wrong) for wrong in source.calls())


def run(full: bool, progress: Progress) -> Outcome:
    """Make them all, on one subject, in both forms; a right call afterwards gives what it gave before."""
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        subject = wrong_calls.subject(Path(folder))
        for kind, call in calls():
            kinds[kind] += 1
            found = wrong_calls.fault(call, subject)
            wrong += [] if found is None else [found]
            progress(1)
        with torch.no_grad():
            if not torch.equal(subject.model(subject.x), subject.logits):
                wrong.append("the model gives other logits than before")
    return Outcome(kinds.total(), wrong, {"wrong calls": dict(kinds)})


class quiet(warnings.catch_warnings):  # noqa: N801
    """Neither warnings nor log entries: wrong calls may well give them."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(logging.NOTSET)
        super().__exit__(*error)
