"""Counted things do not change unseen: what models in use take, against what `counts.json` holds, exactly.

What PyTorch's own operators decide, their number and the bytes that they move and keep, is compared under the
version of PyTorch that it was counted with. Work, launches and what kernels move hold under any.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import counting
from support.counting import BACKENDS, Counts, count
from torch import Tensor

from benchmarks.measuring.counting import Operations
from benchmarks.suite.shapes import IN_USE, SMALL

STORED = Path(__file__).with_name("counts.json")
UPDATE = "python -m pytest tests/network/test_counts.py --update-counts"
VERSION = "counted with PyTorch"
OF_PYTORCH = ("operations", "views", "bytes moved", "bytes held", "bytes saved")
"""How the names of quantities end that a version of PyTorch decides."""

CPU, META, TRITON = "torch, float32, cpu", "torch, float32, meta", "triton, bfloat16, sm_90"


def load() -> dict[str, dict[str, Counts]]:
    """Stored counts by shape and backend."""
    return json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}


def store(counts: dict[str, dict[str, Counts]]) -> None:
    STORED.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def torch_version() -> str:
    """PyTorch's version without the mark of a build."""
    return torch.__version__.partition("+")[0]


def differences(name: str, backend: str, stored: Counts, found: Counts) -> list[str]:
    """A sentence for each quantity that is not as stored."""
    return [
        f"{name} | {backend} | {quantity}: {_change(stored.get(quantity), found.get(quantity))}"
        for quantity in sorted({*stored, *found})
        if stored.get(quantity) != found.get(quantity)
    ]


def _change(stored: int | str | None, found: int | str | None) -> str:
    if stored is None or found is None:
        return f"not stored, found {found}" if stored is None else f"stored {stored}, not found"
    if isinstance(stored, str) or isinstance(found, str):
        return f"stored {stored}, found {found}"
    return f"stored {stored}, found {found} ({'more' if found > stored else 'less, which is better: store it'})"


def of_any_version(counts: Counts) -> Counts:
    return {quantity: value for quantity, value in counts.items() if not quantity.endswith(OF_PYTORCH)}


def advice(found: list[str]) -> str:
    return "\n".join([*found, f"where this is meant, update {STORED.name}: {UPDATE}"])


@pytest.fixture(scope="session")
def update(request: pytest.FixtureRequest) -> bool:
    """Whether counts are to be stored in place of being compared."""
    asked: bool = request.config.getoption("--update-counts")
    if asked and hasattr(request.config, "workerinput"):
        pytest.fail("--update-counts writes one file: run it in one process, without -n")
    return asked


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", IN_USE)
def test_counts_are_those_stored(name: str, backend: str, update: bool) -> None:
    if backend.startswith("triton"):
        pytest.importorskip("triton")
    found, stored = count(IN_USE[name], backend), load()
    if update:
        stored.setdefault(name, {})[backend] = {VERSION: torch_version(), **found}
        store(stored)
        return
    expected = dict(stored.get(name, {}).get(backend, {}))
    assert expected, advice([f"{name} | {backend}: nothing is stored"])
    version = expected.pop(VERSION)
    changed = differences(name, backend, of_any_version(expected), of_any_version(found))
    assert not changed, advice(changed)
    if version != torch_version():
        pytest.skip(f"as stored but for {', '.join(OF_PYTORCH)}, compared with PyTorch {version} alone")
    changed = differences(name, backend, expected, found)
    assert not changed, advice(changed)


def test_stored_counts_are_those_of_models_in_use(update: bool) -> None:
    stored = load()
    if update:
        store({name: {backend: stored[name][backend] for backend in BACKENDS} for name in IN_USE})
    places = {(name, backend) for name, counts in load().items() for backend in counts}
    wanted = {(name, backend) for name in IN_USE for backend in BACKENDS}
    assert places == wanted, advice([" | ".join(place) for place in sorted(places ^ wanted)])


@pytest.mark.parametrize(("name", "threads"), [("uneven pooling", 1), ("wide heads", 3)])
def test_fake_tensors_take_the_way_of_a_cpu(name: str, threads: int) -> None:
    fake = counting.torch_on_cpu(SMALL[name])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert counting.torch_in_chunks(SMALL[name]) == fake
    finally:
        torch.set_num_threads(before)


def test_what_cannot_run_is_stored_with_the_reason() -> None:
    pytest.importorskip("triton")
    too_wide = count({**SMALL["square"], "dim": 272}, TRITON)
    assert too_wide == {"not counted": "Triton kernels take up to 256 features of a token and of a head, not 272"}
    assert "too many chunks" in str(count({"input_size": (512, 512)}, CPU)["not counted"])


def test_operations() -> None:
    x = torch.ones(8, 16)
    with Operations() as found:
        y = x @ x.t()
        y.relu_()
        y.addmm_(x, x.t())
        torch.empty(3)
    assert (found.operations, found.views) == (4, 2)
    assert found.flops == 2 * (2 * 8 * 8 * 16)
    assert found.bytes_moved == 4 * (2 * (2 * 128 + 64) + 64)


Planted = Callable[[Callable[..., Any]], Callable[..., Any]]


class _KeepsMore(torch.autograd.Function):
    """Nothing but a tensor more to keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone())
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def one_operation_more(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs) + 0


def one_tensor_more(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: _KeepsMore.apply(function(*args, **kwargs))


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: (function(*args, **kwargs), function(*args, **kwargs))[1]


def without_recomputing(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda function, *args, **options: function(*args)


def without_keeping(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, key, parameters, fold, **_: fold()


MLP = "septr_fast.passes.torch.passes.mlp_sublayer"


@pytest.mark.parametrize(
    ("backend", "target", "planted", "quantities"),
    [
        pytest.param(META, MLP, one_operation_more, ("operations", "bytes moved"), id="an operation more"),
        pytest.param(META, MLP, one_tensor_more, ("step, bytes held",), id="a tensor kept"),
        pytest.param(META, MLP, twice, ("forward, FLOPs", "step, FLOPs"), id="a product done twice"),
        pytest.param(
            META,
            "septr_fast.passes.torch.passes.checkpoint",
            without_recomputing,
            ("recomputing step, bytes held",),
            id="nothing recomputed",
        ),
        pytest.param(
            CPU,
            "septr_fast.algebra.fold_cache.FoldCache.get",
            without_keeping,
            ("forward, FLOPs", "forward, operations"),
            id="weights folded anew",
        ),
        pytest.param(
            TRITON,
            "septr_fast.kernels.axis_pass.normalize",
            twice,
            ("forward, launches of normalize", "step, launches", "bytes moved by kernels"),
            id="a launch more",
        ),
        pytest.param(
            TRITON,
            "septr_fast.kernels.axis_pass.attend",
            twice,
            ("forward, FLOPs", "step, executed FLOPs", "forward, launches of axis_attention_fwd"),
            id="attention done twice",
        ),
        pytest.param(
            TRITON,
            "septr_fast.passes.triton.passes.mlp_hidden",
            one_tensor_more,
            ("step, bytes held", "step, bytes saved"),
            id="a tensor kept beside kernels",
        ),
    ],
)
def test_planted_growth_is_found(
    backend: str, target: str, planted: Planted, quantities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == TRITON:
        pytest.importorskip("triton")
    config = {"input_size": (12, 8), "depth": 2, "heads": 2, "dim_head": 16, "mlp_dim": 32, "dim": 16}
    before = count(config, backend)
    monkeypatch.setattr(target, planted(pkgutil.resolve_name(target)))
    found = differences("planted", backend, before, count(config, backend))
    for quantity in quantities:
        assert any(quantity in line and line.endswith("(more)") for line in found), found


def test_differences_say_what_to_do() -> None:
    stored: Counts = {"step, FLOPs": 10, "step, launches": 3, "step, launches of mlp_fwd": 3}
    found: Counts = {"step, FLOPs": 12, "step, launches": 2, "step, launches of mlp_bwd": 2}
    assert advice(differences("default", TRITON, stored, found)).splitlines() == [
        "default | triton, bfloat16, sm_90 | step, FLOPs: stored 10, found 12 (more)",
        "default | triton, bfloat16, sm_90 | step, launches: stored 3, found 2 (less, which is better: store it)",
        "default | triton, bfloat16, sm_90 | step, launches of mlp_bwd: not stored, found 2",
        "default | triton, bfloat16, sm_90 | step, launches of mlp_fwd: stored 3, not found",
        f"where this is meant, update counts.json: {UPDATE}",
    ]
