"""Looking inside: features of every block and the attention's probabilities, equal to those of the reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.compare import pair, relative_error, spectrograms
from support.versions import needs_kernels
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, reference
from septr_fast.algebra.direct import fold_direct
from septr_fast.passes import attention_maps
from septr_fast.passes.attention_maps import AttentionMaps

pytestmark = pytest.mark.usefixtures("one_thread")
BASE: dict[str, Any] = {
    "channels": 2,
    "input_size": (6, 9),
    "num_classes": 5,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 12,
    "dim": 16,
}
POOLED: dict[str, Any] = SMALL["uneven pooling"]
CASES: dict[str, tuple[dict[str, Any], str | None]] = {
    "planned": (BASE, None),
    "direct": (BASE, "direct"),
    "merged": (BASE, "merged"),
    "one block": ({**BASE, "depth": 1}, None),
    "one channel, width first": ({**BASE, "channels": 1, "first_axis": "width"}, None),
    "low-rank and class-only": ({**BASE, "channels": 1, "depth": 1}, "low-rank"),
    "single full head": ({**BASE, "heads": 1, "dim_head": 16}, None),
    "pooled": (POOLED, None),
    "one pixel": (SMALL["one pixel"], None),
}
LENGTHS = {"width": [9, 1, 5], "height": [1, 6, 4]}


def reference_features(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What the reference's blocks return."""
    found: list[tuple[Tensor, Tensor]] = []
    hooks = [block.register_forward_hook(lambda _, __, out: found.append(out)) for block in model.transformer]
    model(x)
    for hook in hooks:
        hook.remove()
    return [(grid, cls_token[:, 0, 0]) for grid, cls_token in found]


def reference_maps(model: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    """Probabilities of the reference's attention, by its own projections of the inputs that a hook sees."""

    def record(module: reference.Attention, inputs: tuple[Tensor], *, into: dict[str, Tensor], axis: str) -> None:
        query, key, _ = module.to_qkv(inputs[0]).unflatten(-1, (3, module.heads, module.dim_head)).unbind(-3)
        scores = torch.einsum("brqhd,brkhd->brhqk", query, key) / module.dim_head**0.5
        into[axis] = scores.softmax(dim=-1)

    found: list[dict[str, Tensor]] = [{} for _ in model.transformer]
    hooks = []
    for block, maps in zip(model.transformer, found, strict=True):
        for axis in reference.AXES:
            attention = getattr(block, f"transformer_{axis[0]}").sublayers[0].fn
            hooks.append(attention.register_forward_pre_hook(partial(record, into=maps, axis=axis)))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def padded(lengths: list[int], axis: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Spectrograms with NaN in the padding."""
    x = torch.randn(len(lengths), BASE["channels"], *BASE["input_size"], dtype=dtype)
    for sample, length in enumerate(lengths):
        (x[sample, :, :, length:] if axis == "width" else x[sample, :, length:]).fill_(float("nan"))
    return x


def cut_model(model: SepTr, length: int, axis: str) -> SepTr:
    """The model for spectrograms cut to `length`, positions cut alike."""
    size = list(BASE["input_size"])
    size[axis == "width"] = length
    result = SepTr(**{**BASE, "input_size": size}).to(model.cls_token.dtype).eval()
    name = f"pos_embedding_{axis[0]}"
    state = {k: v[:, :, : 1 + length] if k.endswith(name) else v for k, v in model.state_dict().items()}
    result.load_state_dict(state)
    return result


def cut(x: Tensor, length: int, axis: str) -> Tensor:
    return x[..., :length] if axis == "width" else x[..., :length, :]


@pytest.mark.parametrize(("config", "formulation"), CASES.values(), ids=CASES)
def test_features_are_those_of_the_reference(config: dict[str, Any], formulation: str | None) -> None:
    expected, model = pair(config, formulation=formulation)
    x = spectrograms(config, 2).requires_grad_()
    wanted, found = reference_features(expected, x), model.forward_features(x)
    assert len(found) == len(wanted) == config["depth"]
    for ours, (grid, cls_token) in zip(found, wanted, strict=True):
        assert relative_error(ours.grid, grid) < 1e-10
        assert relative_error(ours.cls_token, cls_token) < 1e-10
    assert relative_error(model.fc(found[-1].cls_token), model(x)) < 1e-12
    ours, theirs = (
        sum((grid.sin().sum() + cls_token.cos().sum() for grid, cls_token in features), torch.zeros(()))
        for features in (found, wanted)
    )
    leaves = [[x, *(p for n, p in module.named_parameters() if "fc" not in n)] for module in (model, expected)]
    for left, right in zip(torch.autograd.grad(ours, leaves[0]), torch.autograd.grad(theirs, leaves[1]), strict=True):
        assert relative_error(left, right) < 1e-10
    with torch.no_grad():
        for ours, (grid, cls_token) in zip(model.eval().forward_features(x), wanted, strict=True):
            assert relative_error(ours.grid, grid) < 1e-10
            assert relative_error(ours.cls_token, cls_token) < 1e-10


@pytest.mark.parametrize("axis", ["width", "height"])
def test_features_of_padded_samples_are_as_if_cut(axis: str) -> None:
    lengths, model = LENGTHS[axis], SepTr(**BASE).double().eval()
    x = padded(lengths, axis)
    with torch.no_grad():
        found = model.forward_features(x, lengths, lengths_axis=axis)
        for sample, length in enumerate(lengths):
            wanted = cut_model(model, length, axis).forward_features(cut(x[[sample]], length, axis))
            for ours, theirs in zip(found, wanted, strict=True):
                assert relative_error(cut(ours.grid[[sample]], length, axis), theirs.grid) < 1e-10
                assert relative_error(ours.cls_token[[sample]], theirs.cls_token) < 1e-10
                assert ours.grid[sample].count_nonzero() == theirs.grid.count_nonzero()


@needs_kernels
def test_features_by_triton(device: torch.device) -> None:
    pytest.importorskip("triton")
    config = {**BASE, "channels": 1, "input_size": (2, 3), "dim_head": 16}
    expected, model = pair(config, torch.float32, backend="triton")
    model.to(device)
    x = spectrograms(config, 1, torch.float32)
    for ours, (grid, cls_token) in zip(
        model.forward_features(x.to(device)), reference_features(expected, x), strict=True
    ):
        assert relative_error(ours.grid.cpu(), grid) < 1e-5
        assert relative_error(ours.cls_token.cpu(), cls_token) < 1e-5
    maps = model.attention_maps(x.to(device))
    for ours, theirs in zip(maps, reference_maps(expected, x), strict=True):
        assert relative_error(ours.height.cpu(), theirs["height"][:, :, :, :1]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("queries", ["class", "all"])
@pytest.mark.parametrize(("config", "formulation"), CASES.values(), ids=CASES)
def test_maps_are_those_of_the_reference(
    config: dict[str, Any], formulation: str | None, queries: str, dtype: torch.dtype
) -> None:
    expected, model = pair(config, dtype, formulation=formulation)
    x = spectrograms(config, 2, dtype)
    wanted = reference_maps(expected.double(), x.double())
    found = model.attention_maps(x.requires_grad_(), queries=queries)
    assert len(found) == len(wanted) == config["depth"]
    for ours, theirs in zip(found, wanted, strict=True):
        for axis, probabilities in theirs.items():
            maps = getattr(ours, axis)
            assert (maps.dtype, maps.requires_grad) == (dtype, False)
            exact = probabilities if queries == "all" else probabilities[:, :, :, :1]
            assert relative_error(maps, exact) < (1e-10 if dtype == torch.float64 else 1e-5)
            torch.testing.assert_close(maps.sum(dim=-1), torch.ones_like(maps[..., 0]))


@pytest.mark.parametrize("queries", ["class", "all"])
@pytest.mark.parametrize("axis", ["width", "height"])
def test_maps_of_padded_samples_are_as_if_cut(axis: str, queries: str) -> None:
    lengths, model = LENGTHS[axis], SepTr(**BASE).double().eval()
    x = padded(lengths, axis)
    found = model.attention_maps(x, torch.tensor(lengths), lengths_axis=axis, queries=queries)
    for sample, length in enumerate(lengths):
        wanted = cut_model(model, length, axis).attention_maps(cut(x[[sample]], length, axis), queries=queries)
        for ours, theirs in zip(found, wanted, strict=True):
            for name in reference.AXES:
                maps, exact = getattr(ours, name)[[sample]], getattr(theirs, name)
                inside = tuple(slice(size) for size in exact.shape)
                assert relative_error(maps[inside], exact) < 1e-10
                assert maps.count_nonzero() == exact.count_nonzero()


@pytest.mark.parametrize("queries", ["class", "all"])
def test_chunks_do_not_matter(queries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = SepTr(**BASE).double().eval(), spectrograms(BASE, 2)
    whole = model.attention_maps(x, queries=queries)
    monkeypatch.setattr(attention_maps, "_CHUNK_BYTES", 1)
    for ours, theirs in zip(model.attention_maps(x, queries=queries), whole, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert relative_error(left, right) < 1e-12


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made, but for tensors of `expected` elements."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.expected, self.largest = expected, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = (x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(result) if isinstance(x, Tensor))
        self.largest = max([self.largest, *(size for size in sizes if size != self.expected)])
        return result


def test_no_more_than_the_result_and_a_chunk_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of two rows, whose largest tensors are the scores; a row more would show."""
    weights = fold_direct(SepTr(**BASE).blocks[0].transformer_h)
    grid, cls_token, positions = torch.randn(2, 40, 4, 16), torch.randn(2, 16), torch.randn(41, 16)
    row_bytes = 4 * (41 * (2 * 16 + 2 * 2 * 8) + 2 * 2 * 41 * 41)
    monkeypatch.setattr(attention_maps, "_CHUNK_BYTES", 2 * row_bytes)
    result = 2 * 4 * 2 * 41 * 41
    with torch.no_grad(), _Largest(result) as seen:
        maps = attention_maps.maps_along(grid, cls_token, positions, weights, axis="height", queries="all")
    assert maps.numel() == result
    assert seen.largest == 2 * 2 * 41 * 41 > grid.numel()


def test_half_precision_gives_maps_in_float32() -> None:
    model, x = SepTr(**BASE).bfloat16().eval(), spectrograms(BASE, 1, torch.bfloat16)
    wanted = SepTr(**BASE).eval()
    wanted.load_state_dict(model.state_dict())
    for ours, theirs in zip(model.attention_maps(x), wanted.attention_maps(x.float()), strict=True):
        assert ours.height.dtype == torch.float32
        assert relative_error(ours.height, theirs.height) < 0.03
        torch.testing.assert_close(ours.width.sum(dim=-1), torch.ones_like(ours.width[..., 0]))


def tensors(model: SepTr, x: Tensor) -> Iterator[Tensor]:
    for maps in model.attention_maps(x):
        yield from maps


def test_looking_inside_changes_no_result() -> None:
    model, x = SepTr(**BASE).eval(), spectrograms(BASE, 2, torch.float32)
    with torch.no_grad():
        before = model(x)
        kept = [value.clone() for value in x[None]]
        maps = [part.clone() for part in tensors(model, x)]
        model.forward_features(x)
        assert torch.equal(model(x), before)
        assert torch.equal(x, kept[0])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors(model, x), maps, strict=True))


@pytest.mark.parametrize("method", ["forward_features", "attention_maps"])
def test_wrong_inputs_are_refused_as_forward_does(method: str) -> None:
    look = getattr(SepTr(**BASE), method)
    with pytest.raises(ValueError, match="x: expected input_size"):
        look(torch.zeros(1, 2, 6, 8))
    with pytest.raises(ValueError, match="lengths: expected 1 to 9 along the width, got 10"):
        look(torch.zeros(1, 2, 6, 9), [10])
    with pytest.raises(ValueError, match="lengths_axis: expected one of height, width, got 'time'"):
        look(torch.zeros(1, 2, 6, 9), [9], lengths_axis="time")


def test_unknown_queries_are_named() -> None:
    with pytest.raises(ValueError, match="queries: expected one of class, all, got 'some'"):
        SepTr(**BASE).attention_maps(torch.zeros(1, 2, 6, 9), queries="some")


def test_maps_unpack() -> None:
    (height, width), *_ = SepTr(**BASE).attention_maps(torch.zeros(3, 2, 6, 9))
    assert isinstance(SepTr(**BASE).attention_maps(torch.zeros(3, 2, 6, 9))[0], AttentionMaps)
    assert height.shape == (3, 9, 2, 1, 7)
    assert width.shape == (3, 6, 2, 1, 10)
