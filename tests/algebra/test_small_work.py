"""Little work on a CPU: transformers for which folding would not pay run as written, as the reference does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from support.folding import SHIPPED
from support.goldens import MODELS, assert_close, hashed, load, with_golden_weights
from torch import Tensor, nn

from septr_fast import SepTr, reference
from septr_fast.algebra import plan
from septr_fast.algebra.plan import WRITTEN, Step, TransformerShape, choose, row_values
from septr_fast.block import SepTrBlock
from septr_fast.passes.torch import chunks, passes

TINY: dict[str, Any] = {
    "channels": 1, "input_size": (16, 24), "num_classes": 5, "depth": 2, "heads": 2, "mlp_dim": 16, "dim_head": 16,
    "dim": 16,
}  # fmt: skip
ALWAYS = 10**15


@pytest.fixture(autouse=True)
def weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it."""
    monkeypatch.setattr(plan, "OVERHEAD_FLOP", SHIPPED)


def formulations(call: Callable[..., Any], *given: Any, **named: Any) -> list[str]:
    """What each transformer runs as in a call."""
    ran: list[str] = []
    possible = SepTrBlock.possible

    def noting(block: SepTrBlock, steps: Any) -> Any:
        found = possible(block, steps)
        ran.extend(step.formulation for step in found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SepTrBlock, "possible", noting)
        call(*given, **named)
    return ran


def pair(**changes: Any) -> tuple[SepTr, reference.SepTr]:
    """A model and the reference with the same weights."""
    config = {**TINY, **changes}
    own = {name: config.pop(name) for name in ("backend", "formulation") if name in config}
    model, plain = SepTr(**config, **own), reference.SepTr(**config)
    plain.load_state_dict(model.state_dict())
    return model, plain


def test_a_small_model_runs_as_written_and_a_large_batch_folded() -> None:
    model, _ = pair()
    assert formulations(model, torch.randn(1, 1, 16, 24)) == 4 * [WRITTEN]
    with torch.no_grad():
        assert formulations(model, torch.randn(1, 1, 16, 24)) == 4 * [WRITTEN]
        ran = formulations(model, torch.randn(200, 1, 16, 24))
    assert ran == ["low-rank", "merged", "merged", "class-only"]


def test_each_transformer_weighs_for_itself() -> None:
    """Folding a wide low-rank transformer costs little, merging its weights at every training step much."""
    model = SepTr(input_size=(64, 64), down_sample_input=(8, 8))
    ran = formulations(model, torch.randn(1, 1, 64, 64))
    assert ran[0] == "low-rank"
    assert ran[1] == WRITTEN
    with torch.no_grad():
        assert WRITTEN not in formulations(model, torch.randn(4, 1, 64, 64))


def test_the_default_model_folds_every_transformer_always() -> None:
    with torch.device("meta"):
        steps = SepTr().plan().steps
    assert {step.least_batches for step in steps} == {(1, 1)}


def test_samples_that_are_computed_alone_are_folded_alone() -> None:
    """Without gradients their bits depend on no batch."""
    assert plan.ALONE_VALUES * torch.float64.itemsize == chunks.LEAST_ALONE_BYTES
    sizes = product((4, 64, 1024), (16, 256), (8, 1024), (1, 8), (4, 512), (4, 1024), (None, 1), (False, True))
    large = 0
    for sizes_of_one in sizes:
        shape = TransformerShape("width", *sizes_of_one)
        step = Step("", shape, choose(shape))
        if shape.rows * row_values(shape, step.formulation) >= plan.ALONE_VALUES:
            large += 1
            assert step.least_batches[0] == 1
    assert large > 100


def test_what_is_written_anyway_asks_for_no_batch() -> None:
    """A plan in which a layer keeps every transformer from being folded names none."""
    model, _ = pair(depth=1)
    for _, transformer, _ in model.blocks[0]._order():
        transformer.sublayers[1].fn.net[1] = nn.ReLU()
    assert {step.least_batches for step in model.plan().steps} == {(1, 1)}
    assert "on a CPU" not in str(model.plan())


@pytest.mark.parametrize("formulation", [None, "direct", "merged"])
def test_values_are_those_that_chunks_are_cut_by(formulation: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []
    chunked = chunks.chunked

    def noting(rows: Tensor, bytes_per_row: int, *others: Tensor) -> Any:
        cut.append(bytes_per_row)
        return chunked(rows, bytes_per_row, *others)

    monkeypatch.setattr(passes, "chunked", noting)
    model = SepTr(**TINY, formulation=formulation, backend="torch")
    with torch.no_grad():
        model(torch.randn(1, 1, 16, 24))
    steps = model.plan().steps
    assert cut == [4 * row_values(step.shape, step.formulation) for step in steps]


ASKED = {
    "a backend": {"backend": "torch"},
    "a formulation": {"formulation": "merged"},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_what_is_asked_for_runs(asked: dict[str, Any]) -> None:
    model, _ = pair(**asked)
    assert WRITTEN not in formulations(model, torch.randn(1, 1, 16, 24))


def test_little_memory_and_lengths_are_folded() -> None:
    model, _ = pair()
    x = torch.randn(1, 1, 16, 24)
    assert WRITTEN not in formulations(model, x, lengths=[20])
    model.set_grad_checkpointing()
    assert WRITTEN not in formulations(model, x)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pooled": {"down_sample_input": (2, 3)},
    "one head of full width": {"heads": 1, "dim_head": 16},
    "width first": {"first_axis": "width"},
    "3 channels": {"channels": 3},
    "one block": {"depth": 1},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_and_gradients_are_those_of_the_reference(config: dict[str, Any], batch: int) -> None:
    model, plain = (module.double() for module in pair(**config))
    x = torch.randn(batch, config.get("channels", 1), 16, 24, dtype=torch.float64)
    direction = torch.randn(batch, 5, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for module in (model, plain):
        entering = x.clone().requires_grad_()
        logits = module(entering)
        logits.backward(direction)
        found.append([logits, entering.grad, *(parameter.grad for parameter in module.parameters())])
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in MODELS if "gradnorm" not in load(name)[0].files])
def test_goldens_as_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transformer as written, whatever its size, gives the original's numbers."""
    monkeypatch.setattr(plan, "OVERHEAD_FLOP", ALWAYS)
    stored, config, batch, seed = load(name)
    model = with_golden_weights(SepTr(**config), seed, torch.float64)
    size = reference.size_pair(config.get("input_size", (128, 128)), "input_size")
    x = hashed("input", (batch, config.get("channels", 1), *size), 1.7, seed).double().requires_grad_()
    assert set(formulations(model, x)) == {WRITTEN}
    logits = model(x)
    nn.functional.cross_entropy(logits, torch.from_numpy(stored["labels"])).backward()
    assert_close(logits, stored["logits"], torch.float64, "logits")
    assert_close(x.grad, stored["grad/input"], torch.float64, "input")
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, stored[f"grad/{key}"], torch.float64, key)


def test_dropout_is_drawn_as_the_reference_draws_it() -> None:
    model, plain = pair(dropout_tr=0.3)
    x = torch.randn(2, 1, 16, 24)
    results = []
    for module in (model, plain):
        torch.manual_seed(7)
        results.append(module(x))
    torch.testing.assert_close(*results)


def test_autocast_is_that_of_the_reference() -> None:
    model, plain = pair()
    x = torch.randn(2, 1, 16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        own, wanted = model(x), plain(x)
    assert own.dtype == wanted.dtype
    torch.testing.assert_close(own, wanted, rtol=0.02, atol=0.02)


def test_changed_layers_and_hooks_are_seen() -> None:
    model, plain = pair()
    x, seen = torch.randn(1, 1, 16, 24), list[nn.Module]()
    for module in (model, plain):
        layer = module.transformer[0].transformer_h.sublayers[0].fn
        layer.to_qkv.register_forward_hook(lambda module, args, out: seen.append(module))
        torch.manual_seed(1)
        layer.to_qkv.bias = nn.Parameter(torch.randn(96))
    torch.testing.assert_close(model(x), plain(x))
    assert len(seen) == 2
    with torch.no_grad():
        for module in (model, plain):
            module.transformer[1].transformer_w.sublayers[1].norm.weight.data.fill_(2)
        torch.testing.assert_close(model(x), plain(x))


def test_the_plan_says_from_how_many_samples_on_all_is_folded() -> None:
    model, _ = pair()
    evaluates, trains = (max(step.least_batches[place] for step in model.plan().steps) for place in (0, 1))
    assert evaluates > 1
    line = f"on a CPU all transformers run so from {evaluates} spectrograms at a time, {trains} in training"
    assert line in str(model.plan())
    assert "on a CPU" not in str(pair(backend="torch")[0].plan())


def test_a_graph_is_made_of_what_is_folded() -> None:
    """It may serve other batches."""
    model, _ = pair()
    with torch.no_grad():
        ran = formulations(torch.jit.trace, model, torch.randn(1, 1, 16, 24), check_trace=False)
    assert ran
    assert WRITTEN not in ran
