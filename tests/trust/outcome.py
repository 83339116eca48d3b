"""What a part of the corpus reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

Progress = Callable[[int], None]
"""Told, as often as a part likes, how many more cases were tried since it was last told."""


def silent(_more: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Outcome:
    """What was tried and how it came out.

    Attributes:
        tried: number of cases.
        wrong: what went wrong, one readable line each, smallest case first.
        figures: for the page, by readable names, as JSON holds them: a number or a text; a dictionary of such
            (a table of two columns); a list of dictionaries with the same keys (a table with these columns).
    """

    tried: int
    wrong: list[str]
    figures: dict[str, Any] = field(default_factory=dict)


ShortForm = Callable[[ModuleType], Outcome]
"""The fixture `short_form` of tests/conftest.py."""
