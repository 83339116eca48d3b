"""Every way of use in docs/migrating.md: trained as before and after, to the same losses and parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import relative_error, spectrograms
from support.originals import SeparableTr, WithClassToken
from torch import Tensor, nn

from septr_fast import SepTr, accelerate

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"mlp_dim": 8, "dim_head": 4, "dim": 8}
USES: dict[str, dict[str, Any]] = {
    "deepfake": {
        "channels": 3,
        "input_size": (19, 13),
        "num_classes": 2,
        "depth": 2,
        "down_sample_input": (4, 4),
        **SMALL,
    },
    "fMRI": {"channels": 7, "input_size": (6, 9), "num_classes": 5, "depth": 1, "heads": 2, **SMALL},
    "ESC-50, pooled": {"input_size": (12, 10), "num_classes": 50, "depth": 2, "down_sample_input": (2, 2), **SMALL},
    "ESC-50, narrow": {
        "input_size": (8, 13),
        "num_classes": 50,
        "depth": 1,
        "heads": 4,
        "mlp_dim": 4,
        "dim_head": 4,
        "dim": 4,
    },
    "benchmark": {"input_size": (8, 8), **SMALL},
}
Optimizer = torch.optim.Optimizer


class Wrapper(nn.Module):
    """What a project puts around the model: it scales the input and keeps the model two levels down."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"septr": model})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["septr"](x / 2)


class AverageOfThree(nn.Module):
    """Three models with their class tokens: the logits' mean, and a second head on the mean of the tokens."""

    def __init__(self, models: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits, tokens = zip(*(model(x) for model in self.models), strict=True)
        return torch.stack(logits).mean(0) + self.head(torch.stack(tokens).mean(0))


def adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)


def train(model: nn.Module, optimizer: Optimizer, x: Tensor, steps: int = 2) -> list[float]:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 2)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def size_of(use: str) -> dict[str, Any]:
    """What `accelerate` is told: a pooled model does not say how large its inputs are."""
    return {"input_size": USES[use]["input_size"]} if "down_sample_input" in USES[use] else {}


def assert_same(model: nn.Module, expected: nn.Module, limit: float = 1e-8) -> None:
    names = [name for name, _ in expected.named_parameters()]
    assert {name for name, _ in model.named_parameters()} == set(names)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name in names:
        assert relative_error(model.get_parameter(name), expected.get_parameter(name)) < limit, name


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("optimizer", [adam, adamw], ids=["Adam", "AdamW"])
def test_another_import(use: str, optimizer: Callable[[nn.Module], Optimizer]) -> None:
    """The constructor's line stays, and a checkpoint of the original loads strictly."""
    config = USES[use]
    expected, model = Wrapper(SeparableTr(**config)).double(), Wrapper(SepTr(**config)).double()
    model.load_state_dict(expected.state_dict(), strict=True)
    x = spectrograms(config, batch=4)
    losses = train(expected, optimizer(expected), x)
    assert train(model, optimizer(model), x) == pytest.approx(losses, rel=1e-10)
    assert_same(model, expected)


@pytest.mark.parametrize("use", USES)
def test_a_live_model_in_a_wrapper(use: str) -> None:
    """In the middle of a training, under an optimizer that is not told."""
    expected = Wrapper(SeparableTr(**USES[use])).double()
    model = copy.deepcopy(expected)
    x = spectrograms(USES[use], batch=4)
    optimizers = [adamw(module) for module in (expected, model)]
    first = [train(module, optimizer, x) for module, optimizer in zip((expected, model), optimizers, strict=True)]
    assert first[0] == first[1]
    assert accelerate(model, **size_of(use)) is model
    assert type(model.parts["septr"]) is SepTr
    losses = train(expected, optimizers[0], x)
    assert losses[0] < first[0][0]
    assert train(model, optimizers[1], x) == pytest.approx(losses, rel=1e-10)
    assert_same(model, expected)


def test_three_models_with_their_class_tokens() -> None:
    config = USES["fMRI"]
    expected = AverageOfThree([WithClassToken(**config) for _ in range(3)], config["dim"]).double()
    built = AverageOfThree([SepTr(**config, return_cls=True) for _ in range(3)], config["dim"]).double()
    built.load_state_dict(expected.state_dict())
    live = accelerate(copy.deepcopy(expected))
    assert [type(model) for model in live.models] == [SepTr] * 3
    x = spectrograms(config, batch=4)
    losses = train(expected, adam(expected), x)
    for model in (built, live):
        assert train(model, adam(model), x) == pytest.approx(losses, rel=1e-10)
        assert_same(model, expected)


def test_dropout_of_a_fork() -> None:
    """Probabilities come along and can be changed later; of probability 1 the result is known."""
    config = {**USES["fMRI"], "dropout_tr": 0.4}
    expected = SeparableTr(**config).double()
    model = accelerate(copy.deepcopy(expected))
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert found == [0.4] * 6
    x = spectrograms(config, batch=2)
    assert not torch.equal(model(x), model(x))
    for module in (*expected.modules(), *model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 1.0
    assert relative_error(model(x), expected(x)) < 1e-12


def test_checkpoints_go_both_ways() -> None:
    config = USES["deepfake"]
    expected = Wrapper(SeparableTr(**config)).double()
    model = accelerate(Wrapper(SeparableTr(**config)).double(), **size_of("deepfake"))
    before = model.state_dict()
    x = spectrograms(config, batch=3)
    assert list(before) == list(expected.state_dict())
    model.load_state_dict(expected.state_dict(), strict=True)
    assert relative_error(model(x), expected(x)) < 1e-12
    train(model, adam(model), x)
    expected.load_state_dict(model.state_dict(), strict=True)
    assert relative_error(model(x), expected(x)) < 1e-12


def test_the_state_of_an_optimizer_is_loaded() -> None:
    """By position, as `load_state_dict` of optimizers does: the order of the parameters is the original's."""
    config = USES["ESC-50, pooled"]
    expected = Wrapper(SeparableTr(**config)).double()
    x = spectrograms(config, batch=4)
    optimizer = adamw(expected)
    train(expected, optimizer, x)
    model = accelerate(copy.deepcopy(expected), **size_of("ESC-50, pooled"))
    restored = adamw(model)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    losses = train(expected, optimizer, x)
    assert train(model, restored, x) == pytest.approx(losses, rel=1e-10)
    assert_same(model, expected)


def test_an_averaged_copy_goes_on() -> None:
    config = USES["ESC-50, narrow"]
    expected = Wrapper(SeparableTr(**config)).double()
    x = spectrograms(config, batch=4)
    average_with = torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)
    averages = [torch.optim.swa_utils.AveragedModel(expected, multi_avg_fn=average_with)]
    train(expected, adam(expected), x)
    averages[0].update_parameters(expected)
    model, average = copy.deepcopy((expected, averages[0]))
    averages.append(accelerate(average))
    accelerate(model)
    for module, averaged in zip((expected, model), averages, strict=True):
        train(module, adam(module), x)
        averaged.update_parameters(module)
    assert type(average.module.parts["septr"]) is SepTr
    assert_same(*averages)
    assert relative_error(averages[1](x), averages[0](x)) < 1e-9
    assert relative_error(averages[0](x), expected(x)) > 1e-6
