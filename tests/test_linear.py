"""The product on oneDNN against `torch.nn.functional.linear`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from septr_fast import linear as module
from septr_fast.linear import linear

SHAPES = [(1, 1, 1), (7, 3, 5), (130, 256, 1280), (65, 1280, 256), (3, 17, 1)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_equals_linear(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    x, weight = torch.randn(2, rows, inputs), torch.randn(outputs, inputs)
    offset = torch.randn(outputs) if bias else None
    exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    scale = x.norm(dim=-1).max() * weight.norm(dim=-1).max()
    with torch.no_grad():
        result = linear(x, weight, offset)
    assert result.shape == exact.shape
    assert result.is_contiguous()
    assert (result - exact).abs().max() < 1e-6 * scale
    assert torch.equal(linear(x, weight, offset), F.linear(x, weight, offset)), "with gradients it is the same"


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "empty"])
def test_layouts(layout: str) -> None:
    x = {
        "transposed": torch.randn(12, 8).t(),
        "sliced": torch.randn(9, 24)[::2, ::2],
        "expanded": torch.randn(1, 12).expand(5, 12),
        "empty": torch.randn(0, 12),
    }[layout]
    weight = torch.randn(12, 6).t()
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_work_is_counted() -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear(torch.randn(3, 5, 8), torch.randn(7, 8), torch.randn(7))
    assert counter.get_total_flops() == 2 * 15 * 8 * 7


def test_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HAS_ONEDNN", True)
    x = torch.zeros(2, 2)
    assert not module._runs_on_onednn(x)
    with torch.no_grad():
        assert module._runs_on_onednn(x)
        for other in (x.double(), x.bfloat16(), x[:0], x.to("meta")):
            assert not module._runs_on_onednn(other)
        monkeypatch.setattr(module, "_HAS_ONEDNN", False)
        assert not module._runs_on_onednn(x)
