"""A corpus that tries to break the package, counted; `python -m trust` runs it in full and writes docs/trust.md.

Each part is a module with `NAME`, `WHAT` (what is tried), `CANNOT` (what it cannot find) and
`run(full, progress) -> Outcome`. The short forms are tests: `tests/trust/tests/test_<part>.py`.
"""
