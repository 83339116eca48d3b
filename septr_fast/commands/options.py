"""What several commands read and show: numbers, sizes, devices, names of files."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch


class Size(argparse.Action):
    """One int for both sides, or height and width."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep one int as it is and two as a tuple."""
        if len(values) > 2:
            parser.error(f"{option_string}: expected one int or two, got {len(values)}")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def count(text: str) -> int:
    """`text` as a positive int."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive int, got {text!r}")
    return int(text)


def number(text: str) -> int:
    """`text` as an int from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an int from 0 on, got {text!r}")
    return int(text)


def duration(text: str) -> float:
    """`text` as a positive, finite number of seconds."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def moment(text: str) -> float:
    """`text` as a finite number of seconds that is not negative."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 on, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def usable_device(name: str | None) -> torch.device:
    """The device `name`, tried out; raise `ValueError` where it cannot be used."""
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that can be used, got {chosen}: {reason}") from error


def shown(name: str | Path) -> str:
    """A name, or a message with names, as one line for a terminal or a figure: what is no character is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
