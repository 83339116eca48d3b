"""Accuracy against cost: SepTr, AST and ViT trained alike on the same clips. See its `--help`, and docs/accuracy.md."""

import sys
from pathlib import Path

# From a checkout, where the other models and the clocks of the benchmarks come from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from comparison.command import main

if __name__ == "__main__":
    sys.exit(main())
