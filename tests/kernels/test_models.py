"""Models on Triton operators: results, gradients, autocast, memory, work, compilation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from septr_fast.kernels import launch
from support.judging import farther
from support.kernels.pass_cases import TILES
from support.tolerance import assert_all_as_good

from benchmarks.measuring.counting import saved_bytes
from benchmarks.suite.shapes import IN_USE, SMALL
from septr_fast import SepTr, reference

TINY: dict[str, Any] = {
    "input_size": (3, 5),
    "num_classes": 4,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 16,
    "dim": 16,
}
MODELS_COMPARED: dict[str, tuple[dict[str, Any], str | None, torch.dtype]] = {
    "tall, float32": (SMALL["tall"], None, torch.float32),
    "one row, bfloat16": (SMALL["one row"], None, torch.bfloat16),
    "wide heads, bfloat16": ({**SMALL["wide heads"], "input_size": (2, 5)}, None, torch.bfloat16),
    "pooled, float16": ({**SMALL["uneven pooling"], "input_size": (8, 9), "depth": 1}, None, torch.float16),
    "direct, bfloat16": ({**TINY, "depth": 1, "first_axis": "width"}, "direct", torch.bfloat16),
    "merged, float32": ({**TINY, "depth": 1, "first_axis": "width"}, "merged", torch.float32),
}


@pytest.fixture(autouse=True)
def _small_tiles() -> Iterator[None]:
    with launch.override(TILES):
        yield


def triton_model(
    config: dict[str, Any], device: torch.device, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, SepTr, Tensor]:
    """The reference, a model on Triton with the same parameters, and spectrograms."""
    expected, model = pair(config, torch.float32, backend="triton", **options)
    return expected.to(device, dtype), model.to(device, dtype), spectrograms(config, 2, torch.float32).to(device, dtype)


def assert_same(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert results.keys() == expected.keys()
    assert [name for name in results if not torch.equal(results[name], expected[name])] == []


def assert_as_good_as_either(
    results: dict[str, Tensor], plain: list[dict[str, Tensor]], oracle: dict[str, Tensor]
) -> None:
    """`assert_all_as_good`, against that model in plain PyTorch which is farther from float64, tensor by tensor.

    A rounding in an early transformer reaches all values of a later one, so that a tensor's mean error is
    nearer to one draw than to a mean: one plain model may fall short of another by a fifth.
    """
    assert_all_as_good(results, farther(plain, oracle), oracle)


@pytest.mark.parametrize(("config", "formulation", "dtype"), MODELS_COMPARED.values(), ids=MODELS_COMPARED)
def test_as_good_as_plain(
    config: dict[str, Any], formulation: str | None, dtype: torch.dtype, device: torch.device
) -> None:
    expected, model, x = triton_model(config, device, dtype, formulation=formulation)
    plain = SepTr(**config, formulation=formulation, backend="torch").to(device, dtype)
    plain.load_state_dict(model.state_dict())
    oracle = gradients(copy.deepcopy(expected).double(), x.double())
    assert_as_good_as_either(gradients(model, x), [gradients(expected, x), gradients(plain, x)], oracle)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(dtype: torch.dtype, device: torch.device) -> None:
    config = {**TINY, "depth": 1, "num_classes": 160}
    expected, model, x = triton_model(config, device)
    plain = SepTr(**config, backend="torch").to(device)
    plain.load_state_dict(model.state_dict())
    with torch.autocast(device.type, dtype):
        results, *others = (gradients(module, x) for module in (model, expected, plain))
    assert results["logits"].dtype == dtype
    assert all(x.dtype == torch.float32 for name, x in results.items() if name != "logits")
    assert_as_good_as_either(results, others, gradients(copy.deepcopy(expected).double(), x.double()))


def test_evaluation_and_recomputation_give_the_same_bits(device: torch.device) -> None:
    """In evaluation a CPU's classifier takes a sample at a time."""
    _, model, x = triton_model({**TINY, "input_size": (2, 3), "return_cls": True}, device)
    logits, cls_token = model(x)
    model.return_cls = False
    wanted = gradients(model, x)
    assert torch.equal(wanted["logits"], logits)
    model.set_grad_checkpointing()
    assert_same(gradients(model, x), wanted)
    model.eval().return_cls = True
    if device.type == "cpu":
        logits = torch.cat([model.fc(one) for one in cls_token.split(1)])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found, found_token = model(x)
        assert torch.equal(found, logits)
        assert torch.equal(found_token, cls_token)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_run_where_they_are_asked_for(dtype: torch.dtype, device: torch.device) -> None:
    """On a CPU "auto" means PyTorch, even where there is an interpreter, and on a GPU the kernels in 16 bits alone."""
    _, model, x = triton_model({**TINY, "depth": 1}, device, dtype)
    state, on_a_gpu = model.state_dict(), device.type == "cuda" and dtype != torch.float32
    for backend, runs in (("triton", True), ("torch", False), ("auto", on_a_gpu)):
        other = SepTr(**{**TINY, "depth": 1}, backend=backend).to(device, dtype)
        other.load_state_dict(state)
        with launch.capture("low_rank_fwd", "class_attention_fwd") as found, torch.no_grad():
            other(x)
        assert bool(found.launches) == runs
        assert list(other.state_dict()) == list(reference.SepTr(**{**TINY, "depth": 1}).state_dict())


def test_what_kernels_cannot_do_is_said(device: torch.device) -> None:
    _, model, x = triton_model(TINY, device, torch.float64)
    with pytest.raises(RuntimeError, match=r'backend="triton" cannot run here: .* not in float64'):
        model(x)
    _, model, x = triton_model({**TINY, "dropout_tr": 0.1}, device)
    with pytest.raises(RuntimeError, match=r'backend="triton" cannot run here: Triton kernels have no dropout'):
        model(x)
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 4)


def test_memory_kept_for_the_backward_pass() -> None:
    """At most 18 MB for each transformer of a spectrogram of 128 x 128 in bfloat16; what more samples add."""
    with torch.device("meta"):
        model = SepTr(backend="triton").bfloat16()
        one, three = (saved_bytes(model, torch.empty(batch, 1, 128, 128).bfloat16()) for batch in (1, 3))
    transformers = len(model.plan().steps)
    tokens = 128 * 128 * 256 * 2
    assert (three - one) / 2 <= 18e6 * transformers
    assert (three - one) / 2 >= tokens * (2 * transformers - 2)


@pytest.mark.parametrize("name", IN_USE)
def test_work_of_models_in_use(name: str) -> None:
    """That of the plan, with the class token projected once a sample and, where it alone is read, its own key left out.

    The kernel compares the class token with itself without a product of tiles.
    """
    batch = 3
    with torch.device("meta"):
        model = SepTr(**IN_USE[name], backend="triton")
        block = model.blocks[0]
        x = torch.empty(batch, block.channels, *block.input_size)
        model(x)  # A counter knows the operators that were imported when it was made.
        with FlopCounterMode(display=False) as counter:
            model(x)
    plan = model.plan()
    saved = 0
    for step in plan.steps:
        shape = step.shape
        features = {"merged": shape.heads * shape.dim, "direct": 3 * shape.heads * shape.dim_head}
        saved += 2 * batch * (shape.rows - 1) * shape.dim * features.get(step.formulation, 0)
        if step.formulation == "class-only":
            saved += 2 * batch * shape.heads * shape.dim
    assert counter.get_total_flops() == plan.flops(batch) - saved


def test_compiled_without_a_graph_break(device: torch.device) -> None:
    """One graph for all batch sizes, forward and backward."""
    config = {**TINY, "input_size": (2, 3)}
    _, model, x = triton_model(config, device, formulation=[None, "merged", "direct", None])
    compilations = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal compilations
        compilations += 1
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=count)
    for batch in (2, 3):
        x = spectrograms(config, batch, torch.float32).to(device)
        torch._dynamo.mark_dynamic(x, 0)
        wanted = model(x)
        logits = compiled(x)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-6)
        found = [torch.autograd.grad(y.sin().sum(), list(model.parameters())) for y in (logits, wanted)]
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(*found, strict=True))
    assert compilations == 1


def test_exported(device: torch.device) -> None:
    _, model, x = triton_model({**TINY, "depth": 1}, device)
    with torch.no_grad():
        program = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        for batch in (1, 3):
            x = spectrograms(TINY, batch, torch.float32).to(device)
            torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)
