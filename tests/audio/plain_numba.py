"""In place of Numba: librosa's functions as they are written, since they run here once and compile for a minute."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np


def as_written(*given: Any, **options: Any) -> Any:
    """A decorator, with arguments or without, that leaves functions alone."""
    return given[0] if len(given) == 1 and callable(given[0]) else lambda function: function


def refused(*given: Any, **options: Any) -> Callable[[Any], Any]:
    """A decorator of functions that mean something else as they are written."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError("it has to be compiled by Numba")

    return lambda function: call


def install() -> None:
    """Let modules that are imported from now on find this under Numba's name."""
    numba = ModuleType("numba")
    numba.__dict__.update(
        jit=as_written, vectorize=as_written, stencil=as_written, guvectorize=refused, uint32=np.uint32
    )
    sys.modules["numba"] = numba
