"""Whether spectrograms and feature maps fit the module that they are given to, and what may be done with results."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from septr_fast.passes.observers import differentiates_forward, makes_graph, records

_WITHOUT_AUTOCAST = ("meta", "lazy", "vulkan")
"""Types of devices that PyTorch has no autocast for."""


def check_input(module: nn.Module, x: Tensor, channels: int, size: tuple[int, int]) -> None:
    """Raise an error that names what is wrong with the spectrograms or feature maps `x`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (batch, channels, height, width), got {type(x).__name__}")
    check_dense(x, "x")
    expected = f"(batch, {channels}, {size[0]}, {size[1]})"
    if x.dim() != 4:
        raise ValueError(f"x: expected {expected}, got {x.dim()} dimensions, {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"x: expected {channels} channels, {expected}, got {x.shape[1]}, {tuple(x.shape)}")
    if tuple(x.shape[2:]) != size:
        raise ValueError(f"x: expected input_size {size}, {expected}, got {tuple(x.shape[2:])}, {tuple(x.shape)}")
    check_placement(module, x, "x")


def check_dense(x: Tensor, name: str) -> None:
    """Raise `TypeError` for a sparse or nested tensor, or one of another library's layout."""
    if x.layout != torch.strided or x.is_nested:
        found = "a nested tensor" if x.is_nested else str(x.layout)
        raise TypeError(f"{name}: expected a dense tensor (torch.strided), got {found}")


def check_placement(module: nn.Module, x: Tensor, name: str) -> None:
    """Raise `TypeError` unless `x` and all parameters share a device, and a dtype where no autocast is on.

    Where a graph is made, one parameter stands for all: a compiler would follow the search for the others step by
    step, half of its time, and finds what does not fit itself.
    """
    found = [next(module.parameters())] if makes_graph() else tensors_below(module, buffers=False)
    places = {(parameter.device, parameter.dtype) for parameter in found}
    if len(places) > 1:
        several = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        raise TypeError(f"parameters: expected one dtype and device, got {several}")
    device, dtype = places.pop()
    if x.device != device:
        raise TypeError(f"{name}: expected a tensor on {device}, where the parameters are, got {x.device}")
    if x.dtype != dtype and not (autocasts(device.type) and x.is_floating_point()):
        raise TypeError(f"{name}: expected {dtype}, the dtype of the parameters, got {x.dtype}")


def float32_products() -> str:
    """How float32 products are computed, "ieee" or "tf32", as PyTorch is told to compute them on CUDA devices.

    It is told by `torch.set_float32_matmul_precision` or `torch.backends.cuda.matmul.allow_tf32`, which set
    `torch.backends.cuda.matmul.fp32_precision` too, or by that alone: then `torch.get_float32_matmul_precision` raises.
    Before PyTorch 2.9 there are the first two.
    """
    told = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if told is None:
        told = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if told == "tf32" else "ieee"


def tensors_below(module: nn.Module, *, buffers: bool = True) -> list[Tensor]:
    """Parameters, and `buffers`, of `module` and all below it, one as often as it is held.

    A replica that `nn.DataParallel` makes holds copies that are no parameters. `module.parameters()` knows none of
    them, and makes up names on the way, a fifth of the time of a small model.
    """
    found: list[Tensor | None] = []
    modules: list[nn.Module | None] = [module]
    for holder in modules:
        if holder is None:
            continue
        own = holder.__dict__
        found += (own.get("_former_parameters") or own["_parameters"]).values()
        if buffers:
            found += own["_buffers"].values()
        modules += own["_modules"].values()
    return [tensor for tensor in found if tensor is not None]


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for devices of `device_type`.

    `torch.amp.is_autocast_available` would tell which devices have none, but PyTorch 2.11 cannot compile it.
    """
    return device_type not in _WITHOUT_AUTOCAST and torch.is_autocast_enabled(device_type)


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether gradients can reach any of `tensors`."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def place(tensor: Tensor) -> Tensor | None:
    """`tensor`, which nobody needs any more, as the place of the next result; None where somebody may look at it.

    That is a derivative of any kind or a graph, and autocast, whose choice of a dtype knows no places.
    """
    looked_at = torch.is_grad_enabled() or records() or differentiates_forward() or autocasts(tensor.device.type)
    return tensor if tensor.is_contiguous() and not looked_at else None
