"""Training steps whose chunks have graphs of their own: the same gradients, however they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from support.versions import needs_torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring.memory import memory
from benchmarks.suite.shapes import SMALL
from septr_fast.passes.torch import chunks, cores, joined, shared_training

CONFIG = {**SMALL["wide heads"], "input_size": (6, 9), "channels": 3}
FORMULATIONS = [None, "direct"]

pytestmark = [
    pytest.mark.skipif(
        not torch.backends.openmp.is_available(), reason="this PyTorch has no OpenMP: chunks are not shared"
    ),
    needs_torch("2.8", "cores that take chunks of their own in a training step's direct and low-rank passes"),
]


@pytest.fixture(autouse=True)
def _chunks_of_one_row(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for name in ("LEAST_SHARED_BYTES", "LEAST_CHUNK_BYTES", "CPU_CHUNK_BYTES", "CPU_TRAINING_CHUNK_BYTES"):
        monkeypatch.setattr(chunks, name, 1)
    monkeypatch.setattr(cores, "_quota", lambda: cores.MOST)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every pass that the cores share, how many chunks it has."""
    found: list[int] = []
    run = shared_training.run

    def noting(transform: Any, operands: Any, taken: chunks.Chunks, in_turn: Any) -> Any:
        assert taken.size is not None
        found.append(len(chunks.places(taken.rows, taken.size)))
        return run(transform, operands, taken, in_turn)

    monkeypatch.setattr(shared_training, "run", noting)
    return found


def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_training, "serves", lambda *_: False)


def of(result: Tensor, model: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(result.sin().sum(), [x, *model.parameters()], **options))


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_gradients_are_the_reference_s(
    formulation: str | None, recompute: bool, padded: bool, shared: list[int]
) -> None:
    expected, model = pair(CONFIG, formulation=formulation)
    model.set_grad_checkpointing(recompute)
    x = spectrograms(CONFIG, batch=3).requires_grad_()
    if padded:
        found = of(model(x, [9, 4, 9]), model, x)
        parts = torch.cat([expected(x[[0, 2]]), cut(expected, 4)(x[1:2, ..., :4])])[[0, 2, 1]]
        assert all(relative_error(one, two) < 1e-10 for one, two in zip(found, of(parts, expected, x), strict=True))
    else:
        assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10
    assert shared
    assert min(shared) >= 6


def cut(model: Any, width: int) -> Any:
    """`model` for spectrograms of `width`, its positions the first ones of the same Parameters."""

    def forward(x: Tensor) -> Tensor:
        tables = {
            name: table[:, :, : 1 + width] for name, table in model.named_parameters() if name.endswith("embedding_w")
        }
        sizes = [block.input_size for block in model.transformer]
        for block in model.transformer:
            block.input_size = (block.input_size[0], width)
        try:
            result: Tensor = torch.func.functional_call(model, tables, (x,))
        finally:
            for block, size in zip(model.transformer, sizes, strict=True):
                block.input_size = size
        return result

    return forward


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_same_bits_again_and_from_a_graph_that_is_retained(formulation: str | None, shared: list[int]) -> None:
    _, model = pair(CONFIG, torch.float32, formulation=formulation)
    x = spectrograms(CONFIG, 3, torch.float32).requires_grad_()
    result = model(x)
    runs = [of(result, model, x, retain_graph=True), of(result, model, x), *(of(model(x), model, x) for _ in range(4))]
    assert all(torch.equal(one, two) for run in runs[1:] for one, two in zip(run, runs[0], strict=True))
    assert shared
    with pytest.raises(RuntimeError, match="second time"):
        of(result, model, x)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_second_derivatives(formulation: str | None, shared: list[int]) -> None:
    expected, model = pair(CONFIG, formulation=formulation)

    x = spectrograms(CONFIG, batch=2).requires_grad_()

    def twice(model: nn.Module) -> list[Tensor]:
        slopes = of(model(x), model, x, create_graph=True)
        return list(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), [x, *model.parameters()]))

    for one, other in zip(twice(model), twice(expected), strict=True):
        assert (one - other).abs().max() < 1e-9 * (1 + other.abs().max())
    assert shared


def test_frozen_weights_get_no_gradient(shared: list[int]) -> None:
    expected, model = pair(CONFIG)
    for either in (expected, model):
        either.requires_grad_(False)
        either.transformer[0].pos_embedding_h.requires_grad_()
    x = spectrograms(CONFIG, batch=3)
    for either in (expected, model):
        either(x).sin().sum().backward()
    found, wanted = (either.transformer[0].pos_embedding_h.grad for either in (model, expected))
    assert relative_error(found, wanted) < 1e-10
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert shared


@pytest.mark.parametrize("way", ["saved on the CPU", "checkpoint"])
def test_who_takes_over_what_is_saved_sees_every_tensor(way: str, shared: list[int]) -> None:
    expected, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=2).requires_grad_()
    seen: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x)
    with hooks if way == "saved on the CPU" else nullcontext():
        result = checkpoint(model, x, use_reentrant=False) if way == "checkpoint" else model(x)
    for one, other in zip(of(result, model, x), of(expected(x), expected, x), strict=True):
        assert relative_error(one, other) < 1e-10
    assert not shared
    assert way == "checkpoint" or len(seen) > 20


def test_dropout_is_drawn_in_turn(shared: list[int]) -> None:
    _, model = pair({**CONFIG, "dropout_tr": 0.5}, torch.float32)
    x = spectrograms(CONFIG, 2, torch.float32)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(gradients(model.train(), x))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not shared


def test_an_error_in_a_chunk_is_the_caller_s(monkeypatch: pytest.MonkeyPatch, shared: list[int]) -> None:
    _, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=3)
    result = model(x)

    def failing(*args: Any, **options: Any) -> None:
        raise ValueError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(torch.autograd, "grad", failing)
        with pytest.raises(ValueError, match="planted"):
            result.sum().backward()
    with monkeypatch.context() as planted:
        planted.setattr(joined.shared_training, "get_gradient_edge", failing)
        with pytest.raises(ValueError, match="planted"):
            model(x)
    model(x).sum().backward()
    assert shared


def test_a_parameter_changed_between_forward_and_backward_is_named(shared: list[int]) -> None:
    _, model = pair(CONFIG)
    result = model(spectrograms(CONFIG, batch=2))
    with torch.no_grad():
        model.transformer[0].transformer_h.sublayers[1].fn.net[3].weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        result.sum().backward()
    assert shared


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_what_is_kept_for_the_backward_pass(
    formulation: str | None, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than without sharing, but for what goes into such a pass, and its class tokens."""
    config = {**SMALL["wide heads"], "input_size": (8, 12)}
    _, model = pair(config, torch.float32, formulation=formulation)
    x = spectrograms(config, 2, torch.float32)
    model(x)
    passes = len(shared)
    ours = memory(lambda: model(x), x.device).kept
    in_turn(monkeypatch)
    model(x)
    pixels, grid, class_tokens = (4 * 2 * count for count in (8 * 12, 8 * 12 * config["dim"], 12 * config["dim"]))
    given = pixels if formulation is None else passes * grid
    assert passes == {None: 1, "direct": 4}[formulation]
    assert ours <= memory(lambda: model(x), x.device).kept + given + passes * class_tokens


def test_sums_over_chunks_are_in_float32(shared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast: as close to float64 as with sums by autograd, chunk after chunk."""
    expected, model = pair(CONFIG, torch.float32)
    x = spectrograms(CONFIG, 4, torch.float32)
    wanted = gradients(expected.double(), x.double())

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model, x)
        return worst({name: gradient.double() for name, gradient in found.items()}, wanted)[0]

    ours = error()
    assert shared
    in_turn(monkeypatch)
    assert ours < 1.1 * error() < 0.2
