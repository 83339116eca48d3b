"""What a pass of a model asks a GPU for, in order: launches of kernels, and operations of PyTorch between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from septr_fast import reference
from septr_fast.kernels.launch import Launch
from septr_fast.model import SepTr
from septr_fast.tuning.kernel_launches import class_token, recording
from septr_fast.tuning.tensor_bytes import distinct_bytes

MADE_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")
"""Operations that start nothing on a GPU, beside those that only look at a tensor otherwise by their schema."""

MADE_LIKE = tuple(f"aten::{name}" for name in ("new_", "zeros_like", "ones_like", "full_like", "rand"))
"""Beginnings of the names of operations that read nothing of the tensors that they are given."""


@dataclass(frozen=True)
class Operation:
    """An operation of PyTorch's, which starts a kernel of the vendor's library or of PyTorch.

    Attributes:
        name: in `torch.ops.aten`.
        flops: in products.
        share: of the rate in 16 bits at which tensor cores take these: 1, for operands in TF32 a half; 0 for exact ones
            of float32 or float64, which take no tensor cores.
        moved: bytes of distinct tensors read and written.
    """

    name: str
    flops: int
    share: float
    moved: int


Step: TypeAlias = "Launch | Operation"


def steps(
    config: Mapping[str, Any],
    dtype: torch.dtype,
    arch: int,
    batch: int,
    training: bool,
    *,
    backend: str = "triton",
    tf32: bool = False,
    residual: torch.dtype | None = None,
) -> list[Step]:
    """What one pass without gradients, or one step of training without optimizer, asks for.

    Tensors are without data. In a step of training weights are folded, without gradients that is done before; what
    follows the class token, a classifier of some thousand weights, is left out.

    Args:
        config: constructor arguments of `SepTr`, those of the original alone for "reference".
        dtype: of the products, and of everything else but where `residual` tells another one.
        arch: compute capability.
        batch: number of spectrograms.
        training: whether gradients are asked for.
        backend: "triton", "torch", or "reference" for the original's computation, operation by operation.
        tf32: whether PyTorch's products of float32 operands are in TF32.
        residual: dtype of parameters and tokens, float32 as under autocast.
    """
    found: list[Step] = []
    if backend == "reference":
        call = _reference(config, residual or dtype, batch)
    else:
        with torch.device("meta"):
            model = SepTr(**config, backend=backend).to(residual or dtype)
        call = partial(class_token, model, dtype, batch)
        if not training:
            with recording(arch), torch.no_grad():
                call()
    with _Recorder(found, tf32) as recorder, recording(arch) as launches:
        recorder.launches = launches
        with torch.set_grad_enabled(training):
            answer = call()
        if training:
            answer.sum().backward()
        recorder.catch_up()
    return found


def _reference(config: Mapping[str, Any], dtype: torch.dtype, batch: int) -> Callable[[], Tensor]:
    """The original's computation on spectrograms without data."""
    with torch.device("meta"):
        model = reference.SepTr(**config).to(dtype)
    first = cast(reference.SepTrBlock, model.transformer[0])
    x = torch.empty(batch, first.channels, *first.input_size, dtype=dtype, device="meta")
    return partial(model, x)


class _Recorder(TorchDispatchMode):
    """Puts launches and operations behind one another."""

    def __init__(self, found: list[Step], tf32: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self._shares = {torch.float32: 0.5 if tf32 else 0.0, torch.float64: 0.0}
        self.launches: Sequence[Launch] = ()
        self._taken = 0

    def catch_up(self) -> None:
        """Take the launches since the last operation."""
        self.found += self.launches[self._taken :]
        self._taken = len(self.launches)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:
            parts = func.decompose(*args, **(kwargs or {})) if func.namespace == "aten" else NotImplemented
        if parts is not NotImplemented:
            return parts
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not _only_looks(func):
            self.catch_up()
            only_written = func._schema.name.startswith(MADE_LIKE)
            read = () if only_written else (args, kwargs)
            tensors = [x for x in tree_leaves((read, result)) if isinstance(x, Tensor)]
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            share = min((self._shares.get(x.dtype, 1.0) for x in given), default=1.0)
            self.found.append(
                Operation(func._schema.name.removeprefix("aten::"), flops, share, distinct_bytes(tensors))
            )
        return result


def _only_looks(func: Any) -> bool:
    """Whether an operation starts nothing: it makes a view of a tensor, or an empty one."""
    name = func._schema.name.removeprefix("aten::")
    views = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
    return views or name in MADE_EMPTY


def counted(found: Sequence[Step]) -> Counter[str]:
    """How many of each kind: "kernels" and "operations"."""
    return Counter("kernels" if isinstance(step, Launch) else "operations" for step in found)
