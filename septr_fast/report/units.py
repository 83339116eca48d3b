"""Numbers as people read them: three digits and a unit."""

from __future__ import annotations

import math
import re

_PREFIXES = ("", "k", "M", "G", "T", "P")


def significant(value: float) -> str:
    """Three significant digits, never an exponent: "158", "1.43", "0.0200"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def quantity(value: float, unit: str) -> str:
    """`value` in thousands of `unit` as fits: "1.40 GB", "110 GFLOP/s", "4.20 M"."""
    step = 0
    while abs(value) >= 999.5 and step < len(_PREFIXES) - 1:
        value, step = value / 1000, step + 1
    return f"{significant(value)} {_PREFIXES[step]}{unit}".strip()


def duration(seconds: float) -> str:
    """Seconds, milliseconds or microseconds: "1.43 s", "37.1 ms"."""
    if seconds >= 0.9995:
        return f"{significant(seconds)} s"
    milliseconds = seconds * 1e3
    return f"{significant(milliseconds)} ms" if milliseconds >= 0.9995 else f"{significant(seconds * 1e6)} µs"


def share(value: float) -> str:
    """Per cent: "45 %", below one "0.32 %"."""
    return f"{value * 100:.0f} %" if value >= 0.01 else f"{value * 100:.2g} %"


def slug(text: str) -> str:
    """`text` as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
