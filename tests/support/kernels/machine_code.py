"""Machine code as the disassembler writes it, for tests to write by hand."""

from __future__ import annotations

from collections.abc import Iterable


def numbered(lines: Iterable[str]) -> str:
    """Instructions, each ended by a semicolon, behind their addresses."""
    return "\n".join(f"        /*{16 * place:04x}*/   {line}" for place, line in enumerate(lines))
