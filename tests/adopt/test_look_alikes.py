"""What `accelerate` refuses to take for the original."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.originals import CONFIG, Mlp, SeparableTr, attention, original
from torch import Tensor, nn

from septr_fast import accelerate

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


NET, ATTENTION = (
    "model.transformer.1.transformer_w.layers.0.1.fn.net",
    "model.transformer.0.transformer_h.layers.0.0.fn",
)
LOOK_ALIKES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "activation": (changed(lambda m: net(m).__setitem__(1, nn.ReLU())), f"{NET}.1: expected GELU, got ReLU"),
    "tanh": (
        changed(lambda m: setattr(net(m)[1], "approximate", "tanh")),
        "model.transformer.1.transformer_w: net.1: expected the exact GELU",
    ),
    "dropout": (changed(lambda m: net(m).__setitem__(4, nn.AlphaDropout())), f"{NET}.4: expected Dropout, got Alpha"),
    "no layer": (changed(lambda m: delattr(net(m), "3")), f"{NET}.3: expected Linear, there is none"),
    "shape": (
        changed(lambda m: net(m).__setitem__(0, nn.Linear(8, 6))),
        f"{NET}.0.weight: expected shape (8, 8), got shape (6, 8)",
    ),
    "bias of queries": (
        changed(lambda m: setattr(attention(m), "to_qkv", nn.Linear(8, 24))),
        f"{ATTENTION}.to_qkv.bias: expected none, got shape (24,)",
    ),
    "norm": (
        changed(lambda m: setattr(m.transformer[0].transformer_h.layers[0][0], "norm", nn.RMSNorm(8))),
        "model.transformer.0.transformer_h.layers.0.0.norm: expected LayerNorm, got RMSNorm",
    ),
    "scale": (
        changed(lambda m: setattr(attention(m), "scale", 1.0)),
        f"{ATTENTION}: expected the scale 0.5 of 2 heads of 4, got 1.0",
    ),
    "heads that differ": (
        changed(lambda m: vars(attention(m)).update(heads=1, scale=8**-0.5)),
        "model.transformer.0: expected the same heads in every attention, got (heads, dim_head) [(1, 8), (2, 4)]",
    ),
    "odd heads": (changed(lambda m: setattr(attention(m), "heads", 3)), f"{ATTENTION}: expected heads that divide the"),
    "another parameter": (
        changed(lambda m: setattr(m, "gamma", nn.Parameter(torch.ones(1)))),
        "model: it has what SepTr has not: gamma",
    ),
    "a buffer": (
        changed(lambda m: m.transformer[0].register_buffer("mean", torch.ones(1))),
        "model: it has what SepTr has not: transformer.0.mean",
    ),
    "two layers": (
        changed(lambda m: m.transformer[0].transformer_h.layers.append(m.transformer[0].transformer_h.layers[0])),
        "model: it has what SepTr has not: transformer.0.transformer_h.layers.1.0.norm.weight, ",
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
        "model.transformer.1.transformer_h.layers.0.1: expected PreNorm, there is none",
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
    "an inner hook": (
        changed(lambda m: m.transformer[1].register_forward_hook(print)),
        "model.transformer.1: it has hooks, which SepTr would never call; remove them first",
    ),
    "a hook of a layer": (
        changed(lambda m: attention(m).to_qkv.register_forward_hook(print)),
        f"{ATTENTION}.to_qkv: it has hooks",
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
