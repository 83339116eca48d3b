"""Attention along an axis on Triton: values and gradients as good as plain PyTorch's, in every form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import launch
from septr_fast.kernels.axis_attention_operator import axis_attention
from support.kernels.attention_cases import (
    BY_HEADS,
    DIRECT,
    FORMS,
    MERGED,
    RESULTS,
    Form,
    Inputs,
    check,
    draw,
    draw_far_below_zero,
    grid_shape,
    output_gradients,
    plain_attention,
    step,
    tiles,
)
from support.tolerance import assert_as_good

EITHER = pytest.mark.parametrize("form", [MERGED, DIRECT], ids=["merged", "direct"])


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(form: Form, axis: str, device: torch.device) -> None:
    inputs = draw(form, grid_shape(axis, length=7, rows=2, batch=2), 20, device)
    with launch.override(tiles()):
        check(inputs, form.heads, axis)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
@EITHER
def test_lengths_at_tile_edges(form: Form, length: int, device: torch.device) -> None:
    inputs = draw(form, grid_shape("height", length, rows=3 if length == 1 else 2), 16, device)
    with launch.override(tiles()):
        check(inputs, form.heads, "height")


@pytest.mark.parametrize(
    ("form", "dtype", "block_q"),
    [(Form(1, 1, False), torch.float16, 1024), (Form(1, 1, True), torch.float32, 128)],
    ids=["merged", "direct"],
)
def test_longest_sequence(form: Form, dtype: torch.dtype, block_q: int, device: torch.device) -> None:
    """In tiles that NumPy is quick with; in float32, where it sums a long one up in turn, in those of a GPU."""
    inputs = draw(form, grid_shape("width", 4096, rows=1), 32, device, dtype)
    with launch.override(tiles(block_q, block_q) if device.type == "cpu" else {}):
        check(inputs, form.heads, "width", together=True)


@pytest.mark.parametrize("length", [33, 64])
@pytest.mark.parametrize(("block_q", "block_k"), [(32, 16), (16, 32)])
@EITHER
def test_tiles_of_unequal_sizes(form: Form, block_q: int, block_k: int, length: int, device: torch.device) -> None:
    inputs = draw(form, grid_shape("width", length, rows=1), 16, device, torch.float16)
    with launch.override(tiles(block_q, block_k)):
        check(inputs, form.heads, "width")


@pytest.mark.parametrize(("head_dim", "block_c"), [(8, 256), (20, 256), (20, 16), (64, 256), (64, 16)])
@EITHER
def test_features_in_slices_and_whole(form: Form, head_dim: int, block_c: int, device: torch.device) -> None:
    inputs = draw(form, grid_shape("width", length=17, rows=1, batch=2), head_dim, device)
    with launch.override(tiles(block_c=block_c)):
        check(inputs, form.heads, "width")


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@EITHER
def test_as_good_as_plain_at_every_scale(form: Form, dtype: torch.dtype, scale: float, device: torch.device) -> None:
    inputs = draw(form, grid_shape("width", length=11, batch=2), 24, device, dtype, scale)
    with launch.override(tiles()):
        check(inputs, form.heads, "width")


@pytest.mark.parametrize(
    ("form", "dtype"), [(MERGED, torch.float32), (DIRECT, torch.bfloat16)], ids=["merged-float32", "direct-bfloat16"]
)
def test_shipped_configuration(form: Form, dtype: torch.dtype, device: torch.device) -> None:
    check(draw(form, grid_shape("height", length=37, rows=1), 72, device, dtype), form.heads, "height")


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the precision of float32 products, and set it back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_float32_products_are_exact_whatever_pytorch_is_told(device: torch.device) -> None:
    inputs = draw(MERGED, grid_shape("width", length=19), 24, device)
    gradients, found = output_gradients(inputs, MERGED.heads, "width"), []
    for precision in ("highest", "high"):
        with launch.override(tiles()), matmul_precision(precision):
            found.append(step(axis_attention, inputs, MERGED.heads, "width", gradients))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [19, 40], ids=["keys held", "keys streamed"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_heads_together(form: Form, length: int, dtype: torch.dtype, device: torch.device) -> None:
    inputs = draw(form, grid_shape("height", length), 24, device, dtype)
    with launch.override(tiles(block_k=32, heads_together=True)), launch.capture(*BY_HEADS) as captured:
        check(inputs, form.heads, "height")
    assert {one.programs for one in captured.launches} == {2 * form.key_heads * -(-length // 16)}


@pytest.mark.parametrize("length", [19, 40], ids=["keys held", "keys streamed"])
def test_heads_together_have_the_bits_of_heads_apart(length: int, device: torch.device) -> None:
    """But for what the class token's key and value get, which is summed up in another order."""
    form = FORMS["grouped-merged"]
    inputs = draw(form, grid_shape("width", length), 24, device)
    gradients = output_gradients(inputs, form.heads, "width")
    found = []
    for heads_together in (False, True):
        with launch.override(tiles(block_k=32, heads_together=heads_together)):
            found.append(step(axis_attention, inputs, form.heads, "width", gradients))
    summed = {"cls_key", "cls_value"}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0].keys() - summed)


def test_key_gradients_in_two_accumulators(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Blackwell; its other choices, of tiles, are those of the test."""
    monkeypatch.setattr(launch, "architecture", lambda device: launch.UNCHAINED[0])
    inputs = draw(MERGED, grid_shape("width", length=37), 24, device)
    with launch.override(tiles()), launch.capture("axis_attention_bwd_key") as captured:
        check(inputs, MERGED.heads, "width")
    assert {one.arguments["CHAINED"] for one in captured.launches} == {False}


def test_any_strides(device: torch.device) -> None:
    batch, height, width, head_dim = 2, 3, 18, 16
    heads, features = 4, 4 * head_dim
    inputs = Inputs(
        query=torch.randn(features, width + 2, batch, 2 * height, device=device).permute(2, 3, 1, 0)[:, ::2, 1:-1],
        key=torch.randn(batch, width, height, features, device=device).transpose(1, 2)[..., ::2],
        value=torch.randn(batch, 1, width, features // 2, device=device).expand(-1, height, -1, -1),
        cls_query=torch.randn(features, batch, device=device).t(),
        cls_key=torch.randn(1, features, device=device)[:, ::2].expand(batch, -1),
        cls_value=torch.randn(batch, 1, device=device).expand(-1, features // 2),
    )
    gradients = (
        torch.randn(width, 1, height, 2 * features, device=device)
        .permute(1, 2, 0, 3)[..., 1::2]
        .expand(batch, -1, -1, -1),
        torch.randn(features, 1, batch, device=device).permute(2, 1, 0).expand(-1, height, -1),
    )
    with launch.override(tiles()):
        check(inputs, heads, "width", gradients)


@pytest.mark.parametrize("axis", ["height", "width"])
@EITHER
def test_gradient_of_a_sum(form: Form, axis: str, device: torch.device) -> None:
    shape = grid_shape(axis, length=17)
    inputs = draw(form, shape, 16, device)
    features = inputs.query.shape[-1]
    one = torch.ones((), device=device)
    with launch.override(tiles()):
        check(inputs, form.heads, axis, (one.expand(*shape, features), one.expand(1, 2, features)))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@EITHER
def test_scores_far_below_zero(form: Form, dtype: torch.dtype, device: torch.device) -> None:
    far = draw_far_below_zero(form, device, dtype)
    assert plain_attention(*far, form.heads, "width")[2].max() < -1000
    with launch.override(tiles()):
        check(far, form.heads, "width")


@EITHER
def test_scores_all_equal(form: Form, device: torch.device) -> None:
    inputs = draw(form, grid_shape("width", length=17, batch=2), 16, device)
    same = inputs._replace(query=torch.zeros_like(inputs.query), cls_query=torch.zeros_like(inputs.cls_query))
    with launch.override(tiles()):
        check(same, form.heads, "width")


@pytest.mark.parametrize("position", ["class token", "first tile", "last tile"])
@EITHER
def test_one_huge_score(form: Form, position: str, device: torch.device) -> None:
    inputs = draw(form, grid_shape("width", length=18), 16, device)
    if position == "class token":
        inputs.cls_key.mul_(3000)
    else:
        inputs.key[:, :, 3 if position == "first tile" else 17].mul_(3000)
    gradients = output_gradients(inputs, form.heads, "width")
    with launch.override(tiles()):
        found = step(axis_attention, inputs, form.heads, "width", gradients)
    plain = step(plain_attention, inputs, form.heads, "width", gradients)
    oracle = step(plain_attention, inputs.changed(Tensor.double), form.heads, "width", gradients)
    assert_as_good(*({name: x[name] for name in RESULTS} for x in (found, plain, oracle)))
    largest = {name: max(x.abs().max().item() for x in group) for name, group in groups(inputs, gradients).items()}
    score_gradient = 16 * largest["gradients"] * largest["values"]
    limit = 4 * torch.finfo(torch.float32).eps * score_gradient * max(largest["keys"], largest["queries"])
    errors = {name: (found[name] - oracle[name]).abs().max().item() for name in inputs.given()}
    assert all(error <= limit for error in errors.values()), (errors, limit)


def groups(inputs: Inputs, gradients: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """What enters products, by its role, the class token's with the grid's."""
    keys = (inputs.key, inputs.cls_key)
    separate = inputs.value is not None and inputs.cls_value is not None
    values = (inputs.value, inputs.cls_value) if separate else keys
    return {"queries": (inputs.query, inputs.cls_query), "keys": keys, "values": values, "gradients": gradients}
