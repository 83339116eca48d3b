"""`axis_attention` as an operator: what it writes, compilation, counted work, errors, empty and huge tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.kernels.poison import guarded, poisoned_empty
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.axis_attention import ClassGradients, Operands, attend, attend_backward
from septr_fast.kernels.axis_attention_operator import axis_attention, axis_attention_backward
from support.kernels.attention_cases import (
    DIRECT,
    FORMS,
    KERNELS,
    MERGED,
    Form,
    Inputs,
    draw,
    grid_shape,
    output_gradients,
    plain_attention,
    step,
    tiles,
)
from support.kernels.interpreter import permuted_programs
from support.kernels.tracing import trace_accesses

EITHER = pytest.mark.parametrize("form", [MERGED, DIRECT], ids=["merged", "direct"])


@pytest.fixture
def interpreted(device: torch.device) -> None:
    """Skip where kernels are compiled."""
    if device.type == "cuda":
        pytest.skip("only the interpreter shows it")


def per_head(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(-1, (heads, -1))


def operands(inputs: Inputs, form: Form) -> Operands:
    """The operands of sequences along the width."""
    counts = (form.heads, form.key_heads, form.key_heads) * 2
    return Operands(*(None if x is None else per_head(x, n) for x, n in zip(inputs, counts, strict=True)))


def forward_and_backward(inputs: Inputs, form: Form, gradients: tuple[Tensor, Tensor]) -> list[Tensor]:
    """All results of both operators along the width."""
    results = axis_attention(*inputs, form.heads, "width")
    return [*results, *axis_attention_backward(*gradients, *inputs, *results[2:], form.heads, "width")]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("block_c", [16, 256], ids=["sliced", "whole"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_writes_every_value_once_and_nothing_else(form: Form, block_c: int) -> None:
    inputs = draw(form, (1, 2, 18), 20, "cpu", torch.float16)
    gradients = output_gradients(inputs, form.heads, "width")
    with launch.override(tiles(block_c=block_c)), poisoned_empty(), trace_accesses() as trace:
        results = forward_and_backward(inputs, form, gradients)
    trace.assert_clean()
    assert len(trace.launches) == 5
    assert not any(result.isnan().any() for result in results)


@EITHER
def test_writes_into_tensors_of_any_strides(form: Form, device: torch.device) -> None:
    inputs = draw(form, (2, 2, 9), 12, device)
    given = operands(inputs, form)
    shape, key_shape, length = given.query.shape, given.key.shape, given.query.shape[2]
    grads = tuple(per_head(x, form.heads) for x in output_gradients(inputs, form.heads, "width"))
    apart = {"strides": (2200, 1100, 3, 360, 30), "device": device}
    out, grad_query = guarded(shape, **apart), guarded(shape, **apart)
    grad_key = guarded(key_shape, **apart)
    grad_value = guarded(key_shape, **apart) if form.separate else None
    cls_out = guarded((2, 2, form.heads, 12), strides=(90, 45, 1, 3), device=device)
    parts = 2 * length * form.heads
    lse = guarded((2, 2, length, form.heads, 2), strides=(parts, 2 * parts, 1, length, parts // 2), device=device)
    cls_lse = guarded((2, 2, form.heads, 2), device=device)
    with launch.override(tiles()):
        attend(given, out.tensor, cls_out.tensor, lse.tensor, cls_lse.tensor)
        of_class = ClassGradients.empty(given, 4)
        attend_backward(
            given,
            lse.tensor,
            cls_lse.tensor,
            *grads,
            grad_query.tensor,
            grad_key.tensor,
            None if grad_value is None else grad_value.tensor,
            of_class,
        )
        expected = forward_and_backward(inputs, form, tuple(x.flatten(-2) for x in grads))
    written = [out, cls_out, lse, cls_lse, grad_query, grad_key, *([grad_value] if grad_value else [])]
    for each in written:
        each.check()
    found = [out.tensor.flatten(3), cls_out.tensor.flatten(2), lse.tensor.transpose(2, 3), cls_lse.tensor]
    found += [x.tensor.flatten(3) for x in written[4:]] + [x.flatten(1) for x in of_class.sums(2, 2) if x is not None]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("interpreted")
@EITHER
def test_same_bits_in_any_order_of_programs(form: Form) -> None:
    inputs = draw(form, (2, 2, 18), 16, "cpu")
    gradients = output_gradients(inputs, form.heads, "width")
    with launch.override(tiles()):
        expected = forward_and_backward(inputs, form, gradients)
        with permuted_programs(seed=0):
            again = forward_and_backward(inputs, form, gradients)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@EITHER
def test_same_bits_twice_from_inputs_that_stay_as_they_are(form: Form, device: torch.device) -> None:
    inputs = draw(form, (1, 2, 5), 16, device, torch.bfloat16)
    gradients = output_gradients(inputs, form.heads, "width")
    leaves, copies = (inputs.changed(lambda x: x.clone().requires_grad_()) for _ in range(2))
    with launch.override(tiles()):
        results = axis_attention(*leaves, form.heads, "width")
        kept = [x.detach().clone() for x in results]
        given = list(leaves.given().values())
        first, second = (torch.autograd.grad(results[:2], given, gradients, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(results, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given, copies.given().values(), strict=True))


def test_no_gradient_flows_through_the_log_sum_exp(device: torch.device) -> None:
    inputs = draw(MERGED, (1, 2, 3), 16, device).changed(Tensor.requires_grad_)
    with launch.override(tiles()):
        results = axis_attention(*inputs, MERGED.heads, "width")
    assert [result.requires_grad for result in results] == [True, True, False, False]


@pytest.mark.parametrize("axis", ["height", "width"])
@EITHER
def test_registered_operator(form: Form, axis: str, device: torch.device) -> None:
    inputs = draw(form, grid_shape(axis, length=3), 8, device)
    leaves = inputs.changed(lambda x: x.clone().requires_grad_())
    with launch.override(tiles()):
        torch.library.opcheck(axis_attention, (*leaves, form.heads, axis))
        results = axis_attention(*inputs, form.heads, axis)
        gradients = output_gradients(inputs, form.heads, axis)
        torch.library.opcheck(axis_attention_backward, (*gradients, *inputs, *results[2:], form.heads, axis))


@EITHER
def test_compiles_once_for_all_batch_sizes(form: Form, device: torch.device) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    def loss(*arguments: Any) -> Tensor:
        out, cls_out, _, _ = axis_attention(*arguments, form.heads, "height")
        return out.square().sum() + cls_out.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    with launch.override(tiles()):
        for batch in (2, 3):
            inputs = draw(form, (batch, 2, 2), 8, device)
            leaves, eager = (inputs.changed(lambda x: x.clone().requires_grad_()) for _ in range(2))
            for leaf in leaves.given().values():
                torch._dynamo.mark_dynamic(leaf, 0)
            compiled(*leaves).backward()
            loss(*eager).backward()
            for name, leaf in leaves.given().items():
                torch.testing.assert_close(leaf.grad, getattr(eager, name).grad)
    assert counter.frame_count == 1


@EITHER
def test_empty_batch(form: Form, device: torch.device) -> None:
    inputs = draw(form, (0, 2, 5), 16, device)
    found = step(axis_attention, inputs, form.heads, "width", output_gradients(inputs, form.heads, "width"))
    assert [found[name].shape for name in inputs.given()] == [x.shape for x in inputs.given().values()]
    assert found["lse"].shape == (0, 2, form.heads, 5)


def test_differentiating_twice_is_refused(device: torch.device) -> None:
    inputs = draw(MERGED, (1, 2, 3), 8, device).changed(Tensor.requires_grad_)
    with launch.override(tiles()):
        out, *_ = axis_attention(*inputs, MERGED.heads, "width")
        (gradient,) = torch.autograd.grad(out.square().sum(), inputs.key, create_graph=True)
        with pytest.raises(RuntimeError, match="axis_attention cannot be differentiated twice"):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("key", (1, 2, 3, 12)),
        ("key", (1, 2, 3, 24)),
        ("key", (1, 2, 4, 16)),
        ("value", (1, 2, 3, 8)),
        ("value", None),
        ("cls_query", (1, 24)),
        ("cls_key", (2, 16)),
        ("cls_value", (1, 32)),
        ("cls_value", None),
    ],
)
def test_errors_name_the_argument(name: str, shape: tuple[int, ...] | None) -> None:
    inputs = draw(FORMS["grouped"], (1, 2, 3), 8, "meta")
    wrong = inputs._replace(**{name: None if shape is None else torch.empty(shape, device="meta")})
    with pytest.raises(ValueError, match="^cls_value: expected None" if shape is None else f"^{name}: expected "):
        axis_attention(*wrong, 4, "width")


@pytest.mark.parametrize(
    ("heads", "axis", "name"), [(0, "width", "heads"), (3, "width", "heads"), (4, "depth", "axis")]
)
def test_errors_name_heads_and_axis(heads: int, axis: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        axis_attention(*draw(FORMS["grouped"], (1, 2, 3), 8, "meta"), heads, axis)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_shapes_without_data(form: Form) -> None:
    inputs = draw(form, (2, 5, 3), 8, "meta", torch.bfloat16)
    found = step(axis_attention, inputs, form.heads, "height", output_gradients(inputs, form.heads, "height"))
    features = form.heads * 8
    assert found["out"].shape == (2, 5, 3, features)
    assert found["cls_out"].shape == (2, 3, features)
    assert found["lse"].shape == (2, 3, form.heads, 5)
    assert found["cls_lse"].shape == (2, 3, form.heads)
    assert {found[name].dtype for name in ("lse", "cls_lse")} == {torch.float32}
    assert {found[name].dtype for name in ("out", "cls_out", *inputs.given())} == {torch.bfloat16}
    assert all(found[name].shape == x.shape for name, x in inputs.given().items())


def recorded(inputs: Inputs, form: Form) -> list[launch.Launch]:
    """The launches of a pass forward and backward along the width, from tensors without data."""
    given = operands(inputs, form)
    grads = tuple(per_head(x, form.heads) for x in output_gradients(inputs, form.heads, "width"))
    lse, cls_lse = (x.new_empty(*x.shape[:-1], 2, dtype=torch.float32) for x in grads)
    with launch.record(90) as launches:
        attend(given, *grads, lse, cls_lse)
        written = (given.query, given.key, given.value)
        of_class = ClassGradients.empty(given, len(given.cls_query) * given.query.shape[1])
        attend_backward(given, lse, cls_lse, *grads, *written, of_class)
    return launches


@EITHER
def test_more_than_65535_sequences(form: Form) -> None:
    inputs = draw(form, (513, 128, 128), 64, "meta", torch.bfloat16)
    sequences = 513 * 128
    for call in recorded(inputs, form):
        length, tile = (128, "BLOCK_K") if "key" in call.name else (call.arguments.get("QUERIES"), "BLOCK_Q")
        heads = call.arguments.get("HEADS") or call.arguments["KEY_HEADS"]
        assert call.programs == sequences * heads * launch.ceil_div(length, call.config.tiles[tile])


def test_grid_has_one_axis() -> None:
    kernel = mock.MagicMock()
    launch.launch("any", kernel, 70000, launch.Config({}), {}, device=torch.device("cpu"))
    kernel.__getitem__.assert_called_once_with((70000,))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_work_is_counted(form: Form) -> None:
    heads, axis = form.heads, "width"
    inputs = draw(form, (2, 3, 5), 8, "meta").changed(Tensor.requires_grad_)
    counts = {}
    for name, attention in {"plain": plain_attention, "kernel": axis_attention}.items():
        with FlopCounterMode(display=False) as counter:
            out, cls_out, *_ = attention(*inputs, heads, axis)
            forward = counter.get_total_flops()
            (out.sum() + cls_out.sum()).backward()
        counts[name] = forward, counter.get_total_flops() - forward
    assert counts["kernel"][0] == counts["plain"][0]
    assert counts["kernel"][1] * 4 == counts["plain"][1] * 7


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """The floating-point operations of every product that the interpreter computes."""
    from triton.runtime.interpreter import InterpreterBuilder

    dot, counts = InterpreterBuilder.create_dot, []

    def counted(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        counts.append(2 * left.data.shape[0] * left.data.shape[1] * right.data.shape[1])
        return dot(self, left, right, *rest)

    with mock.patch.object(InterpreterBuilder, "create_dot", counted):
        yield counts


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("block_c", [16, 256], ids=["sliced", "whole"])
@pytest.mark.parametrize("name", ["merged", "grouped"])
def test_executed_work_is_what_tiles_compute(name: str, block_c: int) -> None:
    form, shape, length = FORMS[name], (1, 2, 18), 18
    with launch.override(tiles(block_k=32, block_c=block_c)):
        launches = recorded(draw(form, shape, 20, "meta"), form)
        with counted_products() as counts:
            inputs = draw(form, shape, 20, "cpu")
            forward_and_backward(inputs, form, output_gradients(inputs, form.heads, "width"))
    assert sum(call.executed_flops for call in launches) == sum(counts)
    assert sum(call.flops for call in launches) == 2 * 9 * 2 * form.heads * length * (length + 1) * 20
    assert [call.name for call in launches] == [KERNELS[place] for place in (0, 3, 1, 4, 2)]


def test_offsets_of_64_bits(device: torch.device) -> None:
    tests = Path(__file__).resolve().parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "support.kernels.far_attention", device.type]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
