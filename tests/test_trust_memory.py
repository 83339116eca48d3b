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
    class_attention_kernels,
    fused_attention,
    launch,
    low_rank_backward_kernels,
    low_rank_kernels,
    mlp,
    normalization,
)
from trust import memory
from trust.outcome import silent

pytestmark = pytest.mark.usefixtures("one_thread")
MODULES = (
    attention,
    attention_backward,
    class_attention_kernels,
    fused_attention,
    low_rank_backward_kernels,
    low_rank_kernels,
    mlp,
    normalization,
)
Change = Callable[[launch.Launch, torch.device], None]


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the interpreter runs on a CPU alone")


def test_memory() -> None:
    outcome = memory.run(full=False, progress=silent)
    assert outcome.wrong == []
    assert outcome.tried >= memory.SHORT
    kernels = {name for module in MODULES for name in vars(module) if name.endswith("_kernel")}
    assert set(outcome.figures["launches by kernel"]) == kernels


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
    ("axis_attention_fwd", one_program_less, "bytes, its tensors have"),
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
    return next(one for one in drawn if "2 rows, length 2" in one.name and not one.padded)
