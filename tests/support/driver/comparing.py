"""Models on a CPU that compare the weights they keep as they do on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

from septr_fast.algebra import fold_cache


@contextmanager
def compared_as_on_a_gpu() -> Iterator[list[str]]:
    """Every comparison is asked for and answered later; yields what happens: "asked", "same" and "differs"."""
    happened: list[str] = []

    def sent(answer: Tensor) -> Callable[[], bool]:
        happened.append("asked")

        def wait() -> bool:
            happened.append("differs" if answer else "same")
            return bool(answer)

        return wait

    changes = {"is_waited_for": lambda x: x.device.type == "cpu", "_sent": sent}
    with mock.patch.multiple(fold_cache, **changes):
        yield happened
