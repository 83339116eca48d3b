"""The short form of the isolation of samples, and that it finds what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from trust.outcome import ShortForm
from trust.parts import isolation

from septr_fast.passes import lengths
from septr_fast.passes.torch import attention, joined


def test_none_wrong(short_form: ShortForm, device: torch.device, one_thread: None) -> None:
    if device.type != "cpu":
        pytest.skip("what is promised is promised on a CPU")
    outcome = short_form(isolation)
    assert outcome.wrong == []
    assert outcome.tried >= 1500


def test_finds_nan_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = attention.normalize
    monkeypatch.setattr(attention, "normalize", lambda *given: normalize(*given).nan_to_num())
    assert isolation.spread(isolation.pass_case("direct", "width", "torch"), "tokens", float("nan"))


def test_finds_what_leaks_between_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = lengths.mean_over_rows

    def leaking(cls_tokens: Tensor, *others: Any) -> Tensor:
        return mean(cls_tokens, *others) + 1e-6 * cls_tokens.mean()

    model, x = isolation.Setting("pooled", torch.float32, "torch", training=False, batch_invariant=False).built()
    assert not any(keys for _, keys in isolation.seen_bits(model, x, training=False))
    monkeypatch.setattr(joined, "mean_over_rows", leaking)
    assert all("class token" in keys for _, keys in isolation.seen_bits(model, x, training=False))
    assert not all(same for key, same in isolation.batch_sizes(model, x, training=False) if key == "class token")
    model.set_batch_invariant()
    assert not any(keys for _, keys in isolation.seen_bits(model, x, training=False))
