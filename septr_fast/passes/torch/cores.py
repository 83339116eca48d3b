"""Chunks side by side: every core takes chunks of its own, and waits for the others once, at the end of a pass.

PyTorch gives all cores a part of each operation, some 2 ms in a chunk, and lets them wait for one another at its end;
where another process holds one of the cores, all the others wait for it, in a loop. Here a chunk belongs to one
thread from its first operation to its last, and a thread that is done takes the next one. There are as many threads as
PyTorch has, as a container's quota allows, or `MOST`. While they work each has its share of OpenMP's and MKL's
threads, a number that both keep for every thread apart: PyTorch's settings and those of other threads stay.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch

from septr_fast.passes.observers import records

Item = TypeVar("Item")
Result = TypeVar("Result")

CONTROL_GROUP = Path("/sys/fs/cgroup")
MOST = 16
"""Threads: Python starts the operations of one at a time, which takes a tenth of an operation's time or less."""


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, side by side where `why_not` has nothing against it; the results in order.

    Raises:
        BaseException: what `function` raised, of the first item of those that failed. After that none is begun.
    """
    threads = min(len(items), count())
    if threads < 2 or why_not() is not None:
        return [function(item) for item in items]
    work = _Work(function, items)
    try:
        _crew.help(work, threads - 1)
        work.take()
    finally:
        work.end()
    return work.results()


def shares(items: Sequence[Item]) -> list[Sequence[Item]]:
    """`items` in as many parts as there are threads, each in order.

    What is summed up in each, and then over them in their order, has the same bits for the same number of threads.
    """
    parts = max(1, min(len(items), count()))
    bounds = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in itertools.pairwise(bounds)]


def count() -> int:
    """Threads that take chunks."""
    return min(_all(), MOST)


def _all() -> int:
    """Threads that PyTorch has and a container's quota allows."""
    return max(1, min(torch.get_num_threads(), _quota()))


def why_not() -> str | None:
    """Why chunks are not computed side by side; None where they are."""
    if count() < 2:
        return "there is one thread"
    if records():
        return "a compiler or a transform looks on"
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return "a mode of PyTorch looks on"
    if torch.autograd.profiler._is_profiler_enabled:
        return "a profiler looks on"
    return None if _libraries() else "PyTorch's OpenMP is not to be reached"


class _Work:
    """Items that threads take one after another."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._function: Callable[[Any], Any] | None = function
        self._items, self._count = items, len(items)
        self._numbers = deque(range(len(items)))
        self._found: dict[int, Any] = {}
        self._failed: dict[int, BaseException] = {}
        self._state, self._share = _state(), _all() // count()
        self._changed, self._helping, self._ended = threading.Condition(), 0, False

    def help(self) -> None:
        """Take items in a thread of another's; nothing once the work has ended. What goes wrong is kept."""
        with self._changed:
            if self._ended:
                return
            self._helping += 1
        try:
            with self._state():
                self.take()
        except BaseException as error:
            self._failed.setdefault(self._count, error)
        finally:
            with self._changed:
                self._helping -= 1
                self._changed.notify_all()

    def take(self) -> None:
        """Take items until there are none, or one fails."""
        function, items = self._function, self._items
        with _threads(self._share):
            while function is not None and self._numbers:
                try:
                    number = self._numbers.popleft()
                except IndexError:
                    return
                try:
                    self._found[number] = function(items[number])
                except BaseException as error:
                    self._numbers.clear()
                    self._failed[number] = error

    def end(self) -> None:
        """Let nobody begin an item, and wait for those that were begun, whatever interrupts the waiting.

        What the items hold is let go, though helpers that are busy may come upon this work later.
        """
        self._numbers.clear()
        interrupted: BaseException | None = None
        with self._changed:
            self._ended = True
            while self._helping:
                try:
                    self._changed.wait()
                except BaseException as error:
                    interrupted = error
        self._function, self._items = None, ()
        if interrupted is not None:
            raise interrupted

    def results(self) -> list[Any]:
        """Those of all items, in their order; what was raised instead, an interruption before errors."""
        if self._failed:
            errors = sorted(self._failed.items())
            raise next((error for _, error in errors if not isinstance(error, Exception)), errors[0][1])
        return [self._found.pop(number) for number in range(self._count)]


class _Crew:
    """Threads that help with any work; they are started when they are first needed, and none outlives a fork."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._started, self._lock = 0, threading.Lock()

    def help(self, work: _Work, threads: int) -> None:
        """Let so many threads know of `work`."""
        with self._lock:
            while self._started < threads:
                self._started += 1
                threading.Thread(target=self._serve, name=f"septr_fast {self._started}", daemon=True).start()
        for _ in range(threads):
            self._waiting.put(work)

    def _serve(self) -> None:
        while True:
            self._waiting.get().help()


_crew = _Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_crew.__init__)  # type: ignore[misc]


def _state() -> Callable[[], AbstractContextManager[None]]:
    """What sets another thread up as this one is: gradients, inference mode and autocast."""
    grads, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    kept, dtype = torch.is_autocast_cache_enabled(), torch.get_autocast_dtype("cpu")
    autocasts = torch.is_autocast_enabled("cpu")

    @contextmanager
    def state() -> Iterator[None]:
        casting = torch.autocast("cpu", dtype, cache_enabled=kept) if autocasts else nullcontext()
        with torch.inference_mode(inference), torch.set_grad_enabled(grads), casting:
            yield

    return state


@contextmanager
def _threads(share: int) -> Iterator[None]:
    """So many threads of OpenMP and of MKL for what this thread does inside; afterwards as many as before."""
    openmp, mkl = _libraries()
    before = torch.get_num_threads()
    openmp(share)
    of_mkl = 0 if mkl is None else mkl(share)
    try:
        yield
    finally:
        openmp(before)
        if mkl is not None:
            mkl(of_mkl)


@functools.cache
def _libraries() -> tuple[Any, ...]:
    """What sets a thread's numbers of threads in the OpenMP and the MKL that PyTorch runs on; () if it cannot be found.

    It is sought among what PyTorch's library is linked with, and tried in a thread of its own.
    """
    if not torch.backends.openmp.is_available():
        return ()
    folder = Path(torch.__file__).parent / "lib"
    library = next((path for path in folder.glob("libtorch_cpu.*") if path.suffix in (".so", ".dylib")), None)
    try:
        symbols = ctypes.CDLL(str(library))
        openmp = symbols.omp_set_num_threads
        mkl = symbols.MKL_Set_Num_Threads_Local if torch.backends.mkl.is_available() else None
    except (OSError, AttributeError):
        return ()
    openmp.restype = None
    tried: list[bool] = []

    def attempt() -> None:
        wanted = torch.get_num_threads() + 1
        openmp(wanted)
        tried.append(torch.get_num_threads() == wanted)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return (openmp, mkl) if tried == [True] else ()


@functools.cache
def _quota() -> int:
    """Cores that the control group of this process may use, rounded up; `sys.maxsize` where there is no limit."""
    for read in (_quota_of_version_2, _quota_of_version_1):
        try:
            quota, period = read()
        except (OSError, ValueError):
            continue
        return max(1, -(-quota // period)) if quota > 0 else sys.maxsize
    return sys.maxsize


def _quota_of_version_2() -> tuple[int, int]:
    quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
    return -1 if quota == "max" else int(quota), int(period)


def _quota_of_version_1() -> tuple[int, int]:
    folder = CONTROL_GROUP / "cpu"
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
