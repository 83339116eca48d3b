"""Submodules as users change them: what is read as a weight follows, what cannot be followed is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from torch import nn
from torch.nn.utils import parametrize, prune

from benchmarks.suite.shapes import SMALL
from septr_fast import reference

CONFIG = {**SMALL["wide"], "channels": 3}
Change = Callable[[nn.Module], object]


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.transformer.modules() if isinstance(module, nn.Linear)]


def pruned(model: nn.Module) -> None:
    for module in linears(model):
        prune.l1_unstructured(module, "weight", amount=0.4)


def weight_normed(model: nn.Module) -> None:
    for module in linears(model):
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(module)
        module.weight_g.data.mul_(1.3)


def spectrally_normed(model: nn.Module) -> None:
    for module in linears(model):
        torch.manual_seed(1)
        nn.utils.spectral_norm(module)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def parametrized(model: nn.Module) -> None:
    for module in linears(model):
        parametrize.register_parametrization(module, "weight", Doubled())


def with_other_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.1


@pytest.mark.parametrize("formulation", [None, "merged"], ids=["planned", "merged"])
@pytest.mark.parametrize(
    "change",
    [pruned, weight_normed, spectrally_normed, parametrized, with_other_eps],
    ids=lambda change: change.__name__,
)
def test_changes_that_are_followed(change: Change, formulation: str | None) -> None:
    expected, model = pair(CONFIG, formulation=formulation)
    x = spectrograms(CONFIG, batch=2)
    plain = model(x)
    for module in (expected, model):
        change(module)
    results = [gradients(module, x) for module in (model, expected)]
    assert worst(*results)[0] < 1e-10
    assert relative_error(plain, results[0]["logits"]) > 1e-3
    with torch.no_grad():
        assert relative_error(model.eval()(x), expected.eval()(x)) < 1e-12


def test_a_mask_that_changes_is_seen() -> None:
    expected, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=1)
    for module in (expected, model):
        pruned(module)
    with torch.no_grad():
        before = model.eval()(x)
        for module in (expected, model):
            for one in linears(module):
                one.weight_mask.fill_(1)
        assert relative_error(model(x), expected.eval()(x)) < 1e-12
        assert not torch.equal(model(x), before)


@pytest.mark.parametrize("change", [with_other_eps, parametrized], ids=lambda change: change.__name__)
def test_changed_after_the_weights_were_kept(change: Change) -> None:
    expected, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=1)
    with torch.no_grad():
        before = model.eval()(x)
        for module in (expected.eval(), model):
            change(module)
        assert relative_error(model(x), expected(x)) < 1e-12
        assert not torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["wide", "single full head"])
def test_dropout_modules_are_asked(name: str) -> None:
    """Monte Carlo dropout: the model in evaluation, its dropout modules in training; and another probability."""
    config = {**SMALL[name], "dropout_tr": 0.2}
    expected, model = pair(config)
    x = spectrograms(config, batch=2)
    for module in (expected, model):
        module.eval()
        for one in module.modules():
            if isinstance(one, nn.Dropout):
                one.p = 1.0
                one.train()
    with torch.no_grad():
        dropped = model(x)
        assert relative_error(dropped, expected(x)) < 1e-12
        for module in (expected, model):
            for one in module.modules():
                if isinstance(one, nn.Dropout):
                    one.eval()
        assert relative_error(model(x), expected(x)) < 1e-12
        assert not torch.allclose(model(x), dropped)


@pytest.mark.parametrize("place", ["attention's output", "hidden layer", "MLP's output"])
def test_each_dropout_module_is_asked(place: str) -> None:
    """One of the three in training, dropping all; the others in evaluation, as is the model."""
    config = {**SMALL["wide"], "dropout_tr": 0.2}
    expected, model = pair(config)
    x = spectrograms(config, batch=2)
    with torch.no_grad():
        undropped = model.eval()(x)
        for module in (expected.eval(), model):
            for sublayers in (one.layers[0] for one in module.modules() if isinstance(one, reference.Transformer)):
                net = sublayers[1].fn.net
                modules = {
                    "attention's output": sublayers[0].fn.to_out[1],
                    "hidden layer": net[2],
                    "MLP's output": net[4],
                }
                modules[place].p = 1.0
                modules[place].train()
        assert relative_error(model(x), expected(x)) < 1e-12
        assert not torch.allclose(model(x), undropped)


def test_a_single_full_head_drops_nothing_of_its_attention() -> None:
    """As the original: there is no output projection, and so no dropout behind it."""
    config = {**SMALL["single full head"], "dropout_tr": 1.0}
    for formulation in (None, "direct", "merged"):
        expected, model = pair(config, formulation=formulation)
        x = spectrograms(config, batch=2)
        assert relative_error(model(x), expected(x)) < 1e-12
