"""Gradients of what all chunks of a pass read."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad
from trust.fuzzing.cases import PassCase
from trust.fuzzing.models import check_torch_pass

from septr_fast.algebra.folded import Mlp
from septr_fast.passes.torch.chunk_gradients import reader

CHUNKS = 512
"""Ones, of which a sum in bfloat16 ends at 256 and one in float16 goes on to 2048."""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_shares_of_all_chunks_add_up(dtype: torch.dtype) -> None:
    weight = torch.ones(3, dtype=dtype, requires_grad=True)
    read = reader(weight)
    torch.stack([read().sum() for _ in range(CHUNKS)]).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
    assert weight.grad.tolist() == [CHUNKS] * 3


def test_without_it_they_do_not() -> None:
    weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    torch.stack([weight.sum() for _ in range(CHUNKS)]).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() != [CHUNKS] * 3


def test_nothing_is_copied() -> None:
    tensors = [torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]
    weights = Mlp(1e-5, *tensors)
    read = reader(weights)
    for given, found in ((weights.hidden_weight, read().hidden_weight), (weights.out_bias, read().out_bias)):
        assert (found.data_ptr(), found.requires_grad) == (given.data_ptr(), True)
        assert found is not given


def test_a_change_before_the_backward_pass_is_refused() -> None:
    weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    result = (reader(weight)() ** 2).sum()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_without_gradients_or_under_a_transform_it_is_the_tensor_itself() -> None:
    weight = torch.ones(3, dtype=torch.bfloat16)
    assert reader(weight)() is weight
    with torch.no_grad():
        assert reader(weight.requires_grad_())() is weight
    assert grad(lambda x: reader(x)().sum())(weight).tolist() == [1.0] * 3


def test_differentiable_twice() -> None:
    weight = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    (first,) = torch.autograd.grad((reader(weight)() ** 3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    assert second.tolist() == [6.0] * 3


ALONE = {
    "merged": PassCase(
        *("merged", "torch", "height", (1, 3, 23), 3, 8, 17, 33, 5, ("bfloat16", "bfloat16")),
        *(3.0, "expanded", "expanded", None, 19655, 1),
    ),
    "class-only": PassCase(
        *("class-only", "torch", "height", (2, 2, 11), 1, 8, 16, 16, 1, ("bfloat16", "bfloat16")),
        *(0.1, "expanded", "contiguous", "height", 81, 1),
    ),
    "direct": PassCase(
        *("direct", "torch", "height", (2, 3, 23), 3, 8, 8, 33, 1, ("bfloat16", "bfloat16")),
        *(1.0, "expanded", "expanded", None, 7897, 4096),
    ),
}
"""Passes whose bias gradients fell short where their chunks' shares were summed in 16 bits."""


@pytest.mark.parametrize("name", ALONE)
def test_rows_one_by_one_are_as_good_as_together(name: str) -> None:
    check_torch_pass(ALONE[name])
