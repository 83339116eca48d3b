"""Every wrong call of the corpus ends as it should, and the check of a wrong call can fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")

from trust.outcome import ShortForm
from trust.parts import bad_input
from trust.wrong import calls as wrong_calls
from trust.wrong.calls import Subject, WrongCall

from septr_fast import model
from septr_fast.passes import lengths


@pytest.fixture(scope="module", autouse=True)
def _interpreted(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("runs in the interpreter")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return wrong_calls.subject(tmp_path_factory.mktemp("subject"))


@pytest.mark.usefixtures("one_thread")
def test_wrong_calls(short_form: ShortForm) -> None:
    outcome = short_form(bad_input)
    assert outcome.wrong == []
    assert outcome.tried >= 390


def refuse(_: Subject) -> None:
    raise ValueError("x: expected something else")


def launch_and_refuse(on: Subject) -> None:
    with torch.no_grad():
        on.model(on.x[:1])
    refuse(on)


def change_a_bit(on: Subject) -> None:
    with torch.no_grad():
        on.model.fc.bias[0] = -on.model.fc.bias[0]
    refuse(on)


def change_the_mode(on: Subject) -> None:
    on.model.transformer[0].train(not on.model.transformer[0].training)
    refuse(on)


def forget_the_kept_weights(on: Subject) -> None:
    on.model.blocks[0]._cache._entry = None
    refuse(on)


def leave_half_a_file(on: Subject) -> None:
    (on.folder / ".new.st.partial").touch()
    refuse(on)


FAULTS: list[tuple[Callable[[Subject], object], str]] = [
    (lambda on: None, "no error"),
    (lambda on: {}["x"], "expected ValueError, got KeyError"),
    (lambda on: int("4.5"), "expected 'x: expected' in the message"),
    (launch_and_refuse, "kernels were launched"),
    (change_a_bit, "it changed fc.bias"),
    (change_the_mode, "it changed attributes of transformer.0"),
    (forget_the_kept_weights, "it changed weights kept by block 0"),
    (leave_half_a_file, "it changed half-written files"),
]


@pytest.mark.parametrize(("call", "found"), FAULTS, ids=[found for _, found in FAULTS])
def test_planted_faults_are_found(call: Callable[[Subject], object], found: str, subject: Subject) -> None:
    fault = wrong_calls.fault(WrongCall("planted", ValueError, "x: expected", call), subject)
    assert fault is not None
    assert fault.startswith(f"planted: {found}")


def test_a_right_refusal_is_right(subject: Subject) -> None:
    assert wrong_calls.fault(WrongCall("right", ValueError, "x: expected", refuse), subject) is None


def test_a_missing_check_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its check the pass on Triton kernels reads positions that are not there, or says nothing of use."""
    from septr_fast.passes import dispatch

    monkeypatch.setattr(dispatch, "_check_grid", lambda *_: None)
    calls = [call for _, call in bad_input.calls() if call.name.startswith("dispatch.axis_pass on torch, grid")]
    assert calls
    assert all(wrong_calls.fault(call, subject) is not None for call in calls)


def test_a_load_that_fails_halfway_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: x.clone() for name, x in subject.model.state_dict().items()}
    monkeypatch.setattr(model, "as_a_whole", lambda *_, **__: nullcontext())
    for call in (call for _, call in bad_input.calls() if call.name.endswith(", more classes")):
        found = str(wrong_calls.fault(call, subject))
        assert found.startswith(f"{call.name}: it changed cls_token, transformer.0.pos_embedding_w")
        subject.model.load_state_dict(before)


def test_lengths_that_cannot_be_checked_stay_within_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels load as many keys as they are told; compiled graphs cannot look at the numbers."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = lengths.read([99, 8, 5, 0, -7], "width", batch=5, size=8, pool=2, device=torch.device("cpu"))
    assert found is not None
    assert found.valid.tolist() == [4, 4, 2, 1, 1]
