"""Stored results of the original: read, rebuilt, compared with."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.compare import relative_error
from torch import nn

GOLDENS = Path(__file__).parents[1] / "goldens"


MODELS = sorted(path.stem for path in GOLDENS.glob("model_*.npz"))


BLOCKS = sorted(path.stem for path in GOLDENS.glob("block_*.npz"))


def hashed(key: str, shape: tuple[int, ...], scale: float, seed: int) -> torch.Tensor:
    """The repeatable tensor that `goldens/README.md` defines, in float32."""
    x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761)
    x += np.uint32(zlib.crc32(f"{seed}/{key}".encode()))
    for shift, factor in ((16, 0x85EBCA6B), (16, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(15)
    return torch.from_numpy(np.float32((x / 2**31 - 1) * scale)).reshape(shape)


def rebuilt(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The golden value of the parameter `key`."""
    if key.endswith("norm.weight"):
        return 1 + hashed(key, shape, 0.25, seed)
    if key.endswith("weight"):
        return hashed(key, shape, math.sqrt(3 / shape[-1]), seed)
    return hashed(key, shape, 0.2 if key.endswith("bias") else 1.0, seed)


def load(name: str) -> tuple[Any, dict[str, Any], int, int]:
    stored = np.load(GOLDENS / f"{name}.npz")
    config = json.loads(str(stored["config"]))
    return stored, config, config.pop("batch"), config.pop("seed")


def with_golden_weights(module: nn.Module, seed: int, dtype: torch.dtype) -> nn.Module:
    state = {key: rebuilt(key, tuple(value.shape), seed) for key, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module.to(dtype)


def limit(stored: np.ndarray, dtype: torch.dtype) -> float:
    """1e-5 in float32; in float64 1e-10 against values stored in float64 and 1e-6 against float32."""
    if dtype == torch.float32:
        return 1e-5
    return 1e-10 if stored.dtype == np.float64 else 1e-6


def assert_close(result: torch.Tensor, stored: np.ndarray, dtype: torch.dtype, name: str) -> None:
    error = relative_error(result, torch.from_numpy(np.asarray(stored)))
    assert error <= limit(np.asarray(stored), dtype), f"{name}: relative error {error:.2e}"


def compare_summaries(model: nn.Module, x: torch.Tensor, stored: Any, seed: int, dtype: torch.dtype) -> None:
    """Gradients of the large models: norms, and products with known directions."""
    norms, products = json.loads(str(stored["gradnorm"])), json.loads(str(stored["graddot"]))
    assert norms.keys() == products.keys() == dict(model.named_parameters()).keys()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for key, parameter in model.named_parameters():
        gradient = parameter.grad.double()
        probe = hashed(f"probe/{key}", tuple(gradient.shape), 1.0, seed).double()
        assert gradient.norm().item() == pytest.approx(norms[key], rel=tolerance), key
        bound = tolerance * norms[key] * probe.norm().item()
        assert abs((gradient * probe).sum().item() - products[key]) <= bound, key
    assert x.grad.double().norm().item() == pytest.approx(float(stored["inputgradnorm"]), rel=tolerance)
