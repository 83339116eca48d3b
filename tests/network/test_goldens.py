"""Logits, gradients and initialization against the stored results of the original."""

from __future__ import annotations

import json

import pytest
import torch
from support.goldens import (
    BLOCKS,
    GOLDENS,
    MODELS,
    assert_close,
    compare_summaries,
    hashed,
    load,
    with_golden_weights,
)
from torch import nn

from septr_fast import SepTr, SepTrBlock, reference

RUNS = [
    pytest.param(SepTr, torch.float64, False, id="SepTr-float64"),
    pytest.param(SepTr, torch.float32, False, id="SepTr-float32"),
    pytest.param(SepTr, torch.float64, True, id="SepTr-float64-recomputed"),
    pytest.param(reference.SepTr, torch.float64, False, id="reference-float64"),
]
LARGE = {"SepTr": ("model_default",), "reference": ("model_default", "model_default_ds2")}
"""They take a core half a minute or minutes in float64: with `--long`; recomputed as in the reference."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "dtype", "recompute"), RUNS)
def test_model(
    name: str, kind: type[nn.Module], dtype: torch.dtype, recompute: bool, request: pytest.FixtureRequest
) -> None:
    large = LARGE["reference" if kind is reference.SepTr or recompute else "SepTr"]
    if name in large and dtype == torch.float64 and not request.config.getoption("--long"):
        pytest.skip("takes a core up to minutes: --long")
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
