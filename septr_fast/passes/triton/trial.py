"""The kernels tried on a device before a model is trusted to them: tiny passes beside plain PyTorch.

A compiler, an assembler or a driver that nobody has met before may break a kernel. So the first pass in a dtype on a
device runs every kind of pass, forward and backward, on a few tokens. What went well is noted in the user's cache
folder, for this device, driver, these versions and sources; what did not is tried again by the next process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from septr_fast.algebra.direct import fold_direct
from septr_fast.algebra.folded import Folded, to_dtype
from septr_fast.algebra.low_rank import fold_low_rank
from septr_fast.algebra.merged import fold_merged
from septr_fast.algebra.mlp import fold_mlp
from septr_fast.kernels import launch
from septr_fast.passes import backend
from septr_fast.passes.folders import why_not_private
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import passes as torch_passes
from septr_fast.passes.triton import passes as triton_passes
from septr_fast.reference import Transformer

OFF = "SEPTR_FAST_TRIAL"
"""Set to 0 in the environment, kernels run untried."""
AUTOCAST = "merged, under autocast"
"""Products in 16 bits beside a residual stream in float32."""
KINDS = ("low-rank", "merged", "direct", "class-only", AUTOCAST)
DIM, HEADS, DIM_HEAD, MLP_DIM = 32, 2, 16, 48
BATCH, ROWS, LENGTH = 2, 3, 19
TIMES, ROUNDINGS = 4, 4
"""An error may be so many times that of plain PyTorch, and so many roundings besides."""
REPORT = "please report it with what `septr-fast info --test` prints"

_logger = logging.getLogger("septr_fast")
_lock = Lock()
_found: dict[tuple[torch.device, torch.dtype], str | None] = {}


@dataclass(frozen=True)
class Figure:
    """An error, by norm, of a result or gradient.

    Attributes:
        kind: of the pass.
        what: the result or gradient.
        error: over the norm of what float64 gives.
        allowed: the most that is right.
    """

    kind: str
    what: str
    error: float
    allowed: float

    @property
    def right(self) -> bool:
        """Whether the error is allowed; NaN is not."""
        return self.error <= self.allowed


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels are not to be trusted with products in `dtype` on `device`; None where they are."""
    if device.type != "cuda" or backend.interprets() or os.environ.get(OFF) == "0":
        return None
    if (device, dtype) not in _found:
        if torch.cuda.is_current_stream_capturing():
            return None
        with _lock:
            if (device, dtype) not in _found:
                _found[device, dtype] = _why_not(device, dtype)
    return _found[device, dtype]


# A compiler takes the answer for a constant; see `septr_fast.passes.backend.why_not_triton`.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    name = backend.device_name(device)
    about = _circumstances(device, dtype)
    file = backend.cache_folder() / "trials" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"
    if file.exists() and why_not_private(file) is None:
        return None
    _logger.info("trying the kernels once in %s on %s", dtype, name)
    reason = verdict(device, dtype)
    if reason is None:
        _note(file, about)
        return None
    _logger.warning("Triton kernels are not used in %s on %s: %s", dtype, name, reason)
    return f"their trial in {dtype} on {name} failed: {reason}"


def verdict(device: torch.device, dtype: torch.dtype) -> str | None:
    """Try the kernels in `dtype` on `device`; why they are not to be trusted, None where they are."""
    try:
        found = figures(device, dtype)
    except Exception as error:
        raised = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
        missing = why_no_launch()
        return f"{raised}; {REPORT}" if missing is None else f"{missing} ({raised})"
    wrong = [one for one in found if not one.right]
    if not wrong:
        return None
    first = wrong[0]
    return (
        f"{len(wrong)} of {len(found)} results are wrong, the first the {first.what} of the {first.kind} pass: "
        f"error {first.error:.1e}, at most {first.allowed:.1e}; {REPORT}"
    )


def figures(device: torch.device, dtype: torch.dtype) -> list[Figure]:
    """The errors of every kind of pass.

    It runs in a thread of its own, in which no mode, autocast, graph or inference mode of the caller is on.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: [one for kind in _kinds(dtype) for one in _figures(kind, device, dtype)]).result()


def _kinds(dtype: torch.dtype) -> list[str]:
    return [kind for kind in KINDS if kind != AUTOCAST or dtype != torch.float32]


def why_no_launch() -> str | None:
    """What Triton lacks here to build the program that launches its kernels; None where nothing is known to."""
    chosen = os.environ.get("CC")
    if chosen and shutil.which(chosen) is None:
        return f"Triton needs a C compiler at a first launch, got {chosen}"
    if not chosen and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler at a first launch, and neither gcc nor clang is here: install one, or set CC"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    headers = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    if not headers.exists():
        return f"Triton needs Python's headers at a first launch, and {headers} is missing: install python3-dev"
    try:
        from triton.backends.nvidia.driver import libcuda_dirs

        libcuda_dirs()
    except ImportError:
        return None
    except Exception as error:
        return f"Triton finds no libcuda.so, the driver's library: {str(error).strip().splitlines()[0]}"
    return None


class _Operands(nn.Module):
    """A transformer, what stands before it, and tokens, drawn without the user's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.transformer = Transformer(DIM, HEADS, DIM_HEAD, MLP_DIM)
            self.projection = nn.Linear(1, DIM)
            shapes = {"cls_token": (DIM,), "positions": (1 + LENGTH, DIM)}
            shapes |= {"grid": (BATCH, ROWS, LENGTH, DIM), "pixels": (BATCH, ROWS, LENGTH, 1)}
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.to_empty(device="cpu")
        numbers = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.normal_(0, DIM**-0.5 if "weight" in name else 1, generator=numbers)
                if "norm.weight" in name:
                    parameter.add_(1)

    def run(self, kind: str, passes: ModuleType, dtype: torch.dtype) -> Sequence[Tensor]:
        """The results of a pass: weights folded as they are, then cast to `dtype`, as most tokens are."""
        settings = Settings("width", dtype=dtype)
        mlp = to_dtype(fold_mlp(self.transformer), dtype)
        given = dict(self.named_parameters(recurse=False))
        if kind == "low-rank":
            tables = fold_low_rank(self.transformer, self.projection, given["cls_token"], given["positions"])
            low_rank: Sequence[Tensor] = passes.low_rank_pass(given["pixels"].to(dtype), Folded(tables, mlp), settings)
            return low_rank
        fold = fold_merged if kind in ("merged", AUTOCAST) else fold_direct
        weights = Folded(to_dtype(fold(self.transformer), dtype), mlp)  # type: ignore[type-var]
        cls_token = given["cls_token"].expand(BATCH, -1)
        residual = torch.promote_types(dtype, torch.float32) if kind == AUTOCAST else dtype
        tokens = [x.to(residual) for x in (given["grid"], cls_token, given["positions"])]
        run = passes.class_only_pass if kind == "class-only" else passes.axis_pass
        results = run(*tokens, weights, settings)
        return (results,) if isinstance(results, Tensor) else results


def _figures(kind: str, device: torch.device, dtype: torch.dtype) -> Iterator[Figure]:
    operands = _Operands().to(device)
    with torch.no_grad():
        for parameter in operands.parameters():  # Rounding them is nobody's error.
            parameter.copy_(parameter.to(dtype))
    found, plain = (_tensors(operands, kind, passes, dtype, dtype) for passes in (triton_passes, torch_passes))
    exact = _tensors(operands.double(), kind, torch_passes, torch.float64, dtype)
    for what, oracle in exact.items():
        norm = float(oracle.norm())
        error, usual = (float((x[what].double() - oracle).norm()) / norm for x in (found, plain))
        yield Figure(kind, what, error, TIMES * usual + ROUNDINGS * torch.finfo(dtype).eps)


def _tensors(
    operands: _Operands, kind: str, passes: ModuleType, dtype: torch.dtype, grain: torch.dtype
) -> dict[str, Tensor]:
    """Results, and by all that they depend on the gradients of their sum, weighted by numbers rounded to `grain`."""
    results = operands.run(kind, passes, dtype)
    numbers = torch.Generator().manual_seed(2)
    given = [torch.randn(x.shape, generator=numbers).to(grain).to(x) for x in results]
    named = dict(operands.named_parameters())
    gradients = torch.autograd.grad(results, list(named.values()), given, allow_unused=True)
    told = {f"gradient of {name}": x for name, x in zip(named, gradients, strict=True) if x is not None}
    return {**{f"result {index}": x.detach() for index, x in enumerate(results, 1)}, **told}


def _circumstances(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a trial is good for."""
    return {
        "device": backend.device_name(device),
        "capability": backend.capability(device),
        "dtype": str(dtype),
        **backend.versions(),
        "ptxas": _assembler(device),
        "kernels": _sources(),
    }


def _assembler(device: torch.device) -> str | None:
    """The version of Triton's assembler for `device`; None where there is none, which the trial then says."""
    from triton.backends.nvidia.compiler import get_ptxas

    try:
        return str(get_ptxas(backend.capability(device)).version)
    except Exception:
        return None


@functools.cache
def _sources() -> str:
    """A hash of the kernels' sources."""
    files = sorted(Path(launch.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _note(file: Path, about: dict[str, Any]) -> None:
    """Keep that a trial went well, where nobody else could have put it there."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why_not_private(file) is None:
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(file)
    except OSError as error:
        _logger.info("the trial of the kernels is not kept: %s", error)
