"""Which rows of the launch tables are used while models run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from septr_fast.kernels import launch
from septr_fast.kernels.tables import TABLES

NO_KERNELS = ("chunk", "attention_form")
"""Rows that configure no kernel."""
Used = set[tuple[int, int]]


@contextmanager
def noted() -> Iterator[Used]:
    """Collect the rows, by place in the tables and architecture, that are chosen inside."""
    used: Used = set()
    lookup = launch.lookup

    def noting(name: str, arch: int, itemsize: int, width: int) -> launch.Config:
        used.update((place, arch) for place in _first(name, arch, itemsize, width))
        return lookup(name, arch, itemsize, width)

    with mock.patch.object(launch, "lookup", noting):
        yield used


def of_kernels() -> Used:
    """Every row on every architecture that it serves, but for those behind a row that serves the same."""
    return {
        (place, arch)
        for place, row in enumerate(TABLES)
        for arch in row.archs
        if row.kernel not in NO_KERNELS and _first(row.kernel, arch, row.itemsize, row.width) == [place]
    }


def unused(used: Used) -> list[str]:
    """The rows that were not chosen, in words."""
    left = [(TABLES[place], arch) for place, arch in sorted(of_kernels() - used)]
    return [
        f"{row.kernel} on sm_{arch}, {row.itemsize} bytes per value, {row.width} features: no model uses this row"
        for row, arch in left
    ]


def _first(name: str, arch: int, itemsize: int, width: int) -> list[int]:
    serving = (
        place
        for place, row in enumerate(TABLES)
        if row.kernel == name and arch in row.archs and itemsize <= row.itemsize and width <= row.width
    )
    return [place for place in [next(serving, None)] if place is not None]
