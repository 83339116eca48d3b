"""Benchmarks: `pytest benchmarks/ --benchmark-only`. It may import all of `septr_fast`, which imports none of it."""
