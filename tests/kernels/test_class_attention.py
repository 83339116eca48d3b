"""The class token's attention on Triton: as good as plain PyTorch, differentiable once, any strides."""

from __future__ import annotations

import pytest
import torch
from support.kernels.poison import poisoned_empty
from support.kernels.tracing import trace_accesses
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.class_attention import class_attention, class_attention_backward
from support.kernels.class_attention_cases import EPS, SMALL, Inputs, check, draw


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_as_good_as_plain_at_every_scale(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((10, 2, 19, 24), "width", 3, device, dtype, scale), "width")


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_lengths_at_tile_edges(length: int, axis: str, device: torch.device) -> None:
    rows = 8 if length == 1 else 3
    shape = (2, length, rows, 16) if axis == "height" else (2, rows, length, 16)
    with launch.override(SMALL):
        check(draw(shape, axis, 2, device, torch.float32), axis)


@pytest.mark.parametrize(("heads", "dim"), [(1, 8), (16, 17), (17, 32), (5, 64), (2, 256)])
def test_heads_and_features(heads: int, dim: int, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((1, 2, 18, dim), "width", heads, device, torch.float16), "width")


def test_shipped_configuration(device: torch.device) -> None:
    check(draw((1, 37, 2, 256), "height", 5, device, torch.float32), "height")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_residual_stream_of_another_dtype(dtype: torch.dtype, device: torch.device) -> None:
    with launch.override(SMALL):
        check(draw((2, 3, 18, 16), "width", 2, device, dtype, residual=torch.float32), "width")


def test_any_strides(device: torch.device) -> None:
    batch, rows, length, dim, heads = 2, 3, 18, 16, 2
    grid = torch.randn(dim, length + 2, batch, 2 * rows, device=device).permute(2, 3, 1, 0)[:, ::2, 1:-1]
    pos = torch.randn(dim, 1 + length, device=device).t()
    query = torch.randn(heads, 2 * dim, device=device)[:, ::2].expand(batch, heads, dim)
    cls_hat = torch.randn(dim, batch, device=device).t()
    grad = torch.randn(rows, 1, dim, device=device).expand(batch, rows, heads, dim)
    with launch.override(SMALL):
        check((grid, pos, query, cls_hat), "width", grad)


def test_scores_far_below_zero(device: torch.device) -> None:
    grid, pos, query, cls_hat = draw((1, 2, 5, 16), "width", 2, device, torch.float32)
    grid = grid + 10 * cls_hat
    query = -60 * cls_hat[:, None] + 0.1 * query
    with launch.override(SMALL):
        check((grid, pos, query, cls_hat), "width")


def forward_and_backward(inputs: Inputs, grad: Tensor) -> list[Tensor]:
    results = class_attention(*inputs, EPS, "width")
    return [*results, *class_attention_backward(grad, *inputs, *results, EPS, "width")]


def test_writes_every_value_once_and_nothing_else(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("accesses are traced by the interpreter alone")
    inputs = draw((2, 3, 18, 24), "width", 3, device, torch.float32)
    with launch.override(SMALL), poisoned_empty(), trace_accesses() as trace:
        results = forward_and_backward(inputs, torch.randn(2, 3, 3, 24))
    trace.assert_clean()
    assert not any(result.isnan().any() for result in results)


def test_same_bits_in_any_order_of_programs(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the order of programs is the device's own")
    from support.kernels.interpreter import permuted_programs

    inputs = draw((2, 3, 18, 16), "width", 2, device, torch.float32)
    grad = torch.randn(2, 3, 2, 16)

    with launch.override(SMALL):
        expected = forward_and_backward(inputs, grad)
        for seed in (0, 1):
            with permuted_programs(seed):
                assert all(torch.equal(a, b) for a, b in zip(forward_and_backward(inputs, grad), expected, strict=True))


def test_saved_tensors_and_inputs_stay_as_they_are(device: torch.device) -> None:
    inputs = draw((1, 2, 5, 16), "width", 2, device, torch.float32)
    leaves = [x.clone().requires_grad_() for x in inputs]
    with launch.override(SMALL):
        attended, statistics = class_attention(*leaves, EPS, "width")
        copies = attended.detach().clone(), statistics.clone()
        attended.backward(torch.ones_like(attended))
    assert not statistics.requires_grad
    assert torch.equal(attended, copies[0])
    assert torch.equal(statistics, copies[1])
    assert all(torch.equal(leaf, x) for leaf, x in zip(leaves, inputs, strict=True))


def test_empty_batch(device: torch.device) -> None:
    inputs = draw((0, 2, 5, 16), "width", 2, device, torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    attended, statistics = class_attention(*leaves, EPS, "width")
    assert attended.shape == (0, 2, 2, 16)
    assert statistics.shape == (0, 2, 2, 2)
    attended.sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]
    assert not leaves[1].grad.any()


@pytest.mark.parametrize("axis", ["height", "width"])
def test_registered_operator(axis: str, device: torch.device) -> None:
    inputs = draw((2, 3, 3, 16), axis, 2, device, torch.float32)
    leaves = [x.clone().requires_grad_() for x in inputs]
    with launch.override(SMALL):
        torch.library.opcheck(class_attention, (*leaves, EPS, axis))
        attended, statistics = class_attention(*inputs, EPS, axis)
        arguments = (torch.randn_like(attended), *inputs, attended, statistics, EPS, axis)
        torch.library.opcheck(class_attention_backward, arguments)


def test_differentiating_twice_is_refused(device: torch.device) -> None:
    inputs = draw((1, 2, 3, 16), "width", 2, device, torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    with launch.override(SMALL):
        attended, _ = class_attention(*leaves, EPS, "width")
        gradients = torch.autograd.grad(attended.square().sum(), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="class_attention cannot be differentiated twice"):
            gradients[0].sum().backward()


def test_work_is_counted(device: torch.device) -> None:
    batch, rows, length, dim, heads = 2, 3, 5, 16, 2
    inputs = draw((batch, rows, length, dim), "width", heads, device, torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    with launch.override(SMALL), FlopCounterMode(display=False) as counter:
        attended, _ = class_attention(*leaves, EPS, "width")
        assert counter.get_total_flops() == 4 * batch * rows * heads * length * dim
        attended.sum().backward()
    assert counter.get_total_flops() == 14 * batch * rows * heads * length * dim


def test_work_of_tiles() -> None:
    inputs = draw((1, 128, 128, 256), "width", 5, torch.device("meta"), torch.bfloat16)
    with launch.record(90) as launches:
        attended, statistics = class_attention_without_data(*inputs)
    (forward,) = launches
    assert attended.shape == (1, 128, 5, 256)
    assert statistics.shape == (1, 128, 5, 2)
    assert forward.flops == 4 * 128 * 128 * 5 * 256
    assert forward.executed_flops == forward.flops * 16 // 5
    assert forward.programs == 128


def class_attention_without_data(grid: Tensor, pos: Tensor, query: Tensor, cls_hat: Tensor) -> tuple[Tensor, Tensor]:
    from septr_fast.kernels.class_attention import attend

    return attend(grid, pos[1:], query, cls_hat, EPS)
