"""What `accelerate` refuses to take for the original."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import gradients, worst
from support.originals import CONFIG, Mlp, SeparableTr, attention, original
from torch import Tensor, nn

from septr_fast import SepTr, accelerate
from septr_fast.algebra.plan import WRITTEN

pytestmark = pytest.mark.usefixtures("one_thread")


class TwoInputs(SeparableTr):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class LogProbabilities(SeparableTr):
    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(*args).log_softmax(-1)


class DropsInTraining(SeparableTr):
    def features(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().features(x), 0.1, self.training)


class DictOut(SeparableTr):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class TokenOfFourDimensions(SeparableTr):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        token = self.features(x)
        return self.fc(token), token[:, None, None]


def variant(kind: type[SeparableTr]) -> Callable[[], nn.Module]:
    return lambda: kind(**CONFIG)


def changed(change: Callable[[Any], object], **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = SeparableTr(**{**CONFIG, **config})
        change(model)
        return model

    return build


def net(model: Any) -> Any:
    return model.transformer[1].transformer_w.layers[0][1].fn.net


ATTENTION = "model.transformer.0.transformer_h.layers.0.0.fn"
LOOK_ALIKES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shape": (changed(lambda m: net(m).__setitem__(0, nn.Linear(8, 6))), "got RuntimeError on a random input: mat1"),
    "no head that divides": (
        changed(lambda m: [setattr(one, "heads", 3) for one in m.modules() if hasattr(one, "heads")]),
        f"{ATTENTION}: expected heads that divide the",
    ),
    "another parameter": (
        changed(lambda m: setattr(m, "gamma", nn.Parameter(torch.ones(1)))),
        "model: it has what SepTr has not: gamma",
    ),
    "a buffer": (
        changed(lambda m: m.transformer[0].register_buffer("mean", torch.ones(1))),
        "model: it has what SepTr has not: transformer.0.mean",
    ),
    "no class token": (changed(lambda m: delattr(m, "cls_token")), "model.cls_token: expected a parameter of 4 dim"),
    "no positions": (
        changed(lambda m: delattr(m.transformer[1], "pos_embedding_w")),
        "model.transformer.1.pos_embedding_w: expected shape (1, 1, 10, 8), got none",
    ),
    "no projection": (changed(lambda m: delattr(m.transformer[0], "projection")), "0.projection: expected a module as"),
    "no head": (changed(lambda m: delattr(m, "fc")), "model.fc: expected a module as SepTr has it, there is none"),
    "no MLP": (
        changed(lambda m: m.transformer[1].transformer_h.layers[0].__delitem__(1)),
        "got ValueError on a random input",
    ),
    "a forward of its own": (
        changed(lambda m: setattr(m, "forward", m.features)),
        "model: expected the forward of its class, got one that was set on the instance",
    ),
    "two inputs": (variant(TwoInputs), "model: expected a forward that takes spectrograms alone, got one of (x, mask)"),
    "log probabilities": (variant(LogProbabilities), "got other results on a random input in evaluation"),
    "dropout of its own": (variant(DropsInTraining), "got other results on a random input in training"),
    "a dictionary": (variant(DictOut), "got TypeError on a random input: expected one or two tensors, got dict"),
    "class token": (variant(TokenOfFourDimensions), "got other results in evaluation: for one logit, shapes"),
    "a hook of the blocks": (
        changed(lambda m: m.transformer.register_forward_hook(print)),
        "model.transformer: it has hooks, which SepTr would never call; remove them first",
    ),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_are_refused(name: str) -> None:
    build, message = LOOK_ALIKES[name]
    model = nn.ModuleDict({"model": nn.Sequential(nn.Identity()), "other": build()})
    inside = model["other"]
    with pytest.raises(TypeError, match=re.escape(message.replace("model", "other"))):
        accelerate(model)
    assert model["other"] is inside


class Low(nn.Module):
    """An adapter around a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapt(model: Any) -> None:
    """Every linear layer that a transformer has."""
    for module in [one for one in model.transformer.modules() if not isinstance(one, Low)]:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Low(child))


OTHERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "activation": (changed(lambda m: net(m).__setitem__(1, nn.ReLU())), 1),
    "tanh": (changed(lambda m: setattr(net(m)[1], "approximate", "tanh")), 1),
    "a layer less": (changed(lambda m: delattr(net(m), "0")), 1),
    "no dropout": (changed(lambda m: net(m).__setitem__(4, nn.Identity())), 0),
    "bias of queries": (changed(lambda m: setattr(attention(m), "to_qkv", nn.Linear(8, 24))), 1),
    "norm": (changed(lambda m: setattr(m.transformer[0].transformer_h.layers[0][0], "norm", nn.RMSNorm(8))), 1),
    "scale": (changed(lambda m: setattr(attention(m), "scale", 1.0)), 1),
    "heads that differ": (changed(lambda m: vars(attention(m)).update(heads=1, scale=8**-0.5)), 1),
    "two layers": (
        changed(lambda m: m.transformer[0].transformer_h.layers.append(m.transformer[0].transformer_h.layers[0])),
        1,
    ),
    "adapters": (changed(adapt), 4),
    "adapter of a layer": (changed(lambda m: setattr(attention(m), "to_qkv", Low(attention(m).to_qkv))), 1),
    "hook of a layer": (
        changed(lambda m: attention(m).to_qkv.register_forward_hook(lambda _, __, out: 2 * out)),
        1,
    ),
    "hook of a transformer": (
        changed(lambda m: m.transformer[1].transformer_h.register_forward_hook(lambda _, __, out: out + 1)),
        1,
    ),
    "hook of a block": (changed(lambda m: m.transformer[0].register_forward_hook(lambda _, __, out: out[::1])), 0),
    "hook of the projection": (
        changed(lambda m: m.transformer[0].projection.register_forward_hook(lambda _, __, out: 2 * out)),
        0,
    ),
}
"""What differs in layers, and how many of the four transformers are taken over whole for it."""


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_cannot_be_folded_go_on_as_they_are(name: str) -> None:
    build, whole = OTHERS[name]
    model = build().double()
    x = torch.randn(2, CONFIG["channels"], *CONFIG["input_size"], dtype=torch.float64)
    names, wanted = [key for key, _ in model.named_parameters()], gradients(model, x)
    result = accelerate(model)
    assert isinstance(result, SepTr)
    assert [key for key, _ in result.named_parameters()] == names
    assert worst(gradients(result, x), wanted)[0] < 1e-10
    kept = set(model.modules())
    transformers = [getattr(block, name) for block in result.blocks for name in ("transformer_h", "transformer_w")]
    assert sum(one in kept for one in transformers) == whole
    assert sum(step.formulation == WRITTEN for step in result.plan().steps) == whole


def test_no_hook_is_called_to_compare() -> None:
    called: list[nn.Module] = []
    model = original()
    for module in model.modules():
        if module is not model.transformer:
            module.register_forward_hook(lambda module, *_: called.append(module))
    accelerate(model)
    assert called == []


def test_an_mlp_that_computes_something_else() -> None:
    """Same layers under the same names, in another class: only the numbers tell."""

    class Residual(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    model = original()
    model.transformer[1].transformer_h.layers[0][1].fn.__class__ = Residual
    with pytest.raises(TypeError, match="model: expected what SepTr computes, got other results on a random input in"):
        accelerate(model)


def test_a_compiled_model_is_not_replaced_behind_its_back() -> None:
    compiled = torch.compile(original(), backend="eager")
    with pytest.raises(TypeError, match="model: it is compiled; accelerate the module inside first, then compile"):
        accelerate(compiled)
