"""A wrong call and what may come of it: the stated error that names the culprit, and nothing else."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from septr_fast.kernels import launch
from torch import Tensor

from septr_fast import SepTr

SIZES: dict[str, Any] = {
    "input_size": (6, 8),
    "num_classes": 3,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "dim": 8,
}
"""Of the model that wrong calls are made on."""


@dataclass(frozen=True)
class Subject:
    """What wrong calls are made on; they must leave it as it is.

    Attributes:
        model: in evaluation mode, its weights kept folded, on the Triton backend.
        x: what it takes, `(2, 1, 6, 8)`.
        logits: what it gave for it.
        folder: for files.
    """

    model: SepTr
    x: Tensor
    logits: Tensor
    folder: Path


@dataclass(frozen=True)
class WrongCall:
    """A call that must fail.

    Attributes:
        name: what is wrong.
        error: of this class or a subclass.
        culprit: has to be in the message.
        call: makes it.
    """

    name: str
    error: type[Exception]
    culprit: str
    call: Callable[[Subject], object]


def subject(folder: Path) -> Subject:
    """A new one, after a right call."""
    model = SepTr(**SIZES, backend="triton").eval()
    x = torch.randn(2, 1, 6, 8)
    with torch.no_grad():
        return Subject(model, x, model(x), folder)


def fault(wrong: WrongCall, on: Subject) -> str | None:
    """What is wrong with how a wrong call ends, or None."""
    before = state(on)
    with launches() as launched:
        end = _end(wrong, on)
    if end is None and launched:
        end = f"kernels were launched: {', '.join(launched)}"
    if end is None:
        changed = [name for name, value in state(on).items() if before.get(name) != value]
        end = f"it changed {', '.join(changed)}" if changed else None
    return None if end is None else f"{wrong.name}: {end}"


def _end(wrong: WrongCall, on: Subject) -> str | None:
    try:
        wrong.call(on)
    except Exception as error:
        message = str(error)
        if not isinstance(error, wrong.error):
            where = traceback.extract_tb(error.__traceback__)[-1]
            found = f"{type(error).__name__}: {message[:200]} ({Path(where.filename).name}:{where.lineno})"
            return f"expected {wrong.error.__name__}, got {found}"
        return None if wrong.culprit in message else f"expected {wrong.culprit!r} in the message, got {message[:300]!r}"
    return "no error"


@contextmanager
def launches() -> Iterator[list[str]]:
    """Names of the kernels that run inside."""
    names: list[str] = []
    run = launch.run

    def counted(described: launch.Launch, device: torch.device) -> None:
        names.append(described.name)
        run(described, device)

    with mock.patch.object(launch, "run", counted):
        yield names


def state(on: Subject) -> dict[str, Any]:
    """Everything that a wrong call must not change, by name."""
    model = on.model
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = (id(tensor), tensor.dtype, tensor.requires_grad, _bits(tensor), tensor.grad is None)
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str, tuple))}
        found[f"attributes of {name or 'the model'}"] = repr(plain)
    for index, block in enumerate(model.blocks):
        entry = block._cache._entry
        found[f"weights kept by block {index}"] = None if entry is None else (id(entry), *map(_bits, entry[1]))
        found[f"plan of block {index}"] = repr(block._steps)
    found["plan"] = repr(model.plan())
    found["x"] = _bits(on.x)
    found["modes of torch"] = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
    found["launcher"] = (len(launch._recording), len(launch._captures), len(launch._overrides), len(launch._untuned))
    found["half-written files"] = sorted(path.name for path in on.folder.rglob("*.partial"))
    return found


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()
