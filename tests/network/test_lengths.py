"""Padded batches: every sample gets what it would get alone, cut to its length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.padded import alone
from support.versions import needs_kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from septr_fast.passes import dispatch
from septr_fast.passes.lengths import Lengths, mean_over_rows, read
from septr_fast.tuning.workloads import workloads

BASE = {"channels": 2, "input_size": (6, 9), "depth": 2, "heads": 2, "dim_head": 8, "mlp_dim": 12, "dim": 16}
POOLED = {**SMALL["uneven pooling"], "input_size": (17, 11)}
CASES = {
    "planned": BASE,
    "direct": {**BASE, "formulation": "direct"},
    "merged": {**BASE, "formulation": "merged"},
    "one block": {**BASE, "depth": 1},
    "width first": {**BASE, "first_axis": "width"},
    "one channel": {**BASE, "channels": 1, "first_axis": "width"},
    "single full head": {**BASE, "heads": 1, "dim_head": 16},
    "pooled": POOLED,
}
LENGTHS = {"width": [9, 1, 5, 8], "height": [6, 1, 3, 5]}
POOLED_LENGTHS = {"width": [11, 2, 5, 10], "height": [17, 3, 8, 16]}


def setting(name: str, axis: str) -> tuple[dict[str, Any], list[int]]:
    return CASES[name], (POOLED_LENGTHS if name == "pooled" else LENGTHS)[axis]


def spectrograms(config: dict[str, Any], lengths: list[int], axis: str) -> Tensor:
    """Random float64 spectrograms with NaN and infinity in the padding."""
    x = torch.randn(len(lengths), config["channels"], *config["input_size"], dtype=torch.float64)
    for sample, length in enumerate(lengths):
        padding = x[sample, :, :, length:] if axis == "width" else x[sample, :, length:]
        padding.fill_([float("nan"), float("inf"), -float("inf"), 1e300][sample])
    return x.requires_grad_()


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("name", CASES)
def test_a_padded_sample_is_as_if_cut(name: str, axis: str) -> None:
    config, lengths = setting(name, axis)
    model = SepTr(**config).double()
    x = spectrograms(config, lengths, axis)
    wanted = torch.cat([alone(config, model, x[[index]], length, axis) for index, length in enumerate(lengths)])
    logits = model(x, lengths, lengths_axis=axis)
    assert relative_error(logits, wanted) < 1e-10
    direction = torch.randn_like(logits)
    leaves = [x, *model.parameters()]
    expected = torch.autograd.grad(wanted, leaves, direction, allow_unused=True)
    found = torch.autograd.grad(logits, leaves, direction)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert relative_error(ours, torch.zeros_like(ours) if theirs is None else theirs) < 1e-10, index
    with torch.no_grad():
        assert relative_error(model.eval()(x, torch.tensor(lengths), lengths_axis=axis), wanted) < 1e-10


@pytest.mark.parametrize("axis", ["width", "height"])
def test_recomputing_gives_the_same(axis: str) -> None:
    config, lengths = setting("planned", axis)
    model = SepTr(**config).double()
    x = spectrograms(config, lengths, axis)
    plain = torch.autograd.grad(model(x, lengths, lengths_axis=axis).square().sum(), [x, *model.parameters()])
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x, lengths, lengths_axis=axis).square().sum(), [x, *model.parameters()])
    assert all(relative_error(ours, theirs) < 1e-10 for ours, theirs in zip(again, plain, strict=True))


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("name", ["planned", "width first", "pooled"])
def test_full_lengths_change_no_bit(name: str, axis: str) -> None:
    config, lengths = setting(name, axis)
    model = SepTr(**config)
    x = torch.randn(len(lengths), config["channels"], *config["input_size"], requires_grad=True)
    full = [config["input_size"][axis == "width"]] * len(x)
    leaves = [x, *model.parameters()]
    outcomes = []
    for arguments in ((x,), (x, full), (x, torch.tensor(full, dtype=torch.int32))):
        logits = model(*arguments, lengths_axis=axis)
        outcomes.append([logits, *torch.autograd.grad(logits.square().sum(), leaves)])
    for other in outcomes[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(other, outcomes[0], strict=True))


def test_the_mean_counts_valid_rows_alone() -> None:
    cls_tokens = torch.randn(3, 4, 5)
    lengths = Lengths("width", torch.tensor([4, 1, 3]))
    found = mean_over_rows(cls_tokens, lengths, "height")
    for sample, valid in enumerate([4, 1, 3]):
        torch.testing.assert_close(found[sample], cls_tokens[sample, :valid].mean(0))
    assert torch.equal(mean_over_rows(cls_tokens, lengths, "width"), mean_over_rows(cls_tokens, None, "height"))
    every = Lengths("width", torch.tensor([4, 4, 4]))
    assert torch.equal(mean_over_rows(cls_tokens, every, "height"), mean_over_rows(cls_tokens, None, "height"))


def test_training_step_in_autocast_and_compiled() -> None:
    model = SepTr(**BASE)
    x, lengths = torch.randn(4, 2, 6, 9), torch.tensor(LENGTHS["width"])
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(model(x, lengths), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, lengths), model(x, lengths), rtol=1e-5, atol=1e-6)


GPU = torch.device("cuda")


def test_lengths_travel_out_of_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    done: list[object] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: done.append("pinned") or x)
    monkeypatch.setattr(Tensor, "to", lambda x, *to, **how: done.append((*to, how)) or x)
    assert read([3, 9], "width", batch=2, size=9, pool=1, device=GPU) is not None
    assert done[-2:] == ["pinned", (GPU, {"non_blocking": True})]


def test_a_captured_graph_takes_lengths_that_are_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="lengths: expected a tensor on cuda while a CUDA graph is captured"):
        read([3, 9], "width", batch=2, size=9, pool=1, device=GPU)


class _LargestMask(TorchDispatchMode):
    """Most elements of a boolean tensor that an operation made."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        masks = (x for x in tree_leaves(result) if isinstance(x, Tensor) and x.dtype == torch.bool)
        self.largest = max([self.largest, *(mask.numel() for mask in masks)])
        return result


def test_no_mask_is_as_large_as_the_scores() -> None:
    model, x = SepTr(**{**BASE, "input_size": (8, 64)}).eval(), torch.randn(2, 2, 8, 64)
    with torch.no_grad(), _LargestMask() as masks:
        model(x, [64, 40])
    assert 0 < masks.largest <= 2 * 2 * 8 * 65


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([9, 9, 9], ValueError, "one for each of 2 samples, got shape \\(3,\\)"),
        ([[9], [9]], ValueError, "got shape \\(2, 1\\)"),
        ([9, 0], ValueError, "expected 1 to 9 along the width, got 0 for sample 1"),
        ([-1, 9], ValueError, "got -1 for sample 0"),
        ([9, 10], ValueError, "got 10 for sample 1"),
        ([9.0, 8.0], TypeError, "expected integers, got torch.float32"),
        (torch.tensor([True, True]), TypeError, "expected integers, got torch.bool"),
        (torch.tensor([1j, 1j]), TypeError, "expected integers, got torch.complex64"),
    ],
    ids=["too many", "two dimensions", "none", "negative", "too long", "floats", "booleans", "complex"],
)
def test_wrong_lengths_are_named(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SepTr(**BASE)(torch.randn(2, 2, 6, 9), lengths)


def test_less_than_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 to 11 along the width, got 1"):
        SepTr(**POOLED)(torch.randn(1, 3, 17, 11), [1])
    with pytest.raises(ValueError, match="lengths_axis: expected one of height, width, got 'time'"):
        SepTr(**BASE)(torch.randn(1, 2, 6, 9), [9], lengths_axis="time")


def test_an_incomplete_token_is_padding() -> None:
    found = read([11, 4], "width", batch=2, size=11, pool=4, device=torch.device("cpu"))
    assert found is not None
    assert found.valid.tolist() == [2, 1]
    assert read([11, 9], "width", batch=2, size=11, pool=4, device=torch.device("cpu")) is None


WIDTH = 17
"""Tokens that fill no tile."""


def passes(device: torch.device) -> Iterator[tuple[Any, str]]:
    """One workload of each formulation that Triton runs, and the axis that is padded.

    It is the workload's own, but for the low-rank pass, which takes no padding there.
    """
    config = {**BASE, "channels": 1, "input_size": (2, WIDTH), "dim_head": 16}
    seen = set()
    for workload in workloads(config, [torch.float32], 2, device):
        along = workload.shape.axis == "width"
        if workload.formulation not in seen and along == (workload.formulation != "low-rank"):
            seen.add(workload.formulation)
            yield workload, "width"


def run(workload: Any, backend: str, lengths: Lengths | None) -> dict[str, Tensor]:
    """Results and gradients of a pass with lengths."""
    function = getattr(dispatch, workload.pass_name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, workload.pass_name, lambda *a: function(*a[:-1], replace(a[-1], lengths=lengths)))
        return workload.run(backend)


@needs_kernels
def test_triton_passes(device: torch.device) -> None:
    pytest.importorskip("triton")
    names = []
    for workload, axis in passes(device):
        names.append(workload.formulation)
        lengths = Lengths(axis, torch.tensor([WIDTH, 10], device=device))
        found, wanted = (run(workload, backend, lengths) for backend in ("triton", "torch"))
        for name, exact in wanted.items():
            ours = found[name]
            if name.startswith("grid"):
                ours, exact = (torch.where(inside(x, lengths), x, 0) for x in (ours, exact))
            assert relative_error(ours, exact) < 1e-4, (workload.name, axis, name)
    assert sorted(names) == ["class-only", "direct", "low-rank", "merged"]


def inside(grid: Tensor, lengths: Lengths) -> Tensor:
    """Which tokens of `(batch, height, width, dim)` are valid."""
    places = torch.arange(grid.shape[2 if lengths.axis == "width" else 1], device=grid.device)
    valid = places < lengths.valid[:, None]
    return valid[:, None, :, None] if lengths.axis == "width" else valid[:, :, None, None]


@needs_kernels
def test_full_lengths_change_no_bit_in_triton_passes(device: torch.device) -> None:
    pytest.importorskip("triton")
    for workload, axis in passes(device):
        lengths = Lengths(axis, torch.full((2,), WIDTH, device=device))
        found, wanted = (run(workload, "triton", given) for given in (lengths, None))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), (workload.name, axis)


@needs_kernels
def test_triton_models_are_as_if_cut(device: torch.device) -> None:
    pytest.importorskip("triton")
    config = {**BASE, "backend": "triton", "input_size": (2, 17)}
    model = SepTr(**config).to(device)
    lengths = [17, 7]
    x = torch.randn(2, 2, 2, 17, device=device)
    x[1, :, :, 7:] = float("nan")
    x.requires_grad_()
    wanted = torch.cat([alone(config, model, x[[index]], length, "width") for index, length in enumerate(lengths)])
    logits = model(x, lengths)
    assert relative_error(logits, wanted) < 1e-5
    leaves = [x, *model.parameters()]
    found, expected = (torch.autograd.grad(y.square().sum(), leaves, allow_unused=True) for y in (logits, wanted))
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, torch.zeros_like(ours) if theirs is None else theirs) < 1e-4
    with pytest.raises(RuntimeError, match="along the axis that is not padded"):
        SepTr(**{**config, "first_axis": "width"}).to(device)(x, lengths)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("axis", ["width", "height", None])
def test_batch_invariant(axis: str | None, training: bool) -> None:
    """Every sample has the bits that it has alone, and so have the gradients of the input."""
    model = SepTr(num_classes=3, **BASE, return_cls=True).train(training)
    model.set_batch_invariant()
    x = torch.randn(4, 2, 6, 9, requires_grad=True)
    given = {} if axis is None else {"lengths": LENGTHS[axis], "lengths_axis": axis}
    outputs = model(x, **given)
    (gradient,) = torch.autograd.grad(outputs, x, [torch.ones_like(output) for output in outputs])
    for sample in range(4):
        own = {**given, "lengths": LENGTHS[axis][sample : sample + 1]} if axis else {}
        single = x[sample : sample + 1]
        parts = model(single, **own)
        assert all(torch.equal(whole[sample], part[0]) for whole, part in zip(outputs, parts, strict=True))
        (own_gradient,) = torch.autograd.grad(parts, single, [torch.ones_like(part) for part in parts])
        assert torch.equal(gradient[sample], own_gradient[0])
    assert model(x[:0], **({**given, "lengths": []} if axis else {}))[0].shape == (0, 3)


def test_batch_invariant_says_which_sample_is_wrong() -> None:
    model = SepTr(num_classes=3, **BASE)
    model.set_batch_invariant()
    with pytest.raises(ValueError, match="got 10 for sample 1"):
        model(torch.randn(2, 2, 6, 9), lengths=[9, 10])
