"""Mutation: small faults planted in the kernels and the folding, to see whether the corpus finds them."""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from support.judging import FaultError

from trust.mutants import killing, planting
from trust.mutants.equivalent import EQUIVALENT
from trust.mutants.killing import Profile
from trust.mutants.mutators import CAST_DROPPED, Mutant, Site
from trust.outcome import Outcome, Progress

NAME = "mutation"
KINDS = 23
WHAT = (
    f"Faults of {KINDS} kinds planted one at a time in the kernels, the folding and the training's own pass on a CPU: "
    "of all kinds alike, but of masks, casts, bounds and precision four times as many. Each is run through cases of "
    "fuzzing, memory and addressing until one finds it."
)
CANNOT = (
    "Faults of several places at once, of launchers and tables, and whether a listed survivor's reason is true. "
    "A cast is not dropped where a store or arithmetic with float32 makes up for it."
)

LONG, SHORT = 400, 5
SHARE, SHORT_SHARE = 0.95, 0.75
"""Of mutants that have to be found."""
CASES, SHORT_CASES, EQUIVALENT_CASES = 60, 10, 10
"""A mutant is run through at most so many, of all kinds in turn; one that is said to be equivalent through fewer."""
SECONDS = 120.0
"""After which a case is taken not to end; whole cases take a few."""


@dataclass(frozen=True)
class Fate:
    """What became of a mutant.

    Attributes:
        mutant: that ran.
        found: how it was found: "wrong result", "error", "no end"; None where no case found it.
        by: the case that found it.
        tried: cases that it ran through.
    """

    mutant: Mutant
    found: str | None
    by: str
    tried: int


def run(full: bool, progress: Progress) -> Outcome:
    """Plant mutants one after another, each in a process of its own."""
    profiles = killing.profiled(list(killing.cases(full)), progress)
    mutants, most = planting.chosen(LONG), CASES
    if not full:
        # Of some kinds few cases find a mutant, and some code is not run by the few of the short form at all.
        plain = [mutant for mutant in mutants if mutant.kind not in planting.TELLING]
        plain = [mutant for mutant in plain if ordered(profiles, mutant, Counter(), 1)]
        mutants, most = plain[:: len(plain) // SHORT][:SHORT], SHORT_CASES
    kills: defaultdict[Site, Counter[str]] = defaultdict(Counter)
    fates = []
    for mutant in mutants:
        cases = ordered(profiles, mutant, kills[mutant.site], most)
        fates.append(fate(mutant, cases[:EQUIVALENT_CASES] if mutant.name in EQUIVALENT else cases))
        if fates[-1].found is not None:
            kills[mutant.site][fates[-1].by] += 1
        progress(1)
    return judged(fates, full)


def ordered(profiles: Sequence[Profile], mutant: Mutant, kills: Counter[str], most: int = CASES) -> list[Profile]:
    """Cases that call a mutant's function: those that found most faults in it, then the quickest of each kind in turn.

    Where a cast is dropped, which may matter to one stride of one tensor alone, all cases of addressing come on top.
    Where it is one to 64 bits, which matters to them alone, they are first.

    Args:
        profiles: of all cases.
        mutant: that is to be found.
        kills: how many mutants of the same function were found, by the names of cases.
        most: cases to give.
    """
    able = sorted(
        (profile for profile in profiles if mutant.site in profile.calls), key=lambda profile: profile.seconds
    )
    turns: Counter[str] = Counter()
    turn = {}
    for profile in able:
        turn[profile.case.name] = turns[profile.case.kind]
        turns[profile.case.kind] += 1
    able.sort(key=lambda profile: turn[profile.case.name])
    chosen = able[:most]
    if mutant.kind == CAST_DROPPED:
        chosen += [profile for profile in able[most:] if profile.case.kind == killing.ADDRESSING]
    far_first = mutant.kind == CAST_DROPPED and "tl.int64" in mutant.before
    return sorted(
        chosen,
        key=lambda profile: (-kills[profile.case.name], far_first and profile.case.kind != killing.ADDRESSING),
    )


def fate(mutant: Mutant, cases: Sequence[Profile]) -> Fate:
    """Run a mutant through `cases` until one finds it, in a process that may crash or hang."""
    context = multiprocessing.get_context("fork")
    messages, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(mutant, cases, sender))
    process.start()
    sender.close()
    tried, name, found = 0, "", None
    try:
        while messages.poll(SECONDS):
            message = messages.recv()
            if message is None:
                return Fate(mutant, None, "", tried)
            name, found = message
            if found is not None:
                return Fate(mutant, found, name, tried)
            tried += 1
        return Fate(mutant, "no end", name, tried)
    except EOFError:
        return Fate(mutant, "crash", name, tried)
    finally:
        process.kill()
        process.join()


def _try(mutant: Mutant, cases: Sequence[Profile], sender: Connection) -> None:
    """Tell the name of each case when it begins, then how the mutant was found, if it was, and None at the end."""
    faulthandler.disable()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            with planting.applied(mutant):
                for profile in cases:
                    sender.send((profile.case.name, None))
                    found = _found(profile)
                    if found is not None:
                        sender.send((profile.case.name, found))
                        return
        except SyntaxError:
            sender.send(("compiling", "error"))
            return
    sender.send(None)


def _found(profile: Profile) -> str | None:
    try:
        profile.case.check()
    except FaultError:
        return "wrong result"
    except Exception:
        return "error"
    return None


def judged(fates: Sequence[Fate], full: bool) -> Outcome:
    """What is wrong, and figures; in the short form, with few cases, survivors need no reason."""
    survivors = [one for one in fates if one.found is None]
    killed, share = len(fates) - len(survivors), SHARE if full else SHORT_SHARE
    wrong = []
    if full:
        wrong += [f"survives: {one.mutant.name}" for one in survivors if one.mutant.name not in EQUIVALENT]
    wrong += [
        f"said to be equivalent, but found by {one.by}: {one.mutant.name}"
        for one in fates
        if one.found is not None and one.mutant.name in EQUIVALENT
    ]
    if killed < share * len(fates):
        wrong.append(f"{killed} of {len(fates)} mutants are found, expected {share:.0%}")
    return Outcome(len(fates), wrong, _figures(fates, survivors, killed))


def _figures(fates: Sequence[Fate], survivors: Sequence[Fate], killed: int) -> dict[str, Any]:
    kinds = Counter(one.mutant.kind for one in fates)
    alive = Counter(one.mutant.kind for one in survivors)
    return {
        "mutants to choose from": len(planting.everything()),
        "mutants tried": len(fates),
        "found": f"{killed} ({killed / max(1, len(fates)):.1%})",
        "functions with a mutant": len({one.mutant.site for one in fates}),
        "found by": dict(Counter(one.found for one in fates if one.found is not None)),
        "kinds": [{"kind": kind, "tried": kinds[kind], "found": kinds[kind] - alive[kind]} for kind in sorted(kinds)],
        "survivors": [
            {"mutant": one.mutant.name, "why nothing changes": EQUIVALENT.get(one.mutant.name, "unknown")}
            for one in survivors
        ],
    }
