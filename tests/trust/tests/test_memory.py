"""Every kernel stays in its memory, and whatever leaves it in a planted way is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from septr_fast.kernels import (
    attention,
    attention_backward,
    attention_key_backward,
    class_attention_kernels,
    fused_attention,
    launch,
    low_rank_backward_kernels,
    low_rank_kernels,
    mlp,
    mlp_backward,
    normalization,
)
from trust.outcome import ShortForm
from trust.parts import memory
from trust.traced import needed

pytestmark = pytest.mark.usefixtures("one_thread")
MODULES = (
    attention,
    attention_backward,
    attention_key_backward,
    class_attention_kernels,
    fused_attention,
    low_rank_backward_kernels,
    low_rank_kernels,
    mlp,
    mlp_backward,
    normalization,
)
Change = Callable[[launch.Launch, torch.device], None]


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


def test_memory(short_form: ShortForm) -> None:
    outcome = short_form(memory)
    assert outcome.wrong == []
    assert outcome.tried >= memory.SHORT
    kernels = {name for module in MODULES for name in vars(module) if name.endswith("_kernel")}
    by_kernel = outcome.figures["launches by kernel"]
    assert {row["kernel"] for row in by_kernel} == kernels
    of_several = {row["kernel"] for row in by_kernel if row["of more than one program"]}
    assert of_several >= {"normalize_kernel", "normalize_bwd_kernel", "mlp_fwd_kernel", "mlp_bwd_kernel"}
    assert outcome.figures["launches of more than one program"] >= 0.4 * outcome.tried


def one_token_more(described: launch.Launch, device: torch.device) -> None:
    changed = {**described.arguments, "tokens": described.arguments["tokens"] + 1}
    RUN(replace(described, arguments=changed), device)


def one_row_for_all(described: launch.Launch, device: torch.device) -> None:
    _, _, *rest = described.arguments["out_strides"]
    RUN(replace(described, arguments={**described.arguments, "out_strides": (0, 0, *rest)}), device)


def one_program_less(described: launch.Launch, device: torch.device) -> None:
    RUN(replace(described, programs=described.programs - 1), device)


def a_byte_in_front(described: launch.Launch, device: torch.device) -> None:
    RUN(described, device)
    out = described.arguments["out_ptr"]
    out.as_strided((1,), (1,), out.storage_offset() - 1).fill_(1)


def another_result_each_time(described: launch.Launch, device: torch.device) -> None:
    RUN(described, device)
    TIMES.append(1)
    described.arguments["out_ptr"].mul_(1 + len(TIMES))


RUN = launch.run
TIMES: list[int] = []
FAULTS: list[tuple[str, Change, str]] = [
    ("normalize", one_token_more, "out of bounds"),
    ("axis_attention_fwd", one_row_for_all, "written by two programs"),
    ("axis_attention_fwd", one_program_less, "poison in"),
    ("axis_attention_fwd", a_byte_in_front, "bytes outside of a tensor"),
    ("axis_attention_fwd", another_result_each_time, "other bits in"),
    ("axis_attention_fwd", one_program_less, "of out_ptr untouched"),
    ("axis_attention_bwd_key", one_program_less, "of grad_k_ptr untouched"),
    ("axis_attention_bwd_query", one_program_less, "of grad_q_ptr untouched"),
    ("class_query_bwd", one_program_less, "class_query_bwd leaves"),
    ("mlp_bwd", one_program_less, "of activated_ptr untouched"),
]


@pytest.mark.parametrize(("name", "change", "found"), FAULTS, ids=[found for *_, found in FAULTS])
def test_planted_faults_are_found(name: str, change: Change, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(described: launch.Launch, device: torch.device) -> None:
        (change if described.name == name else RUN)(described, device)

    monkeypatch.setattr(launch, "run", run)
    seen = memory.Traced()
    memory.trace_case(small(), seen, orders=1)
    assert any(found in problem for problem in seen.wrong), seen.wrong


def small() -> memory.Drawn:
    """The first merged pass with more than one sequence."""
    numbers = range(0, 100 * len(memory.KINDS), len(memory.KINDS))
    drawn = (memory.draw(number) for number in numbers)
    return next(one for one in drawn if "2 rows, length 2" in one.name and "padded" not in one.name)


PARTIAL: dict[str, str] = {
    "class_attention_bwd": "class-only",
    "low_rank_fwd": "low-rank",
    "low_rank_bwd_class_key": "low-rank",
    "low_rank_bwd": "low-rank",
}
"""Kernels that never touch all of their arguments, and passes of theirs."""


@pytest.mark.parametrize("name", PARTIAL)
def test_elements_that_need_not_be_touched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its own rule a kernel is found to leave some; with a program less some of those that it needs."""
    drawn = next(one for one in map(memory.draw, range(100)) if PARTIAL[name] in one.name and "length 15" in one.name)
    seen = memory.Traced()
    memory.trace_case(drawn, seen, orders=0)
    assert seen.wrong == []
    with monkeypatch.context() as patches:
        patches.delitem(needed.RULES, name)
        memory.trace_case(drawn, seen, orders=0)
    assert any(f"{name} leaves" in problem for problem in seen.wrong), seen.wrong
    less = memory.Traced()
    monkeypatch.setattr(launch, "run", lambda one, device: (one_program_less if one.name == name else RUN)(one, device))
    memory.trace_case(drawn, less, orders=0)
    assert any(f"{name} leaves" in problem for problem in less.wrong), less.wrong


def test_elements_that_are_touched_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the padding, which a kernel may load in its last tile alone."""
    is_padded = "merged, width, batch 2, 1 rows, length 33"
    drawn = next(
        one for one in map(memory.draw, range(2000)) if is_padded in one.name and "padded along the width" in one.name
    )

    def run(described: launch.Launch, device: torch.device) -> None:
        valid = described.arguments.get("valid_ptr")
        if described.name != "axis_attention_fwd" or valid is None:
            RUN(described, device)
            return
        kept = valid.clone()
        valid.fill_(33)
        RUN(described, device)
        valid.copy_(kept)

    monkeypatch.setattr(launch, "run", run)
    seen = memory.Traced()
    memory.trace_case(drawn, seen, orders=0)
    assert any("elements that it does not need" in problem for problem in seen.wrong), seen.wrong
