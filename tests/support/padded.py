"""A padded sample computed as the spectrogram that it would be alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from septr_fast import SepTr, reference


def cropped(model: reference.SepTr, length: int, axis: str, pool: tuple[int, int]) -> dict[str, Tensor]:
    """Parameters of a model for spectrograms cut to `length` pixels along `axis`."""
    letter, tokens = axis[0], length // pool[axis == "width"]
    return {
        key: value[:, :, : 1 + tokens] if key.endswith(f"pos_embedding_{letter}") else value
        for key, value in model.state_dict(keep_vars=True).items()
    }


def alone(config: dict[str, Any], model: SepTr, x: Tensor, length: int, axis: str) -> Tensor:
    """Logits of the reference for one sample cut to `length`; gradients reach `model`."""
    plain = {key: value for key, value in config.items() if key not in ("formulation", "backend")}
    size = list(config["input_size"])
    size[axis == "width"] = length
    pool = config.get("down_sample_input", (1, 1))
    cut = reference.SepTr(**{**plain, "input_size": tuple(size)}).to(x.dtype)
    part = x[..., :length] if axis == "width" else x[..., :length, :]
    return torch.func.functional_call(cut, cropped(model, length, axis, pool), (part,))
