"""Compiles one kernel of each name for sm_90 without any cache; run as a program, prints what is found in each.

Compiling needs a process in which Triton does not interpret.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from septr_fast.tuning import compiled, kernel_launches

ARCHITECTURE = 90


def main(cache: Path) -> None:
    """Print the findings by identity."""
    distinct = {}
    for config in kernel_launches.MODELS.values():
        for launch in kernel_launches.launches(config, torch.bfloat16, ARCHITECTURE):
            distinct.setdefault(launch.name, launch)
    launches = {compiled.identity(launch, ARCHITECTURE): (launch, ARCHITECTURE) for launch in distinct.values()}
    found = compiled.compile_all(launches, cache, 2, lambda: None)
    sys.stdout.write(json.dumps({key: asdict(result) for key, result in found.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
