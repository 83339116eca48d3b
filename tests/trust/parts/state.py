"""State: whatever happens to a model between two calls, or in the middle of one, the next call is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.driver.comparing import compared_as_on_a_gpu

from trust.life import interruptions, together
from trust.life.model_life import Life
from trust.outcome import Outcome, Progress, silent

NAME = "state"
WHAT = (
    "Random orders of changes to a model (steps, loads, copies, casts, writes that nobody sees), each followed by a "
    "comparison with a new model of the same state, to the bit, half of them with kept weights compared as on a GPU; a "
    "forward pass, a training step, a load and a resizing stopped at every one of their operations, by lack of memory "
    "or by Ctrl-C, and `accelerate` at every 20th; threads and workers of data loaders that share a model."
)
CANNOT = (
    "Changes from another thread in the middle of a call; a change of a kind that is not among the rules; what only "
    "the other one of the two errors leaves behind at an operation."
)

OPERATIONS = [name for name, value in vars(Life).items() if callable(value) and name[0] != "_" and name != "fault"]
FULL, SHORT = ((6, 500), (20, 50)), ((3, 25),)
"""Runs of the machine, and operations in each."""

NEEDED = {
    "step of an optimizer": {"step_by_adam", "step_by_fused_sgd"},
    "load": {"load", "load_in_part", "load_by_assignment", "go_back"},
    "copy": {"deepcopy", "pickle", "save_and_load"},
    "cast": {"cast", "cast_and_back"},
    "change in place": {"change_in_place", "copy_into"},
    "write that nobody sees": {"change_by_data", "change_one_value", "change_through_numpy", "set_data"},
    "swap with an average": {"swap_with_average"},
}
"""Operations of which a long run must have one each."""
LONG, KINDS = 500, 20
"""Operations of a long run, and how many kinds of them it must have."""


@dataclass(frozen=True)
class Run:
    """What one run of the machine did.

    Attributes:
        steps: operations that were asked for.
        happened: names of those that happened, in order.
        fault: the sequence that went wrong, as one line, or None.
    """

    steps: int
    happened: list[str]
    fault: str | None

    def wrong(self) -> str | None:
        """The fault, or why the run does not count: it was too short or had too few kinds of operations."""
        if self.fault is not None:
            return self.fault
        if len(self.happened) != self.steps:
            return f"expected {self.steps} operations in a run, got {len(self.happened)}"
        kinds, fewest = set(self.happened), min(KINDS, self.steps // 3)
        if len(kinds) < fewest:
            return f"expected {fewest} kinds of operations in a run of {self.steps}, got {len(kinds)}"
        missing = [name for name, needed in NEEDED.items() if not kinds & needed] if self.steps >= LONG else []
        return f"expected in a run of {self.steps}: {', '.join(missing)}" if missing else None


def machine(sequences: list[list[str]], progress: Progress) -> type[RuleBasedStateMachine]:
    """The machine whose rule is any operation of `Life`; each of its runs adds the names of its own to `sequences`.

    The first run, hypothesis's simplest (one operation again and again), does nothing. There is one rule, and not one
    for each operation, as hypothesis leaves out some rules in every run, and sometimes all but one.
    """

    def start(self: Any) -> None:
        RuleBasedStateMachine.__init__(self)
        self.life = Life() if sequences else None
        sequences.append([])

    def happen(self: Any, name: str, which: int) -> None:
        if self.life is not None:
            sequences[-1].append(name)
            progress(1)
            operation = getattr(self.life, name)
            operation(*[which][: operation.__code__.co_argcount - 1])

    def right(self: Any) -> None:
        fault = None if self.life is None else self.life.fault()
        assert fault is None, fault

    any_operation = rule(name=strategies.sampled_from(OPERATIONS), which=strategies.integers(0, 59))
    members = {"__init__": start, "happen": any_operation(happen), "right": invariant()(right)}
    return type("Machine", (RuleBasedStateMachine,), members)


def live(seed: int, steps: int, progress: Progress = silent, *, smallest: bool = True) -> Run:
    """Run the machine once.

    Args:
        seed: of all draws.
        steps: operations.
        progress: told of each.
        smallest: whether to look for the smallest sequence that goes wrong, where one does, which takes a minute.
    """
    phases = [hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if smallest else [])]
    settings = hypothesis.settings(
        max_examples=2,
        stateful_step_count=steps,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    sequences: list[list[str]] = []
    fault = None
    try:
        run_state_machine_as_test(hypothesis.seed(seed)(machine(sequences, progress)), settings=settings)
    except Exception as error:
        notes = " ".join(note.strip() for note in getattr(error, "__notes__", []))
        fault = f"{type(error).__name__}: {error}. {' '.join(notes.split())}"
    return Run(steps, sequences[1], fault)


def lives(orders: Sequence[tuple[int, int]], progress: Progress = silent) -> list[Run]:
    """Numbers of runs and of operations in each; all runs have seeds of their own, odd ones compare as on a GPU."""
    lengths = [steps for count, steps in orders for _ in range(count)]
    runs = []
    for seed, steps in enumerate(lengths):
        with compared_as_on_a_gpu() if seed % 2 else nullcontext():
            runs.append(live(seed, steps, progress))
    return runs


def spread(runs: list[Run]) -> list[dict[str, int]]:
    """How long the runs of each length really were, and how many kinds of operations they had."""
    rows = []
    for steps in sorted({run.steps for run in runs}, reverse=True):
        ones = [Counter(run.happened) for run in runs if run.steps == steps]
        rows.append(
            {
                "asked for, in a row": steps,
                "runs": len(ones),
                "shortest": min(one.total() for one in ones),
                "fewest kinds": min(len(one) for one in ones),
                "most of one kind": max(max(one.values(), default=0) for one in ones),
            }
        )
    return rows


def run(full: bool, progress: Progress) -> Outcome:
    """All of it: changes, interruptions, threads and workers."""
    orders = FULL if full else SHORT
    runs = lives(orders, progress)
    wrong = [fault for fault in (one.wrong() for one in runs) if fault is not None]
    happened = Counter(name for one in runs for name in one.happened)
    stopped = 0
    for name, fault in interruptions.cases(step=1 if full else 101):
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
        "changes between two calls": happened.total(),
        "kinds of changes": len(happened),
        "calls that were stopped": stopped,
        "calls from 8 threads": 8 * rounds,
        "data loaders": 2,
        "orders of changes": spread(runs),
        "changes by kind": dict(sorted(happened.items())),
    }
    return Outcome(happened.total() + stopped + 8 * rounds + 2, wrong, figures)
