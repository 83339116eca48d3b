"""Training beside the reference: steps, saved memory, recomputation, autocast, compilation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from torch import nn

from benchmarks.measuring.counting import held_bytes, saved_bytes
from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, reference

LARGE = {"input_size": (64, 64), "depth": 2}


def train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_trains_to_the_same_parameters(recompute: bool) -> None:
    config = SMALL["uneven pooling"]
    expected, model = pair(config)
    model.set_grad_checkpointing(recompute)
    x, labels = spectrograms(config, batch=6), torch.arange(6)
    wanted, losses = train(expected, x, labels, 20), train(model, x, labels, 20)
    assert losses == pytest.approx(wanted, rel=1e-9)
    assert wanted[-1] < 0.5 * wanted[0]
    for (key, result), parameter in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert relative_error(result, parameter) < 1e-8, key


def test_optimizer_state_of_the_original_fits() -> None:
    config = SMALL["square"]
    expected, model = pair(config)
    x, labels = spectrograms(config, batch=4), torch.arange(4)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-2) for module in (expected, model)]
    nn.functional.cross_entropy(expected(x), labels).backward()
    optimizers[0].step()
    model.load_state_dict(expected.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for module, optimizer in zip((expected, model), optimizers, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
    for result, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert relative_error(result, wanted) < 1e-9


@pytest.mark.parametrize("formulation", ["direct", "merged", "low-rank", "class-only"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputation_gives_the_same_bits(dropout: float, formulation: str) -> None:
    config = {**SMALL["many channels"], "dropout_tr": dropout}
    _, model = pair(config, torch.float32, formulation=formulation)
    x = spectrograms(config, batch=3, dtype=torch.float32)
    results = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(5)
        results.append(gradients(model, x))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_memory_kept_for_the_backward_pass() -> None:
    """What hooks on saved tensors see, and what is really alive: the second sees checkpoints' inputs too."""
    x = torch.randn(1, 1, 64, 64)
    expected, model = reference.SepTr(**LARGE), SepTr(**LARGE)
    written = saved_bytes(expected, x)
    assert saved_bytes(model, x) < 0.6 * written
    held = held_bytes(expected, x)
    assert held == pytest.approx(written, rel=0.02)
    assert held_bytes(model, x) < 0.6 * held
    model.set_grad_checkpointing()
    assert saved_bytes(model, x) < 0.1 * written
    assert held_bytes(model, x) < 0.1 * held


def test_counting_sees_what_is_kept() -> None:
    layer = nn.Linear(10, 20)
    x = torch.randn(30, 10)
    assert saved_bytes(nn.Sequential(layer, nn.GELU()), x) == 4 * (300 + 600)
    assert held_bytes(nn.Sequential(layer, nn.GELU()), x) == 4 * (600 + 600)


def test_frozen_parameters_get_no_gradient() -> None:
    config = SMALL["wide"]
    expected, model = pair(config)
    for module in (expected, model):
        module.requires_grad_(False)
        module.fc.requires_grad_()
        module(spectrograms(config, batch=2)).sum().backward()
    for (key, result), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (result.grad is None) == (wanted.grad is None), key


def test_new_head() -> None:
    config = SMALL["wide"]
    expected, model = pair(config)
    expected.fc = nn.Identity()
    model.fc = nn.Identity()
    x = spectrograms(config, batch=2)
    assert relative_error(model(x), expected(x)) < 1e-12


def test_autocast_leaves_the_parameters_alone() -> None:
    _, model = pair(SMALL["square"], torch.float32)
    x = spectrograms(SMALL["square"], batch=2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_autocast_kept_weights_follow_the_dtype() -> None:
    _, model = pair(SMALL["square"], torch.float32)
    x = spectrograms(SMALL["square"], batch=2, dtype=torch.float32)
    with torch.no_grad():
        single = model.eval()(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        assert torch.equal(model(x), single)
    assert 0 < relative_error(half, single) < 0.1


def test_deterministic() -> None:
    _, model = pair({"input_size": (20, 24), "depth": 2}, torch.float32)
    x = torch.randn(2, 1, 20, 24)
    first, second = gradients(model, x), gradients(model, x)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_compiled_without_a_graph_break() -> None:
    """Every formulation; those that are planned come first and last."""
    expected, model = pair({**SMALL["uneven pooling"], "depth": 2}, formulation=[None, "merged", "direct", None])
    formulations = [step.formulation for step in model.plan().steps]
    assert formulations == ["low-rank", "merged", "direct", "class-only"]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = spectrograms(SMALL["uneven pooling"], batch=2)
    wanted = gradients(expected, x)
    assert worst(gradients(compiled_as(model, compiled), x), wanted)[0] < 1e-11
    with torch.no_grad():
        assert relative_error(compiled(x), wanted["logits"]) < 1e-12
        model.transformer[0].transformer_h.layers[0][0].norm.weight.mul_(2)
        assert relative_error(compiled(x), model(x)) < 1e-12


def compiled_as(model: nn.Module, compiled: nn.Module) -> nn.Module:
    """The compiled module under the parameter names of `model`."""

    class Named(nn.Module):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            return model.named_parameters(*args, **kwargs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return compiled(x)

    return Named()
