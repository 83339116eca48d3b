"""Products of tokens with a weight, by the faster of the kernels that PyTorch carries."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

_HAS_ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias`, as `torch.nn.functional.linear`.

    In evaluation in float32 on an x86 processor the product runs on oneDNN, which PyTorch reaches by a
    convolution of width 1; its `linear` takes MKL, which was slower on the processor measured (by 11 % of
    the default model's time on an AMD EPYC). With gradients the two were alike.

    Args:
        x: `(..., in)`.
        weight: `(out, in)`.
        bias: `(out,)` or None.

    Returns:
        `(..., out)`.
    """
    if not _runs_on_onednn(x):
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    product = F.conv2d(image, weight[:, :, None, None], bias)
    return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _runs_on_onednn(x: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
    )
