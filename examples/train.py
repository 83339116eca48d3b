"""Train SepTr on a folder of audio, or on spoken words: see `python examples/train.py --help`."""

import sys
from pathlib import Path

# From a checkout, where the spoken words of the benchmark come from.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.command import main

if __name__ == "__main__":
    sys.exit(main())
