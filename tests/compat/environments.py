"""An environment for each version of PyTorch, with its own Triton, without the gigabytes of CUDA."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from compat import stubs

ROOT = Path(__file__).resolve().parents[2]


class Version(NamedTuple):
    """A version of PyTorch, the Triton that it asks for, and what else of its own it needs, as pip takes it."""

    torch: str
    triton: str
    others: tuple[str, ...] = ()


CUDA_12 = "nvidia-cuda-runtime-cu12=={}"
VERSIONS = (
    Version("2.5.1", "3.1.0", (CUDA_12.format("12.4.127"), "sympy==1.13.1")),
    Version("2.7.1", "3.3.1", (CUDA_12.format("12.6.77"),)),
    Version("2.9.1", "3.5.1", (CUDA_12.format("12.8.90"),)),
    Version("2.11.0", "3.6.0", ("nvidia-cuda-runtime==13.0.96",)),
)
"""Beside the one that is pinned for development."""


def python_with(version: Version, folder: Path) -> Path:
    """Python of an environment in `folder`, made where there is none; all other packages are those installed here."""
    python, done = folder / "bin" / "python", folder / "made"
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    wanted = (f"torch=={version.torch}", f"triton=={version.triton}", *version.others)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    subprocess.run([*pip, *wanted], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    stubs.add(site / "torch" / "lib")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    subprocess.run([*pip, "setuptools", "wheel"], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--editable", str(ROOT)], check=True)
    done.touch()
    return python
