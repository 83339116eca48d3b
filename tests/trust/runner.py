"""Runs parts of the corpus, each in a process of its own, so that a crash is a finding and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from trust import registry

LINES_OF_ERROR = 3
"""The last lines of a traceback, which name the place and the error."""


@dataclass
class Job:
    """A part that runs.

    Attributes:
        name: of the part.
        process: that runs it.
        messages: from it: numbers of cases, then a finished record.
        tried: cases that it has told of.
        begun: time, in seconds.
    """

    name: str
    process: Any
    messages: Connection
    tried: int = 0
    begun: float = field(default_factory=time.monotonic)

    def record(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """What is kept of the part."""
        return {"part": self.name, "seconds": round(time.monotonic() - self.begun, 1), **outcome}

    def unfinished(self, reason: str) -> dict[str, Any]:
        """What is kept of a part without a result: it is wrong."""
        return self.record({"tried": self.tried, "wrong": [reason], "figures": {}})


def prepare() -> None:
    """Set this process up as `tests/conftest.py` does for tests on a CPU: interpreter, all folded, one thread."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch
    from support.folding import fold_always
    from support.kernels import interpreter

    interpreter.install()
    fold_always()
    torch.set_num_threads(1)
    torch.manual_seed(20221107)


def run_part(name: str, full: bool, progress: Callable[[int], None]) -> dict[str, Any]:
    """The outcome of a part in this process, with what it says of itself; an error is a finding."""
    said = {"what": "", "cannot": ""}
    try:
        part = registry.load(name)
        said = {"what": part.WHAT, "cannot": part.CANNOT}
        outcome = asdict(part.run(full, progress))
    except Exception as error:
        lines = traceback.format_exception(error)[-LINES_OF_ERROR:]
        outcome = {"tried": 0, "wrong": [" ".join("".join(lines).split())], "figures": {}}
    return {**said, **outcome}


def work(name: str, full: bool, sender: Connection) -> None:
    """What a process does: run a part, tell how it gets on, and at the end its outcome."""
    prepare()
    sender.send(run_part(name, full, sender.send))


def run(
    names: Sequence[str],
    full: bool,
    workers: int,
    seconds: float,
    show: Callable[[list[Job]], None],
    task: Callable[[str, bool, Connection], None] = work,
) -> Iterator[dict[str, Any]]:
    """Run parts and yield the record of each as it ends.

    Args:
        names: of the parts.
        full: the long form, or the short one.
        workers: parts that run at a time.
        seconds: after which what still runs is ended, and is wrong.
        show: told of the parts that run whenever one gets on.
        task: what a process does.
    """
    context = multiprocessing.get_context("spawn")
    waiting, running, end = list(names), [], time.monotonic() + seconds
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(_start(context, waiting.pop(0), full, task))
        ready = wait([job.messages for job in running], timeout=max(0.0, end - time.monotonic()))
        if not ready or time.monotonic() >= end:
            yield from _stop(running, waiting, f"when {seconds / 60:.0f} minutes were over")
            return
        for job in [job for job in running if job.messages in ready]:
            record = _receive(job)
            if record is not None:
                running.remove(job)
                yield record
        show(running)


def _start(context: Any, name: str, full: bool, task: Callable[..., None]) -> Job:
    messages, sender = context.Pipe(duplex=False)
    process = context.Process(target=task, args=(name, full, sender), name=name)
    process.start()
    sender.close()
    return Job(name, process, messages)


def _stop(running: Sequence[Job], waiting: Sequence[str], when: str) -> Iterator[dict[str, Any]]:
    for job in running:
        job.process.terminate()
        job.process.join()
        yield job.unfinished(f"not finished {when}")
    for name in waiting:
        yield {**running[0].unfinished(f"not begun {when}"), "part": name, "tried": 0, "seconds": 0}


def _receive(job: Job) -> dict[str, Any] | None:
    """The record of a part that has ended; None where it goes on."""
    try:
        message = job.messages.recv()
    except EOFError:
        job.process.join()
        return job.unfinished(f"the process ended with status {job.process.exitcode}")
    if isinstance(message, int):
        job.tried += message
        return None
    job.process.join()
    return job.record(message)
