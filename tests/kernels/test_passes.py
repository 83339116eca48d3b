"""Whole passes on Triton operators against plain PyTorch: results and every gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.kernels.poison import poisoned_empty
from support.kernels.token_grids import arranged
from torch import Tensor

pytest.importorskip("triton")

from septr_fast.kernels import axis_pass, launch, low_rank_pass, passes
from support.kernels.pass_cases import TILES, Case, check, sharpened, step
from support.kernels.pass_cases import draw as draw_case
from support.tolerance import assert_all_as_good

from septr_fast.algebra.folded import Direct, LowRank, Merged

FORMS: dict[str, dict[str, Any]] = {
    "merged": {"kind": Merged},
    "direct": {"kind": Direct},
    "direct, one full head": {"kind": Direct, "heads": 1, "dim_head": 24},
    "direct, one narrow head": {"kind": Direct, "heads": 1, "dim_head": 4},
    "low-rank": {"kind": LowRank},
    "low-rank, two channels": {"kind": LowRank, "channels": 2},
    "class-only": {"kind": Direct, "class_only": True, "shape": (6, 4, 11)},
    "class-only, one full head": {
        "kind": Direct,
        "class_only": True,
        "heads": 1,
        "dim_head": 24,
        "shape": (6, 4, 11),
    },
}
"""The class token of a sequence is one token: its errors are a matter of chance unless there are many."""

DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32 and float16": (torch.float32, torch.float16),
    "float32 and bfloat16": (torch.float32, torch.bfloat16),
}
"""Of the tokens and of the products."""

EVERY = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
ONE_OF_EACH = pytest.mark.parametrize(
    "form", [FORMS[name] for name in ("merged", "direct", "low-rank")], ids=["merged", "direct", "low-rank"]
)
WITH_CLASS_ONLY = pytest.mark.parametrize(
    "form",
    [FORMS[name] for name in ("merged", "direct", "low-rank", "class-only")],
    ids=["merged", "direct", "low-rank", "class-only"],
)


@pytest.fixture(autouse=True)
def _small_tiles() -> Iterator[None]:
    with launch.override(TILES):
        yield


def draw(form: dict[str, Any], axis: str, device: torch.device, **changes: Any) -> Case:
    return draw_case(**{**form, "axis": axis, "device": device, **changes})


def fused(chosen: bool) -> Any:
    return launch.override({"attention_form": launch.Config({"FUSED": int(chosen)})})


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@WITH_CLASS_ONLY
def test_as_good_as_plain(form: dict[str, Any], dtypes: tuple[torch.dtype, torch.dtype], device: torch.device) -> None:
    check(draw(form, "width", device, residual=dtypes[0], compute=dtypes[1]))


@EVERY
def test_along_the_height(form: dict[str, Any], device: torch.device) -> None:
    check(draw(form, "height", device))


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("dtypes", [DTYPES[name] for name in ("float16", "float32 and bfloat16")], ids=str)
def test_attention_and_projections_in_one_kernel(
    dtypes: tuple[torch.dtype, torch.dtype], axis: str, device: torch.device
) -> None:
    case = draw(FORMS["merged"], axis, device, residual=dtypes[0], compute=dtypes[1])
    with fused(True), launch.capture("fused_attention_fwd") as found:
        check(case)
    assert len(found.launches) == 1


@pytest.mark.parametrize("scale", [0.1, 3.0, 8.0])
@WITH_CLASS_ONLY
def test_at_every_scale(form: dict[str, Any], scale: float, device: torch.device) -> None:
    check(draw(form, "width", device, residual=torch.bfloat16, scale=scale))


@WITH_CLASS_ONLY
def test_scores_far_apart(form: dict[str, Any], device: torch.device) -> None:
    """Exponentials of scores less the highest: less any other, they overflow."""
    rows, length = (4, 35) if form.get("class_only") else (2, 35)
    check(sharpened(draw(form, "width", device, shape=(2, rows, length))))


def test_scores_far_apart_in_one_kernel(device: torch.device) -> None:
    with fused(True):
        check(sharpened(draw(FORMS["merged"], "width", device, shape=(2, 2, 35))))


def test_merged_without_a_projection_of_the_output(device: torch.device) -> None:
    case = draw(FORMS["merged"], "width", device, heads=1)
    projection = {"attention.out_weight": torch.eye(24), "attention.out_bias": torch.zeros(24)}
    plain = replace(case, tensors=case.tensors | {name: x.to(device) for name, x in projection.items()})
    gradients = case.output_gradients()
    case = replace(case, tensors={name: x for name, x in case.tensors.items() if name not in projection})
    found = step(case, "triton", gradients)
    expected = [step(each, "torch", gradients) for each in (plain, plain.changed(Tensor.double, torch.float64))]
    assert_all_as_good(found, *({name: x for name, x in each.items() if name in found} for each in expected))


@ONE_OF_EACH
def test_one_row_at_a_time(form: dict[str, Any], device: torch.device) -> None:
    with launch.override({"chunk": launch.Config({"MIB": 0})}):
        check(draw(form, "height", device))


@ONE_OF_EACH
def test_two_samples_at_a_time(form: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_samples(rows: Tensor, *_: Any) -> Iterator[passes.Chunk]:
        for first in range(0, len(rows), 2):
            yield slice(first, min(first + 2, len(rows))), slice(0, rows.shape[1])

    for module in (axis_pass, low_rank_pass):
        monkeypatch.setattr(module, "chunks", two_samples)
    check(draw(form, "width", device, shape=(3, 2, 7)))


@pytest.mark.parametrize("mib", [0, 1, 5, 128])
@pytest.mark.parametrize("shape", [(3, 128, 128), (64, 16, 9), (5, 1, 4000), (0, 4, 4), (1, 7, 300)])
def test_chunks_cover_every_row_once(shape: tuple[int, int, int], mib: int) -> None:
    features = 1280
    row_bytes = shape[2] * features * 2
    covered = torch.zeros(shape[:2], dtype=torch.int)
    with launch.override({"chunk": launch.Config({"MIB": mib})}):
        for chunk in passes.chunks(torch.empty(*shape, 1, device="meta"), features, torch.bfloat16):
            part = covered[chunk]
            part += 1
            assert part.numel() == 1 or part.numel() * row_bytes <= mib << 20
            assert len(part) == 1 or part.shape[1] == shape[1]
    assert (covered == 1).all()


@pytest.mark.parametrize("batch", [1, 3, 64, 300])
def test_large_batches_make_no_more_chunks(batch: int) -> None:
    rows, features = torch.empty(batch, 128, 128, 1, device="meta"), 1280
    for arch, most in ((90, 8), (86, 16)):
        with launch.record(arch):
            tiles = launch.choose("chunk", rows.device, torch.bfloat16, 1).tiles
            found = list(passes.chunks(rows, features, torch.bfloat16))
        assert tiles["MOST"] == most
        sizes = [(s.stop - s.start) * (r.stop - r.start) for s, r in found]
        assert sum(sizes) == batch * 128
        fitting = (tiles["MIB"] << 20) // (128 * features * 2)
        assert len(found) <= max(most + 1, -(-batch * 128 // fitting))
        assert max(sizes) <= max(fitting, -(-batch * 128 // most))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
@ONE_OF_EACH
def test_any_strides(form: dict[str, Any], layout: str, device: torch.device) -> None:
    """Of the grid, the class token, the positions, the weights and the gradients of the results."""
    case = draw(form, "width", device)

    def strided(x: Tensor) -> Tensor:
        if x.dim() == 4:
            return arranged(x, layout)
        if x.dim() == 2:
            return x.t().contiguous().t()
        return torch.stack([x, x], dim=-1)[..., 0]

    gradients = {
        name: arranged(x, layout) if x.dim() == 4 else x[:1].expand_as(x) for name, x in case.output_gradients().items()
    }
    check(case.changed(strided), gradients)


class Kept:
    """What autograd saves, with copies made when it was saved."""

    def __init__(self) -> None:
        self.tensors: list[tuple[Tensor, Tensor]] = []

    def pack(self, tensor: Tensor) -> Tensor:
        self.tensors.append((tensor.detach(), tensor.detach().clone()))
        return tensor

    def assert_unchanged(self) -> None:
        assert self.tensors
        assert all(torch.equal(tensor, copy) for tensor, copy in self.tensors)


@pytest.mark.parametrize("form", [*FORMS.values(), {"kind": Merged, "fused": True}], ids=[*FORMS, "merged, fused"])
def test_same_bits_whatever_memory_holds_and_nothing_else_changes(form: dict[str, Any], device: torch.device) -> None:
    form = dict(form)
    kept = Kept()
    with fused(form.pop("fused", False)):
        case = draw(form, "width", device, shape=(1, 2, 7))
        before = case.changed(Tensor.clone)
        gradients = case.output_gradients()
        given = {name: x.clone() for name, x in gradients.items()}
        first = step(case, "triton", gradients)
        with poisoned_empty(), torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
            second = step(case, "triton", gradients)
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept.assert_unchanged()
    assert all(torch.equal(case.tensors[name], x) for name, x in before.tensors.items())
    assert all(torch.equal(gradients[name], x) for name, x in given.items())


@pytest.mark.parametrize("axis", ["height", "width"])
@EVERY
def test_empty_batch(form: dict[str, Any], axis: str, device: torch.device) -> None:
    case = draw(form, axis, device, shape=(0, 3, 5))
    found = step(case, "triton", case.output_gradients())
    plain = case.run("torch")
    assert {name: found[name].shape for name in plain} == {name: x.shape for name, x in plain.items()}
    for name, tensor in case.tensors.items():
        assert found[name].shape == tensor.shape
        assert not found[name].any(), name


def chosen_gradients(case: Case, names: list[str], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the operands `names` where no other asks for one."""
    tensors = {name: x.detach().requires_grad_(name in names) for name, x in case.tensors.items()}
    results = replace(case, tensors=tensors).run("triton")
    torch.autograd.backward(list(results.values()), [gradients[name] for name in results])
    assert all((x.grad is not None) == (name in names) for name, x in tensors.items())
    return {name: tensors[name].grad for name in names}


@WITH_CLASS_ONLY
def test_gradients_of_some_operands(form: dict[str, Any], device: torch.device) -> None:
    case = draw(form, "width", device, shape=(1, 2, 5))
    gradients = case.output_gradients()
    expected = step(case, "triton", gradients)
    data = [name for name in case.tensors if "." not in name]
    for names in (data[:1], [name for name in case.tensors if name not in data], ["mlp.hidden_bias"]):
        found = chosen_gradients(case, names, gradients)
        assert all(torch.equal(found[name], expected[name]) for name in names)


@WITH_CLASS_ONLY
def test_gradient_of_one_result(form: dict[str, Any], device: torch.device) -> None:
    """The others' gradients are zeros, or absent."""
    case = draw(form, "width", device, shape=(1, 2, 5))
    gradients = case.output_gradients()
    for name in gradients:
        leaves = case.changed(lambda x: x.detach().requires_grad_())
        leaves.run("triton")[name].backward(gradients[name])
        expected = step(case, "triton", {key: x * (key == name) for key, x in gradients.items()})
        for key, leaf in leaves.tensors.items():
            assert torch.equal(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, expected[key]), key


def test_no_gradients_without_what_they_need(device: torch.device) -> None:
    """Where no gradient can be asked for, nothing is kept; the values are the same."""
    for form in (FORMS["merged"], FORMS["low-rank"]):
        case = draw(form, "width", device, shape=(1, 2, 5))
        leaves = case.changed(lambda x: x.detach().requires_grad_())
        wanted = leaves.run("triton")
        with torch.no_grad():
            found = leaves.run("triton")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("rows", [1, 2])
@WITH_CLASS_ONLY
def test_more_than_65535_sequences(form: dict[str, Any], rows: int, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU: too many programs to interpret")
    check(draw(form, "width", device, shape=(66000 // rows, rows, 2)))
