"""`septr-fast plan`: the formulation of every transformer, its work and its memory."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from septr_fast.algebra.plan import FORMULATIONS
from septr_fast.commands.options import Size
from septr_fast.model import SepTr
from septr_fast.reference import AXES

HELP = "the formulation of every transformer, its work and its memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `SepTr` that decide it."""
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument(
        "--input-size", nargs="+", type=int, action=Size, default=(128, 128), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--num-classes", type=int, default=35)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--mlp-dim", type=int, default=256)
    parser.add_argument("--dim-head", type=int, default=256)
    parser.add_argument("--down-sample-input", nargs="+", type=int, action=Size, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--first-axis", choices=AXES, default="height")
    parser.add_argument("--formulation", choices=FORMULATIONS, help="forced wherever it is possible")


def run(**arguments: Any) -> int:
    """Print the plan of `SepTr(**arguments)`; return the exit status, 2 for arguments that it refuses."""
    try:
        with torch.device("meta"):
            model = SepTr(**arguments)
    except ValueError as error:
        sys.stderr.write(f"septr-fast plan: {error}\n")
        return 2
    sys.stdout.write(f"{model.plan()}\n")
    return 0
