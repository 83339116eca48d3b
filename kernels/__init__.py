"""Triton operators of `septr_fast`, installed as `septr_fast.kernels`.

Importing this package needs neither Triton nor a GPU. A kernel file imports no module of `septr_fast`.
"""

PASSES: frozenset[str] = frozenset()
"""Names of the passes of `septr_fast.functional` that have a Triton operator."""
