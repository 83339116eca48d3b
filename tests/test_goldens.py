"""Logits, gradients and initialization against the stored results of the original."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import relative_error
from torch import nn

from septr_fast import SepTr, SepTrBlock, reference

GOLDENS = Path(__file__).parent / "goldens"
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


RUNS = [
    pytest.param(SepTr, torch.float64, False, id="SepTr-float64"),
    pytest.param(SepTr, torch.float32, False, id="SepTr-float32"),
    pytest.param(SepTr, torch.float64, True, id="SepTr-float64-recomputed"),
    pytest.param(reference.SepTr, torch.float64, False, id="reference-float64"),
]
LARGE = "model_default"
"""Recomputed, and for the reference, it takes a core minutes in float64: with `--long`."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "dtype", "recompute"), RUNS)
def test_model(
    name: str, kind: type[nn.Module], dtype: torch.dtype, recompute: bool, request: pytest.FixtureRequest
) -> None:
    if name == LARGE and (recompute or kind is reference.SepTr) and not request.config.getoption("--long"):
        pytest.skip("takes a core minutes: --long")
    stored, config, batch, seed = load(name)
    model = with_golden_weights(kind(**config), seed, dtype)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == dict(json.loads(str(stored["keys"])))
    if recompute:
        model.set_grad_checkpointing()
    size = reference.size_pair(config.get("input_size", (128, 128)), "input_size")
    x = hashed("input", (batch, config.get("channels", 1), *size), 1.7, seed).to(dtype).requires_grad_()
    labels = (torch.arange(batch) * 7 + seed) % model.fc.out_features
    assert labels.tolist() == stored["labels"].tolist()
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    assert_close(logits, stored["logits"], dtype, "logits")
    assert_close(loss, stored["loss"], dtype, "loss")
    if "gradnorm" in stored.files:
        compare_summaries(model, x, stored, seed, dtype)
    else:
        assert_close(x.grad, stored["grad/input"], dtype, "input")
        for key, parameter in model.named_parameters():
            assert_close(parameter.grad, stored[f"grad/{key}"], dtype, key)


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


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", [SepTrBlock, reference.SepTrBlock], ids=["SepTrBlock", "reference"])
def test_block(name: str, dtype: torch.dtype, kind: type[nn.Module]) -> None:
    stored, config, _, seed = load(name)
    block = with_golden_weights(kind(**config), seed, dtype)
    x, cls_token = (torch.from_numpy(stored[key]).to(dtype).requires_grad_() for key in ("input", "cls_token"))
    out_x, out_cls = block(x, cls_token)
    assert_close(out_x, stored["out_x"], dtype, "out_x")
    assert_close(out_cls, stored["out_cls"], dtype, "out_cls")
    directions = [torch.from_numpy(stored[key]).to(dtype) for key in ("grad_out_x", "grad_out_cls")]
    torch.autograd.backward([out_x, out_cls], directions)
    assert_close(x.grad, stored["grad/input"], dtype, "input")
    assert_close(cls_token.grad, stored["grad/cls_token"], dtype, "cls_token")
    for key, parameter in block.named_parameters():
        assert_close(parameter.grad, stored[f"grad/{key}"], dtype, key)


@pytest.mark.parametrize("kind", [SepTr, reference.SepTr], ids=["SepTr", "reference"])
def test_initialization(kind: type[nn.Module]) -> None:
    stored = json.loads((GOLDENS / "initialization.json").read_text())
    torch.manual_seed(stored["seed"])
    model = kind(**stored["config"])
    assert [key for key, _ in model.named_parameters()] == [entry["key"] for entry in stored["parameters"]]
    for entry, (key, parameter) in zip(stored["parameters"], model.named_parameters(), strict=True):
        assert list(parameter.shape) == entry["shape"], key
        # A processor's sines and logarithms differ in the last bits, and with them the numbers drawn.
        roundings = 4 * torch.finfo(torch.float32).eps * parameter.double().abs().sum().item()
        assert parameter.double().sum().item() == pytest.approx(entry["sum"], abs=roundings), key
        assert parameter.flatten()[0].item() == pytest.approx(entry["first"], rel=1e-6, abs=1e-6), key
