"""Imports from a checkout that is not installed: the folder `kernels` as `septr_fast.kernels`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


class _Kernels(MetaPathFinder):
    """Finds the package `septr_fast.kernels` where `setup.py` maps it to."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "septr_fast.kernels":
            return None
        folder = ROOT / "kernels"
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def make_importable() -> None:
    """Let this checkout's `septr_fast`, `septr_fast.kernels` and `benchmarks` be found before any installed ones."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if not any(isinstance(finder, _Kernels) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Kernels())


def prepare(device: str) -> None:
    """Make this checkout and the modules of its tests importable, and choose between compiler and mended interpreter.

    Args:
        device: "cuda", where kernels are compiled, or "cpu".
    """
    make_importable()
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(1, str(ROOT / "tests"))
    if device.startswith("cuda"):
        os.environ.pop("TRITON_INTERPRET", None)
        return
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.import_module("support.kernels.interpreter").install()
