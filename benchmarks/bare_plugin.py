"""A pytest plugin that lets the benchmarks run from a checkout that is not installed."""

from __future__ import annotations

from benchmarks.bare import make_importable

make_importable()
