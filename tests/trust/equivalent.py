"""Mutants that no test can find, since the function does the same with them, and why that is so."""

EQUIVALENT: dict[str, str] = {}
