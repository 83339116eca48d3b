"""State: whatever happens to a model between two calls, or in the middle of one, the next call is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from trust import interruptions, together
from trust.model_life import Life
from trust.outcome import Outcome, Progress

NAME = "state"
WHAT = (
    "Random orders of changes to a model (steps, loads, copies, casts, writes that nobody sees), each followed by a "
    "comparison with a new model of the same state, to the bit; calls stopped at one operation after the other; "
    "threads and workers of data loaders that share a model."
)
CANNOT = "Changes from another thread in the middle of a call; a change of a kind that is not among the rules."

OPERATIONS = [name for name, value in vars(Life).items() if callable(value) and name[0] != "_" and name != "fault"]
LONG, SHORT = ((6, 500), (30, 50)), ((3, 25),)
"""Runs of the machine, and operations in each at most."""

Count = Callable[[str], None]


def machine(count: Count) -> type[RuleBasedStateMachine]:
    """The machine whose rules are the operations of `Life`; `count` is told of each."""

    def start(self: Any) -> None:
        RuleBasedStateMachine.__init__(self)
        self.life = Life()

    def right(self: Any) -> None:
        fault = self.life.fault()
        assert fault is None, fault

    rules = {name: _rule(name, count) for name in OPERATIONS}
    return type("Machine", (RuleBasedStateMachine,), {"__init__": start, "right": invariant()(right), **rules})


def _rule(name: str, count: Count) -> Any:
    takes_which = getattr(Life, name).__code__.co_argcount > 1

    def happen(self: Any, **which: int) -> None:
        count(name)
        getattr(self.life, name)(**which)

    happen.__name__ = name
    return rule(**({"which": strategies.integers(0, 59)} if takes_which else {}))(happen)


def lives(runs: int, steps: int, count: Count, *, smallest: bool = True) -> list[str]:
    """Run the machine; a sequence that goes wrong, as one line, or nothing.

    Args:
        runs: of the machine.
        steps: in each at most.
        count: told of each by its name.
        smallest: whether to look for the smallest such sequence, which takes a minute.
    """
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if smallest else [])]
    settings = hypothesis.settings(
        max_examples=runs,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    try:
        run_state_machine_as_test(machine(count), settings=settings)
    except Exception as error:
        notes = " ".join(note.strip() for note in getattr(error, "__notes__", []))
        return [f"{type(error).__name__}: {error}. {' '.join(notes.split())}"]
    return []


def run(full: bool, progress: Progress) -> Outcome:
    """All of it: changes, interruptions, threads and workers."""
    happened: Counter[str] = Counter()

    def count(name: str) -> None:
        happened[name] += 1
        progress(1)

    orders = LONG if full else SHORT
    wrong = [fault for runs, steps in orders for fault in lives(runs, steps, count)]
    changes = happened.total()
    stopped = 0
    for name, fault in interruptions.cases(step=2 if full else 101):
        found = fault()
        wrong += [] if found is None else [f"{name}: {found}"]
        stopped += 1
        progress(1)
    for name, found in interruptions.after_kernels(range(15) if full else [7]):
        wrong += [] if found is None else [f"{name}: {found}"]
        stopped += 1
        progress(1)
    rounds = 50 if full else 3
    wrong += together.threads(rounds)
    wrong += together.workers("fork", 2) + together.workers("spawn", 2 if full else 1)
    figures = {
        "changes between two calls": changes,
        "changes in a row, at most": max(steps for _, steps in orders),
        "kinds of changes": len(happened),
        "calls that were stopped": stopped,
        "calls from 8 threads": 8 * rounds,
        "data loaders": 2,
        "changes by kind": dict(sorted(happened.items())),
    }
    return Outcome(changes + stopped + 8 * rounds + 2, wrong, figures)
