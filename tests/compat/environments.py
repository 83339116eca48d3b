"""An environment for each version of PyTorch and of Python, with its own Triton, without the gigabytes of CUDA."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from compat import stubs

ROOT = Path(__file__).resolve().parents[2]


class Version(NamedTuple):
    """A version of PyTorch, the Triton that it asks for, what else of its own it needs, and a version of Python.

    Attributes:
        torch: version.
        triton: version.
        others: as pip takes them.
        python: such as "3.13"; empty for the one that runs this.
    """

    torch: str
    triton: str
    others: tuple[str, ...] = ()
    python: str = ""

    @property
    def name(self) -> str:
        """As it is asked for and kept."""
        return f"{self.torch}-python{self.python}" if self.python else self.torch


CUDA_12, CUDA_13 = "nvidia-cuda-runtime-cu12=={}", "nvidia-cuda-runtime==13.0.96"
VERSIONS = (
    Version("2.5.1", "3.1.0", (CUDA_12.format("12.4.127"), "sympy==1.13.1")),
    Version("2.7.1", "3.3.1", (CUDA_12.format("12.6.77"),)),
    Version("2.9.1", "3.5.1", (CUDA_12.format("12.8.90"),)),
    Version("2.11.0", "3.6.0", (CUDA_13,)),
    Version("2.14.1", "3.8.0", (CUDA_13,)),
    Version("2.5.1", "3.1.0", (CUDA_12.format("12.4.127"), "sympy==1.13.1"), python="3.10"),
    Version("2.11.0", "3.6.0", (CUDA_13,), python="3.12"),
    Version("2.11.0", "3.6.0", (CUDA_13,), python="3.13"),
    Version("2.13.0", "3.6.0", (CUDA_13,), python="3.14"),
)
"""Beside the one that is pinned for development."""
OTHERS = (
    *("einops", "filelock", "fsspec", "hypothesis", "jinja2", "librosa", "matplotlib", "networkx", "numpy", "onnx"),
    *("onnxruntime", "psutil", "pytest", "pytest-xdist", "pyyaml", "safetensors", "scikit-learn", "soundfile"),
    *("soxr", "sympy", "tqdm", "transformers", "typing-extensions", "pytest-benchmark", "import-linter"),
)
"""Packages that the tests need besides, for a Python that cannot take those installed here."""
UPON_TORCH = ("accelerate", "onnxscript", "onnx-ir", "ml-dtypes")
"""Packages that would bring PyTorch along."""


def python_with(version: Version, folder: Path) -> Path:
    """Python of an environment in `folder`, made where there is none.

    All other packages are those installed here; for another version of Python the newest that there are for it.

    Raises:
        FileNotFoundError: where that version of Python is not to be found.
    """
    python, done = folder / "bin" / "python", folder / "made"
    if done.exists():
        return python
    subprocess.run([interpreter(version.python), "-m", "venv", "--clear", str(folder)], check=True)
    wanted = (f"torch=={version.torch}", f"triton=={version.triton}", *version.others)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    subprocess.run([*pip, *wanted], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    stubs.add(site / "torch" / "lib")
    if version.python:
        subprocess.run([word for word in pip if word != "--no-deps"] + list(OTHERS), check=True)
        subprocess.run([*pip, *UPON_TORCH], check=True)
    else:
        (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    subprocess.run([*pip, "setuptools", "wheel"], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--editable", str(ROOT)], check=True)
    done.touch()
    return python


def interpreter(version: str) -> str:
    """An interpreter of Python `version`: on the path, or one that pyenv keeps; the running one for none."""
    if not version:
        return sys.executable
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = str(kept[-1]) if kept else shutil.which(f"python{version}")
    if found is None:
        raise FileNotFoundError(f"no Python {version} found, on the path or kept by pyenv")
    return found


def with_wheel(python: Path, folder: Path) -> tuple[Path, Path]:
    """Python of an environment with the wheel of this checkout, all else from that of `python`, made anew in `folder`.

    Returns:
        It, and a folder with what this checkout holds besides the package, where nothing but the wheel can be imported.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tree, wheels, made = folder / "tree", folder / "wheels", folder / "env"
    for path in _tracked():
        if path.parts[0] not in ("septr_fast", "kernels"):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, tree / path)
    pip = [str(python), "-m", "pip"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(made)], check=True)
    own = made / "bin" / "python"
    (site,) = made.glob("lib/python*/site-packages")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([*pip, *install, *map(str, wheels.glob("*.whl"))], check=True)
    # Without the caller's PYTHONPATH, which may name this checkout.
    ask = [str(python), "-I", "-c", "import sys; print(*sys.path, sep='\\n')"]
    path = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    (site / "packages.pth").write_text(path, encoding="utf-8")
    return own, tree


def _tracked() -> list[Path]:
    """Files of the checkout that git knows of."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]
