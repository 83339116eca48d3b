"""The merged pass of a CPU's training step against autograd's own backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from septr_fast import SepTr
from septr_fast.algebra.folded import Dropout, Folded, Merged, Mlp
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import chunks, merged_training
from septr_fast.passes.torch import passes as torch_passes

HEADS, DIM, MLP_DIM = 3, 16, 24
Pass = Callable[..., tuple[Tensor, Tensor]]


def tensors(batch: int, height: int, width: int, axis: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Grid, class token, positions, and the weights in the order of `merged_training.Weights`."""
    length = height if axis == "height" else width
    shapes = [
        (batch, height, width, DIM),
        (batch, DIM),
        (1 + length, DIM),
        (HEADS * DIM, DIM),
        (HEADS * DIM,),
        (DIM, HEADS * DIM),
        (DIM,),
        (MLP_DIM, DIM),
        (MLP_DIM,),
        (DIM, MLP_DIM),
        (DIM,),
    ]
    return [torch.randn(shape, dtype=torch.float64).div(3).to(dtype).requires_grad_() for shape in shapes]


def run(function: Pass, axis: str, given: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    weights = Folded(Merged(HEADS, 1e-5, *given[3:7]), Mlp(1e-5, *given[7:]))
    return function(*given[:3], weights, Settings(axis, **options))


def gradients(function: Pass, axis: str, given: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(run(function, axis, given), given, direction))


def served(result: Tensor) -> bool:
    """Whether `_MergedPass` made `result`, or what `result` is a view of."""
    node, seen = result.grad_fn, 0
    while node is not None and seen < 4:
        if type(node).__name__ == "_MergedPassBackward":
            return True
        node, seen = (node.next_functions[0][0] if node.next_functions else None), seen + 1
    return False


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5), (3, 4, 9)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 1000], ids=lambda rows: f"chunks of {rows}")
def test_equals_autograd(axis: str, shape: tuple[int, int, int], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors(*shape, axis)
    tokens = given[2].shape[0]
    monkeypatch.setattr(chunks, "CPU_TRAINING_CHUNK_BYTES", rows * tokens * HEADS * DIM * 4)
    found = run(torch_passes.axis_pass, axis, given)
    plain = run(torch_passes.plain_axis_pass, axis, given)
    assert served(found[0])
    assert not served(plain[0])
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one, other)
    direction = [torch.randn_like(part) for part in found]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    wanted = gradients(torch_passes.plain_axis_pass, axis, exact, [part.double() for part in direction])
    ours, theirs = (
        gradients(way, axis, given, direction) for way in (torch_passes.axis_pass, torch_passes.plain_axis_pass)
    )
    for one, other, true in zip(ours, theirs, wanted, strict=True):
        assert one.shape == true.shape
        scale = true.norm() + true.numel() ** 0.5 * 1e-2
        assert (one - true).norm() < 2e-6 * scale + 2 * (other - true).norm()


@pytest.mark.parametrize("axis", ["height", "width"])
def test_second_derivatives(axis: str) -> None:
    given = tensors(2, 3, 4, axis)

    def penalty(given: list[Tensor]) -> list[Tensor]:
        grid, cls_token = run(torch_passes.axis_pass, axis, given)
        slopes = torch.autograd.grad(grid.sin().sum() + cls_token.sin().sum(), given, create_graph=True)
        return list(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), given))

    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    for one, other in zip(penalty(given), penalty(exact), strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


@pytest.mark.parametrize("threads", [2, 3])
def test_rows_are_shared_by_cores(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sums up the gradients of its rows; the sums are added."""
    monkeypatch.setattr(chunks, "CPU_TRAINING_CHUNK_BYTES", 1)
    given = tensors(3, 4, 5, "width")
    direction = [torch.randn(3, 4, 5, DIM), torch.randn(3, DIM)]
    wanted = gradients(
        torch_passes.plain_axis_pass,
        "width",
        [x.detach().double().requires_grad_() for x in given],
        [x.double() for x in direction],
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gradients(torch_passes.axis_pass, "width", given, direction)
    finally:
        torch.set_num_threads(before)
    assert all((x - y).abs().max() < 1e-4 * y.abs().max() for x, y in zip(found, wanted, strict=True))


def test_backward_twice_gives_the_same_bits() -> None:
    given = tensors(2, 5, 6, "width")
    result = run(torch_passes.axis_pass, "width", given)
    direction = [torch.randn_like(part) for part in result]
    first = torch.autograd.grad(result, given, direction, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(result, given, direction), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "frozen", range(11), ids=["grid", "cls_token", "pos_embedding", *merged_training.Weights._fields]
)
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    given = tensors(2, 5, 6, "height")
    direction = [torch.randn(2, 5, 6, DIM), torch.randn(2, DIM)]
    wanted = gradients(torch_passes.axis_pass, "height", given, direction)
    given[frozen] = given[frozen].detach()
    result = run(torch_passes.axis_pass, "height", given)
    assert served(result[0])
    torch.autograd.backward(result, direction)
    for number, (tensor, gradient) in enumerate(zip(given, wanted, strict=True)):
        if number == frozen:
            assert tensor.grad is None
        else:
            assert tensor.grad is not None
            assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("output", [0, 1], ids=["grid", "class token"])
def test_one_output_alone(output: int) -> None:
    given = tensors(2, 3, 4, "height")
    ours, theirs = (
        torch.autograd.grad(run(way, "height", given)[output].square().sum(), given)
        for way in (torch_passes.axis_pass, torch_passes.plain_axis_pass)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("recompute", [False, True], ids=["everything", "recomputing"])
def test_keeps_no_more_than_autograd(recompute: bool) -> None:
    given = tensors(2, 30, 30, "height")

    def kept(function: Pass) -> int:
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run(function, "height", given, recompute=recompute)
        assert result
        return sum(found.values())

    assert kept(torch_passes.axis_pass) <= kept(torch_passes.plain_axis_pass)


def test_only_where_it_may() -> None:
    given = tensors(2, 3, 4, "height")

    def serves(given: list[Tensor] = given, **options: Any) -> bool:
        return served(run(torch_passes.axis_pass, "height", given, **options)[0])

    assert serves()
    assert not serves([tensor.detach() for tensor in given])
    assert not serves([tensor.detach().double().requires_grad_() for tensor in given])
    assert not serves(dropout=Dropout(0.1, 0.1, 0.1))
    assert serves(recompute=True)
    assert not serves(lengths=Lengths("height", torch.tensor([1, 3])))
    with torch.no_grad():
        assert run(torch_passes.axis_pass, "height", given)[0].grad_fn is None
    with forward_ad.dual_level():
        assert not serves()


def test_under_checkpoints_and_hooks() -> None:
    model = SepTr(
        num_classes=3, depth=2, dim=16, mlp_dim=16, dim_head=16, heads=2, input_size=(6, 6), formulation="merged"
    )
    x = torch.randn(2, 1, 6, 6)

    def step(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        model.zero_grad()
        call(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    def offloaded(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            result: Tensor = model(x)
        return result

    wanted = step(model)
    again = step(lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False))
    for one, other, third in zip(wanted, again, step(offloaded), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


def test_gradients_do_not_pass_from_one_input_through_another() -> None:
    """What one input is computed from gets a gradient where it is used itself, and from that alone."""
    first = torch.tensor([2.0, 3.0], requires_grad=True)
    second = first.square()
    ones = torch.ones(2)

    def products(one: Tensor, other: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        return one * other * constant, one + other

    with torch.enable_grad():
        found = merged_training.by_autograd(products, (first, second, ones), (True, True, False), (ones, ones))
    wanted = [second + 1, first + 1, None]
    assert [one is None for one in found] == [other is None for other in wanted]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True) if one is not None)
