"""Small models in tests are for what large ones do: their transformers are folded, however little that wins.

A child process that a test starts weighs as users' processes do, unless its pytest takes this as a plugin.
"""

from __future__ import annotations

from septr_fast.algebra import plan

SHIPPED = plan.OVERHEAD_FLOP


def fold_always() -> None:
    """Let no transformer run as written for want of work, in this process, in models that are built from now on."""
    plan.OVERHEAD_FLOP = -(10**18)


def pytest_configure() -> None:
    """As a plugin of pytest."""
    fold_always()
