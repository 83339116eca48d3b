"""A state dict is loaded as a whole or not at all: PyTorch copies what fits before it raises for what does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def as_a_whole(module: nn.Module, *, assign: bool) -> Iterator[None]:
    """Put the parameters and buffers of `module` back where loading a state dict, which runs inside, raises.

    Nothing is checked beforehand, since hooks may still change the state dict: instead a copy of the state is kept.

    Args:
        module: that is loaded into.
        assign: of `load_state_dict`. It writes into no tensor, so that no copy is needed.
    """
    holders = [holder for each in module.modules() for holder in (each._parameters, each._buffers)]
    held = [dict(holder) for holder in holders]
    tensors = {id(x): x for entries in held for x in entries.values() if x is not None and not is_lazy(x)}
    before = {key: x.detach() if assign else x.detach().clone() for key, x in tensors.items()}
    try:
        yield
    except BaseException:
        for holder, entries in zip(holders, held, strict=True):
            holder.update(entries)  # type: ignore[arg-type]
        for key, x in tensors.items():
            _put_back(x, before[key], assign)
        raise


@torch.no_grad()
def _put_back(x: Tensor, before: Tensor, assign: bool) -> None:
    if not assign:
        x.copy_(before)
    elif torch.__future__.get_swap_module_params_on_conversion():
        parameter = isinstance(x, nn.Parameter)
        torch.utils.swap_tensors(x, nn.Parameter(before, requires_grad=x.requires_grad) if parameter else before)
