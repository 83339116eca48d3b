"""What kills mutants: cases of the corpus, each with the functions of kernels that it calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from septr_fast.kernels import launch, mlp_backward
from septr_fast.kernels.mlp import mlp
from support.compare import pair, relative_error
from support.judging import FaultError, Triple, judge
from support.kernels import attention_cases, mlp_cases, pass_cases
from support.kernels.attention_cases import FORMS
from torch import Tensor
from torch.nn.modules import module as modules

from benchmarks.suite.shapes import SMALL
from septr_fast.algebra.folded import Direct, Folded, LowRank, Merged, Mlp
from septr_fast.algebra.plan import WRITTEN
from septr_fast.passes import dispatch
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import chunks
from trust.far import far_parts
from trust.fuzzing.cases import FORMULATIONS, ModelCase, OperatorCase, PassCase
from trust.fuzzing.draws import models, operators, passes
from trust.fuzzing.models import check_model, check_torch_pass
from trust.fuzzing.operators import TILES, attention_triple, check_triton_pass, operator_triple
from trust.mutants import planting
from trust.mutants.loads import loaded_once
from trust.mutants.mutators import Site
from trust.outcome import Progress
from trust.parts import accuracy, addressing, memory

TESTS = Path(__file__).resolve().parents[2]
FILES = (
    *("network/test_submodules.py", "network/test_surgery.py"),
    *("algebra/test_folding.py", "algebra/test_reading.py", "passes/test_merged_training.py"),
)
"""Tests that are cases."""
ADDRESSING = "addressing"
PADDED = "padded tiles"
CPU = torch.device("cpu")
SLICES = attention_cases.tiles(block_c=16)
"""Configurations in which the features of a token are summed up in slices."""
SWITCHED = {**attention_cases.tiles(heads_together=True), **mlp_cases.RELOADING}
"""Those in which a program takes all heads that share keys, and in which n(y) is read again."""


_HOOKS: dict[str, Callable[[Any], Any]] = {
    "none": lambda layer: None,
    "before": lambda layer: layer.register_forward_pre_hook(lambda _, given: (2 * given[0],)),
    "behind": lambda layer: layer.register_forward_hook(lambda _, __, out: 2 * out),
    "of all modules": lambda layer: modules.register_module_forward_hook(
        lambda module, _, out: 2 * out if module is layer else None
    ),
}


@dataclass(frozen=True)
class Case:
    """A check that raises where it finds a fault.

    Attributes:
        kind: what it is a case of: cases of all kinds are taken in turn.
        name: of the check.
        check: without a value.
        like: what cases have in common that do alike: one of them is run to know it.
    """

    kind: str
    name: str
    check: Callable[[], object]
    like: str = ""


@dataclass(frozen=True)
class Profile:
    """What a case does on code without a fault.

    Attributes:
        case: that ran.
        calls: functions with mutants that it called.
        seconds: that it took.
    """

    case: Case
    calls: frozenset[Site]
    seconds: float


def cases(full: bool) -> Iterator[Case]:
    """In the long form cases of the parts that compare values, trace memory or spread tensors.

    Else passes alone, those whose tiles of keys are padded among them.
    """
    for source, strategy, check, counts in (
        ("operators", operators(), _operator, (0, 150)),
        ("passes on Triton", passes("triton"), _triton_pass, (0, 100)),
        ("passes on PyTorch", passes("torch"), check_torch_pass, (8, 60)),
        ("models on PyTorch", models("torch"), check_model, (2, 60)),
        ("merged training", passes("torch").map(_merged_pass), _in_chunks, (4, 20)),
        ("merged training of models", models("torch").map(_merged_model), _in_chunks_of_a_row, (0, 20)),
    ):
        for number, drawn in enumerate(_drawn(strategy, counts[full]) if counts[full] else ()):
            yield Case(f"{source}: {_kind(drawn)}", f"{source} {number}: {drawn}", partial(check, drawn))
    change, length = (pass_cases.sharpened, 35) if full else (lambda case: case, 18)
    for kind, fused in (*((kind, 0) for kind in FORMULATIONS), ("merged", 1)):
        yield Case("whole passes", f"whole passes: {kind}, fused {fused}", partial(_whole, kind, fused, change, length))
    for name, register in _HOOKS.items():
        yield Case("hooks", f"hooks: {name}", partial(_hooked, register))
    for kind, name, check in _special():
        if full or kind == PADDED:
            yield Case(kind, name, check)
    if not full:
        return
    for number in range(4 * len(memory.KINDS)):
        kind = f"memory: {memory.KINDS[number % len(memory.KINDS)]}"
        yield Case(kind, f"memory {number}", partial(_traced, number))
    for moment in (*addressing.moments(rows=3, heads=3), *addressing.in_slices(rows=3, heads=3)):
        for pointer, dimension in addressing.places(moment, every=True):
            name = f"addressing: {moment.name}, {pointer}, dimension {dimension}"
            kind = ADDRESSING if moment.tensors[pointer].stride(dimension) else "addressing of what is expanded"
            yield Case(kind, name, partial(_far, moment, pointer, dimension), like=moment.name)
        if moment.described.name in far_parts.KERNELS:
            yield Case(ADDRESSING, f"addressing: {moment.name}, parts", partial(_far_parts, moment))
    for file in FILES:
        yield Case(f"tests: {file}", file, partial(_tests, file))


def _special() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """What is seldom drawn: whole tiles of keys that are padded, wide tiles, a class of scores; by kind and name."""
    for formulation in ("direct", "merged"):
        padded = accuracy.pass_case(formulation, ("float32", "float32"), 1.0)
        padded = replace(padded, shape=(2, 2, 32), padded=padded.axis)
        yield PADDED, f"{PADDED}: {padded}", partial(_triton_pass, padded)
    wide = replace(accuracy.operator_case("mlp", ("float32", "float32"), 1.0), shape=(1, 2, 17), dim=136)
    yield "wide tiles", f"wide tiles: {wide}", partial(_operator, wide)
    attention = accuracy.operator_case("axis_attention", ("float32", "float32"), 1.0)
    slices = replace(attention, shape=(1, 2, 7), dim=33, seed=1)
    yield "attention in slices", f"attention in slices: {slices}", partial(_operator, slices)
    for name in ("merged", "direct"):
        yield "scores far below zero", f"scores far below zero: {name}", partial(_far_below_zero, name)
    yield "scores far above zero", "scores far above zero: the class token's, low-rank", _class_key_far_above_zero
    yield "residual stream", "residual stream: as it is kept", _as_kept
    for name in ("merged", "direct"):
        for tiles in (TILES, {**TILES, **SWITCHED}):
            switched = "heads together" if tiles is not TILES else "heads apart"
            yield "keys of one tile", f"keys of one tile: {name}, {switched}", partial(loaded_once, FORMS[name], tiles)
    yield "two accumulators", "two accumulators: as on Blackwell", _in_two_accumulators
    yield "GELU in 16 bits", "GELU in 16 bits: no error function", _without_an_error_function
    for length in (7, 19):
        yield "Δ beyond float16", f"Δ beyond float16: {length} keys", partial(_beyond_float16, length)


def profiled(all_cases: Sequence[Case], progress: Progress) -> list[Profile]:
    """Run every case, of those that are alike one, on the code as it is.

    Raises:
        FaultError: where a case fails: then it could tell nothing of mutants.
    """
    found: dict[str, Profile] = {}
    for case in all_cases:
        if case.like not in found:
            found[case.like or case.name] = _profile(case)
            progress(0)
    return [replace(found[case.like or case.name], case=case) for case in all_cases]


def _profile(case: Case) -> Profile:
    start = time.monotonic()
    with planting.called() as calls:
        try:
            case.check()
        except Exception as error:
            raise FaultError(f"{case.name} fails on code without a mutant: {error}") from error
    return Profile(case, frozenset(calls), time.monotonic() - start)


def _drawn(strategy: SearchStrategy[Any], count: int) -> list[Any]:
    found: list[Any] = []

    @seed(1)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def draw(case: Any) -> None:
        found.append(case)

    draw()
    return found


def _kind(case: OperatorCase | PassCase | ModelCase) -> str:
    """What a case is of, and how it is padded or, of a model, its dtype."""
    if isinstance(case, OperatorCase):
        return f"{case.operator} {case.form}"
    if isinstance(case, ModelCase):
        return f"{'planned' if case.formulations is None else case.formulations[0]} in {case.dtypes[0]}"
    padded = "not" if case.padded is None else "along" if case.padded == case.axis else "across"
    return f"{case.formulation}, padded {padded}"


def _merged_pass(case: PassCase) -> PassCase:
    """As `merged_training` takes it."""
    return replace(case, formulation="merged", dtypes=("float32", "float32"), padded=None)


def _merged_model(case: ModelCase) -> ModelCase:
    formulations = ("merged",) * (2 * case.depth)
    return replace(case, formulations=formulations, dtypes=("float32", "float32"), padded=None)


def _in_chunks(case: PassCase) -> None:
    """In chunks of one row or of two."""
    row = (1 + case.shape[2]) * case.heads * case.dim * 4
    with mock.patch.object(chunks, "CPU_TRAINING_CHUNK_BYTES", (1 + case.seed % 2) * row):
        check_torch_pass(case)


def _in_chunks_of_a_row(case: ModelCase) -> None:
    with mock.patch.object(chunks, "CPU_TRAINING_CHUNK_BYTES", 1):
        check_model(case)


def _operator(case: OperatorCase) -> bool:
    """As in the fuzzing, every second attention in slices of features, every fourth with heads together."""
    with launch.override({**TILES, **(SLICES if case.seed % 2 else {} if case.seed % 4 else SWITCHED)}):
        return judge(lambda number: operator_triple(case, number), case.seed)


def _triton_pass(case: PassCase) -> bool:
    """As in the fuzzing, every second attention in one kernel with its projections."""
    form = launch.Config({"FUSED": case.seed % 2})
    return check_triton_pass(case, tiles={**TILES, "attention_form": form})


def _hooked(register: Callable[[Any], Any]) -> None:
    """A model whose layers may have hooks: with them it runs as written, without it is folded."""
    torch.manual_seed(0)
    expected, model = pair({**SMALL["wide"], "channels": 3}, formulation="merged")
    handles = [register(one.transformer[0].transformer_h.layers[0][0].fn.to_qkv) for one in (expected, model)]
    x = torch.randn(1, 3, *expected.transformer[0].input_size, dtype=torch.float64)
    try:
        written = model.plan().steps[0].formulation == WRITTEN
        if written is (handles[0] is None) or relative_error(model(x), expected(x)) > 1e-10:
            raise FaultError("hooks")
    finally:
        for handle in filter(None, handles):
            handle.remove()


def _whole(kind: str, fused: int, change: Callable[[pass_cases.Case], pass_cases.Case], length: int) -> None:
    """A pass over sequences of `length`, after a `change` as that to scores that lie far apart."""
    classes = {"direct": Direct, "merged": Merged, "low-rank": LowRank, "class-only": Direct}

    def draw(seed: int) -> Triple:
        torch.manual_seed(seed)
        drawn = pass_cases.draw(classes[kind], "width", CPU, shape=(2, 3, length), class_only=kind == "class-only")
        case = change(drawn)
        gradients = case.output_gradients()
        exact = case.changed(Tensor.double, torch.float64)
        results, plain = (pass_cases.step(case, backend, gradients) for backend in ("triton", "torch"))
        return results, plain, pass_cases.step(exact, "torch", gradients)

    with launch.override({**TILES, "attention_form": launch.Config({"FUSED": fused})}):
        judge(draw, 1)


def _traced(number: int) -> None:
    seen = memory.Traced()
    memory.trace_case(memory.draw(number), seen, orders=1)
    if seen.wrong:
        raise FaultError(seen.wrong[0])


def _far(moment: addressing.Moment, pointer: str, dimension: int) -> None:
    found = addressing.fault(moment, addressing.replayed(moment, moment.tensors)[0], pointer, dimension)
    if found is not None:
        raise FaultError(found)


def _far_below_zero(name: str) -> None:
    """All scores so low that the exponential of one of zero, of a key that is none, is infinite."""
    form = FORMS[name]

    def draw(seed: int) -> Triple:
        torch.manual_seed(seed)
        inputs = attention_cases.draw_far_below_zero(form, CPU)
        return attention_triple(inputs, form, "width", attention_cases.output_gradients(inputs, form.heads, "width"))

    with launch.override(TILES):
        judge(draw, 4)


def _class_key_far_above_zero() -> None:
    """Scores of the class token's key so high that the exponential of one, of a query that is none, is infinite."""
    torch.manual_seed(1)
    drawn = pass_cases.draw(LowRank, "width", CPU, shape=(1, 2, 7))
    pixels = drawn.tensors["pixels"].detach().requires_grad_()
    assert drawn.tables is not None
    tables = torch.func.functional_call(drawn.tables, pass_cases._behind("attention.", drawn.tensors), ())
    bias = tables.position_bias.detach().unflatten(0, (tables.heads, -1)).clone()
    bias[:, 0] += 400
    attention = replace(tables, position_bias=bias.flatten().requires_grad_())
    mlp_weights = Mlp(**pass_cases._values("mlp.", drawn.tensors, Mlp))
    with launch.override(TILES):
        grid, cls_token = dispatch.low_rank_pass(
            pixels, Folded(attention, mlp_weights), Settings("width", backend="triton")
        )
        found = torch.autograd.grad(grid.sum() + cls_token.sum(), (pixels, attention.position_bias))
    if not all(x.isfinite().all() for x in (grid, cls_token, *found)):
        raise FaultError("a result or gradient is not finite")


def _in_two_accumulators() -> None:
    """A merged pass whose gradients of keys, which are values too, are added up in the end."""
    with mock.patch.object(launch, "architecture", return_value=launch.UNCHAINED[0]):
        _whole("merged", 0, lambda case: case, 18)


def _without_an_error_function() -> None:
    """In 16 bits the GELU is no dearer than they need, backward as forward."""
    torch.manual_seed(1)
    original = mlp_backward.normal_distribution

    def cheap(h: Any, EXACT: Any) -> Any:
        if EXACT:
            raise FaultError("the error function is computed in 16 bits")
        return original(h, EXACT)

    drawn = mlp_cases.draw((1, 1, 7, 16), 16, CPU, torch.float16, torch.float16)
    with launch.override(TILES), mock.patch.object(mlp_backward, "normal_distribution", cheap):
        mlp_cases.kernel(drawn)


def _as_kept() -> None:
    """The MLP of a sum in float16 is that of the sum which it keeps for the backward pass, to the bit."""
    torch.manual_seed(1)
    drawn = mlp_cases.draw((1, 2, 7, 24), 24, CPU, torch.float16, torch.float16)
    kept, z, again, of_kept = (torch.empty_like(drawn.x) for _ in range(4))
    with launch.override(TILES):
        mlp(drawn.x, drawn.pos, drawn.branch, *drawn.weights(), mlp_cases.EPS, kept, z)
        mlp(kept, None, None, *drawn.weights(), mlp_cases.EPS, again, of_kept)
    if not (torch.equal(kept, again) and torch.equal(z, of_kept)):
        raise FaultError("other values than those of what is kept")


def _beyond_float16(length: int) -> None:
    """Values and gradients so large that Δ, in float32, is no number of float16, though every gradient is one."""
    torch.manual_seed(1)
    form = FORMS["direct"]
    inputs = attention_cases.draw(form, (1, 2, length), 16, CPU, torch.float16)
    inputs = inputs._replace(value=256 + 16 * inputs.value, cls_value=256 + 16 * inputs.cls_value)
    gradients = [256 + 16 * x for x in attention_cases.output_gradients(inputs, form.heads, "width")]
    exact = attention_cases.step(
        attention_cases.plain_attention, inputs.changed(Tensor.double), form.heads, "width", gradients
    )
    with launch.override(TILES):
        found = attention_cases.step(attention_cases.axis_attention, inputs, form.heads, "width", gradients)
    for name in inputs.given():
        error = relative_error(found[name].double(), exact[name])
        if not error < torch.finfo(torch.float16).eps:
            raise FaultError(f"{name}: relative error {error:.3g}")


def _far_parts(moment: addressing.Moment) -> None:
    found = far_parts.fault(moment.described, moment.tensors)
    if found is not None:
        raise FaultError(found)


def _tests(file: str) -> None:
    status = pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / file)])
    if status != 0:
        raise FaultError(f"{file} fails")
