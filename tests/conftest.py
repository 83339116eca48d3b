"""Shared set-up: repeatable weights, two threads, the repository's root on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(20221107)
