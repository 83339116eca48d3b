"""Products of tokens with a weight against `torch.nn.functional.linear`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from septr_fast.passes.torch import linear as module
from septr_fast.passes.torch.linear import add_linear, linear

SHAPES = [(1, 1, 1), (7, 3, 5), (130, 256, 1280), (65, 1280, 256), (3000, 17, 19), (4000, 16, 512)]


def inputs(rows: int, width: int, outputs: int, bias: bool) -> list[torch.Tensor | None]:
    offset = torch.randn(outputs, requires_grad=True) if bias else None
    return [torch.randn(2, rows, width, requires_grad=True), torch.randn(outputs, width, requires_grad=True), offset]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("rows", "width", "outputs"), SHAPES)
def test_equals_linear_with_its_gradients(rows: int, width: int, outputs: int, bias: bool) -> None:
    arguments = inputs(rows, width, outputs, bias)
    leaves = [tensor for tensor in arguments if tensor is not None]
    exact = F.linear(*(None if tensor is None else tensor.double() for tensor in arguments))
    direction = torch.randn_like(exact)
    result = linear(*arguments)
    with torch.no_grad():
        assert torch.equal(linear(*arguments), result)
    assert result.is_contiguous()
    wanted = [exact, *torch.autograd.grad(exact, leaves, direction)]
    found = [result, *torch.autograd.grad(result, leaves, direction.float().expand_as(result))]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < 1e-6 * other.norm()


def test_second_derivatives() -> None:
    arguments = [tensor for tensor in inputs(20, 32, 48, bias=True) if tensor is not None]

    def penalty(function: object, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        slopes = torch.autograd.grad(function(*leaves).sin().sum(), leaves[:2], create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves)

    exact = [tensor.detach().double().requires_grad_() for tensor in arguments]
    for one, other in zip(penalty(linear, *arguments), penalty(F.linear, *exact), strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "empty", "one dimension"])
@pytest.mark.parametrize("with_gradients", [True, False], ids=["gradients", "no gradients"])
def test_layouts(layout: str, with_gradients: bool) -> None:
    x = {
        "transposed": torch.randn(32, 18).t(),
        "sliced": torch.randn(9, 64)[::2, ::2],
        "expanded": torch.randn(1, 32).expand(5, 32),
        "empty": torch.randn(0, 32),
        "one dimension": torch.randn(32),
    }[layout]
    weight = torch.randn(32, 16).t()
    with torch.set_grad_enabled(with_gradients):
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_gradients", [True, False], ids=["gradients", "no gradients"])
def test_work_is_counted(with_gradients: bool) -> None:
    x, weight = torch.randn(3, 5, 32), torch.randn(16, 32, requires_grad=True)
    with torch.set_grad_enabled(with_gradients), FlopCounterMode(display=False) as counter:
        result = linear(x, weight, torch.randn(16))
        assert counter.get_total_flops() == 2 * 15 * 32 * 16
        if with_gradients:
            result.sum().backward()
            assert counter.get_total_flops() == 2 * 2 * 15 * 32 * 16


def test_transforms_and_forward_derivatives() -> None:
    x, weight = torch.randn(4, 8, 32), torch.randn(16, 32)
    wanted = F.linear(x, weight)
    torch.testing.assert_close(torch.vmap(lambda one: linear(one, weight))(x), wanted, rtol=1e-5, atol=1e-5)
    _, slope = torch.func.jvp(lambda one: linear(one, weight), (x,), (x,))
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = linear(torch.autograd.forward_ad.make_dual(x, x), weight)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, wanted, rtol=1e-5, atol=1e-5)


HALVES = (torch.bfloat16, torch.float16)
ODD_SHAPES = [(34, 33, 64), (1224, 68, 64), (1224, 3, 100), (64, 645, 35), (1224, 64, 35)]
"""Rows, inputs and outputs of which a product, or that of its gradient, leaked on a processor with AMX."""


def half_inputs(rows: int, width: int, outputs: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((rows, width), (outputs, width), (outputs,))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "width", "outputs"), ODD_SHAPES)
def test_half_precision_equals_linear_with_its_gradients(
    rows: int, width: int, outputs: int, dtype: torch.dtype
) -> None:
    arguments = half_inputs(rows, width, outputs, dtype)
    direction = torch.randn(rows, outputs).to(dtype)
    doubled = [tensor.detach().double().requires_grad_() for tensor in arguments]
    exact = F.linear(*doubled)
    result = linear(*arguments)
    assert result.is_contiguous()
    wanted = [exact, *torch.autograd.grad(exact, doubled, direction.double())]
    found = [result, *torch.autograd.grad(result, arguments, direction)]
    plain = F.linear(*arguments)
    theirs = [plain, *torch.autograd.grad(plain, arguments, direction)]
    for one, other, true in zip(found, theirs, wanted, strict=True):
        assert one.dtype == dtype
        assert one.shape == true.shape
        assert (one - true).norm() <= 1.1 * (other - true).norm()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "width", "outputs"), ODD_SHAPES)
def test_nan_stays_in_its_rows(rows: int, width: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight, bias = half_inputs(rows, width, outputs, dtype)
    direction = torch.ones(rows, outputs, dtype=dtype)
    direction[rows // 2 :] = float("nan")
    (gradient,) = torch.autograd.grad(linear(x, weight, bias), x, direction)
    with torch.no_grad():
        x[rows // 2 :] = float("nan")
        results = [linear(x, weight), linear(x, weight, bias), gradient]
    results.append(linear(x, weight, bias).detach())
    for result in results:
        assert result[: rows // 2].isfinite().all()
        assert result[rows // 2 :].isnan().all()


def test_sums_in_half_precision_are_of_whole_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HAS_ONEDNN", True)
    seen: list[tuple[torch.dtype, torch.Size]] = []

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append((x.dtype, weight.shape))
        return torch._C._nn.linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    layer = torch.nn.Linear(68, 35)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            module.call(layer, torch.randn(5, 68))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert module.call(layer, torch.randn(5, 68)).shape == (5, 35)
    bfloat16 = layer.bfloat16()
    module.call(bfloat16, torch.randn(5, 68).bfloat16())
    layer.register_forward_hook(lambda *_: torch.zeros(3))
    assert module.call(bfloat16, torch.randn(5, 68).bfloat16()).shape == (3,)
    float32, plain, wide = torch.float32, (35, 68), (64, 96)
    shapes = [plain, wide, plain, (35, 96), wide, plain]
    dtypes = [*4 * [float32], *2 * [torch.bfloat16]]
    assert seen == list(zip(dtypes, map(torch.Size, shapes), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_lie_where_they_were_begun(dtype: torch.dtype) -> None:
    x, given, weight, bias = (torch.randn(shape).to(dtype) for shape in [(2, 30, 48), (2, 30, 64), (48, 64), (48,)])
    exact = x.double() + F.linear(given.double(), weight.double(), bias.double())
    with torch.no_grad():
        found = add_linear(x, given, weight, bias)
    assert found.data_ptr() == x.data_ptr()
    assert (found - exact).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_sums_that_somebody_looks_at_lie_apart() -> None:
    """With gradients, in forward mode, traced or transformed, under autocast, dropped or in another dtype."""
    x, given, weight, bias = (torch.randn(shape) for shape in [(2, 30, 48), (2, 30, 64), (48, 64), (48,)])
    before = x.clone()
    exact = x.double() + F.linear(given.double(), weight.double(), bias.double())

    def forward_mode() -> torch.Tensor:
        with torch.autograd.forward_ad.dual_level():
            return add_linear(x, given, weight, bias)

    def cast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return add_linear(x, given, weight, bias)

    found = [add_linear(x, given, weight, bias)]
    with torch.no_grad():
        found += [
            forward_mode(),
            cast(),
            torch.func.vmap(lambda x, given: add_linear(x, given, weight, bias))(x, given),
        ]
        found += [torch.jit.trace(lambda x: add_linear(x, given, weight, bias), (x,))(x)]
        found += [add_linear(x.transpose(1, 2).contiguous().transpose(1, 2), given, weight, bias)]
        found += [add_linear(x, *(tensor.double() for tensor in (given, weight, bias)))]
        dropped = add_linear(x, given, weight, bias, dropout=0.5)
    assert torch.equal(x, before)
    assert all((one - exact).abs().max() < 0.01 * exact.abs().max() for one in found)
    assert 0.3 < ((dropped - x).abs() < 1e-6).double().mean() < 0.7
