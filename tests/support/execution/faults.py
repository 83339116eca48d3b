"""What is wrong with a kernel that runs."""

from __future__ import annotations


class FaultError(Exception):
    """A kernel does what it must not do; nothing that comes after is to be trusted.

    Args:
        what: it does.
        line: of its body.
    """

    def __init__(self, what: str, line: int) -> None:
        super().__init__(f"line {line}: {what}")
        self.what, self.line = what, line
