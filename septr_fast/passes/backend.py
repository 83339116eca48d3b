"""Which backend can run a pass here, and if not, why."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import septr_fast.kernels as kernels
from septr_fast.passes.folders import why_not_private
from septr_fast.passes.observers import differentiates_forward
from septr_fast.version import VERSION

BACKENDS = ("auto", "torch", "triton")
LEAST_TORCH, LEAST_TRITON = (2, 10), (3, 6)
FLOAT32 = "the vendor's products in float32 are taken for faster than the kernels', see docs/forecast.md"
"""Why "auto" leaves products in float32 to PyTorch."""

_logger = logging.getLogger("septr_fast")
_logged: set[str] = set()


def check_name(backend: str) -> str:
    """Return `backend`; raise `ValueError` if it is not one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def is_to_interpret() -> bool:
    """Whether Triton's interpreter is asked for, in place of its compiler."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def interprets() -> bool:
    """Whether Triton kernels run under Triton's interpreter, on any device: where it is mended, as for the tests."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    return is_to_interpret() and hasattr(getattr(interpreter, "InterpreterBuilder", None), "is_mended")


def cache_folder() -> Path:
    """Where results are kept for this user: `$XDG_CACHE_HOME/septr_fast`, by default `~/.cache/septr_fast`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "septr_fast"


def triton_cache_folder() -> Path:
    """Where Triton keeps compiled kernels, which it loads unchecked: as it says itself, `TRITON_CACHE_DIR` first."""
    chosen = os.environ.get("TRITON_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(count))]


def device_name(device: torch.device) -> str:
    """What the driver calls a CUDA device; of another one its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def capability(device: torch.device) -> int | None:
    """The compute capability of a CUDA device, 90 for 9.0."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def driver_version() -> str | None:
    """The version of NVIDIA's driver as Linux or `nvidia-smi` tells it."""
    told = Path("/proc/driver/nvidia/version")
    if told.exists() and (found := re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", told.read_text())):
        return found[1]
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def versions() -> dict[str, str | None]:
    """Versions by name; None for what is not there."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    return {
        "septr_fast": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "CUDA": torch.version.cuda,
        "driver": driver_version(),
    }


def why_not_triton(pass_name: str, device: torch.device) -> str | None:
    """The reason why `pass_name` cannot run on Triton kernels for tensors on `device`; None if it can."""
    if pass_name not in kernels.PASSES:
        return f"this version of septr_fast has no Triton kernel for {pass_name}"
    missing = _why_no_triton()
    if missing is not None:
        return missing
    if interprets() or device.type == "meta":
        return None
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, got {device}"
    if is_to_interpret():
        return (
            "TRITON_INTERPRET=1 is set, and Triton's own interpreter is no GPU: it fails, or rounds otherwise; unset it"
        )
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "Triton kernels need an NVIDIA GPU and its driver"
    capability = torch.cuda.get_device_capability(device)
    if capability < kernels.LEAST_CAPABILITY:
        least, found = (".".join(map(str, pair)) for pair in (kernels.LEAST_CAPABILITY, capability))
        return f"Triton kernels need compute capability {least}, got {found}"
    return _why_not_cache(triton_cache_folder())


# What `torch.compiler.assume_constant_result` does; naming the decorator imports all of torch._dynamo, for seconds.
why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _why_no_triton() -> str | None:
    """What is wrong with the installation of Triton, looked up once."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH:
        return f"Triton kernels need PyTorch {'.'.join(map(str, LEAST_TORCH))} or newer, got {torch.__version__}"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRITON:
        return f"Triton kernels need triton {'.'.join(map(str, LEAST_TRITON))} or newer, got {version}"
    return None


@functools.cache
def _why_not_cache(folder: Path) -> str | None:
    """Why Triton's cache is not to be trusted, looked up and warned of once."""
    reason = why_not_private(folder)
    if reason is None:
        return None
    _logger.warning("Triton kernels are not used, its cache %s may hold others' code: %s", folder, reason)
    return f"Triton's cache {folder} may hold others' code: {reason}, or set TRITON_CACHE_DIR"


def _why_not_now() -> str | None:
    """What is going on that the operators take no part in."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active():
        return "the operators on Triton kernels have no rules for the transforms of torch.func"
    if differentiates_forward():
        return "the operators on Triton kernels have no forward-mode derivative"
    return None


def choose(
    backend: str,
    pass_name: str,
    device: torch.device,
    limit: str | None = None,
    trial: Callable[[], str | None] = lambda: None,
    *,
    products: torch.dtype = torch.bfloat16,
) -> str:
    """The backend that runs `pass_name` for tensors on `device`: "torch" or "triton".

    Args:
        backend: "auto" takes Triton for products in 16 bits where it can run on a CUDA device and PyTorch elsewhere,
            logging once why a CUDA device is served by PyTorch; "torch" and "triton" insist.
        pass_name: name of a function of `septr_fast.passes.dispatch`.
        device: where the tensors are.
        limit: what of this pass the kernels cannot do, if anything.
        trial: where they can run, tells what they did wrong on `device`, if anything.
        products: dtype of the operands of matrix products.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: for "triton" where it cannot run, with the reason.
    """
    if check_name(backend) == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    reason = limit or _why_not_now() or why_not_triton(pass_name, device)
    if backend == "auto" and reason is None and products == torch.float32:
        reason = FLOAT32
    reason = reason or trial()
    if reason is None:
        return "triton"
    if backend == "triton":
        raise RuntimeError(f'backend="triton" cannot run here: {reason}')
    log_once(f"running on plain PyTorch: {reason}")
    return "torch"


def log_once(message: str) -> None:
    """Log `message` the first time that it is given in this process; not while a graph is compiled."""
    if not torch.compiler.is_compiling() and message not in _logged:
        _logged.add(message)
        _logger.info("%s", message)
