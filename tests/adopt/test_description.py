"""What is saved describes the model as it is, after any change made to it, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from septr_fast import SepTr, checkpoints, reference
from septr_fast.audio.log_mel import LogMel

pytest.importorskip("huggingface_hub")

from septr_fast.adopt import hub

SIZES: dict[str, Any] = {
    "input_size": (8, 12),
    "num_classes": 5,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 6,
    "dim_head": 4,
    "dim": 8,
    "down_sample_input": (2, 2),
    "dropout_tr": 0.1,
}

FRONT_END = LogMel(8000, 8, fft_size=64, hop=32, frames=12)


def attention(model: Any, block: int = 0) -> Any:
    return model.transformer[block].transformer_h.sublayers[0].fn


def net(model: Any, block: int = 0) -> Any:
    return model.transformer[block].transformer_w.sublayers[1].fn.net


def blocks_gone(model: Any) -> None:
    del model.transformer[1]


def blocks_turned(model: Any) -> None:
    model.transformer = nn.ModuleList([model.transformer[0], model.transformer[2], model.transformer[1]])


def no_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def dropout_taken_out(model: Any) -> None:
    for block in model.transformer:
        for transformer in (block.transformer_h, block.transformer_w):
            transformer.sublayers[0].fn.to_out[1] = nn.Identity()
            transformer.sublayers[1].fn.net[2] = nn.Identity()
            transformer.sublayers[1].fn.net[4] = nn.Identity()


def tied(model: Any) -> None:
    model.transformer[2] = model.transformer[1]


def pooling_by_an_int(model: Any) -> None:
    for block in model.transformer:
        block.pool = nn.AvgPool2d(2)


DESCRIBED: dict[str, Callable[[Any], object]] = {
    "nothing": lambda model: None,
    "another head": lambda model: setattr(model, "fc", nn.Linear(8, 9)),
    "reset_classifier": lambda model: model.reset_classifier(3),
    "features alone": lambda model: model.reset_classifier(0),
    "another size": lambda model: model.resize_positions((8, 20)),
    "blocks gone": blocks_gone,
    "blocks turned": blocks_turned,
    "blocks tied": tied,
    "no dropout": no_dropout,
    "dropout taken out": dropout_taken_out,
    "the class token too": lambda model: setattr(model, "return_cls", True),
    "a hook": lambda model: model.transformer[0].register_forward_hook(lambda *given: None),
    "a loss of its own": lambda model: setattr(model, "loss", nn.CrossEntropyLoss()),
    "pooling by an int": pooling_by_an_int,
    "frozen": lambda model: model.requires_grad_(False),
    "bfloat16 and back": lambda model: model.bfloat16().float(),
}


@pytest.mark.parametrize("change", DESCRIBED.values(), ids=DESCRIBED.keys())
@pytest.mark.parametrize("formulation", [None, ["low-rank", *["merged"] * 5]], ids=["free", "forced"])
def test_a_folder_of_the_hub_holds_the_model_as_it_is(
    change: Callable[[Any], object], formulation: list[str] | None, tmp_path: Path
) -> None:
    model = hub.SepTr(**SIZES, formulation=formulation)
    change(model)
    model.save_pretrained(tmp_path)
    loaded = hub.SepTr.from_pretrained(str(tmp_path))
    x = torch.randn(2, 1, *model.blocks[0].input_size)
    for found, wanted in zip(loaded(x), model.eval()(x), strict=True):
        torch.testing.assert_close(found, wanted)
    assert checkpoints.constructor_arguments(loaded) == checkpoints.constructor_arguments(model)


@pytest.mark.parametrize("change", DESCRIBED.values(), ids=DESCRIBED.keys())
@pytest.mark.parametrize("kind", [SepTr, reference.SepTr], ids=["fast", "reference"])
def test_arguments_give_the_same_function(change: Callable[[Any], object], kind: type[reference.SepTr]) -> None:
    model = kind(**SIZES)
    if kind is reference.SepTr and change in (
        DESCRIBED["another size"],
        *map(DESCRIBED.get, ("reset_classifier", "features alone")),
    ):
        pytest.skip("a method of the fast model")
    change(model)
    same = SepTr(**checkpoints.constructor_arguments(model))
    same.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, *same.blocks[0].input_size)
    for found, wanted in zip(same.eval()(x), model.eval()(x), strict=True):
        torch.testing.assert_close(found, wanted)


class NoisyLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class CalledOtherwise(nn.Linear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.forward(x)


class Louder(SepTr):
    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> Any:
        return super().forward(2 * x, *given, **named)


def quantized(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)


def set_all(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for module in model.modules():
            if hasattr(module, name):
                setattr(module, name, value)

    return change


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "a head of several layers": (
        lambda model: setattr(model, "fc", nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 5))),
        "fc is Sequential, not Identity",
    ),
    "a head without a bias": (lambda model: setattr(model, "fc", nn.Linear(8, 5, bias=False)), "fc has no bias"),
    "a bias of queries": (
        lambda model: setattr(attention(model, 1), "to_qkv", nn.Linear(8, 24)),
        r"transformer\.1\.transformer_h\.layers\.0\.0\.fn\.to_qkv has a bias",
    ),
    "an adapter": (lambda model: attention(model).to_qkv.register_module("down", nn.Linear(8, 2)), "one module more"),
    "a linear layer of another kind": (
        lambda model: net(model, 2).__setitem__(0, NoisyLinear(8, 6)),
        r"net\.0 has a forward of its own",
    ),
    "a head that is called otherwise": (lambda model: setattr(model, "fc", CalledOtherwise(8, 5)), "fc has a forward"),
    "another activation": (lambda model: net(model).__setitem__(1, nn.ReLU()), r"net\.1 is ReLU, not GELU"),
    "an approximate activation": (
        lambda model: net(model).__setitem__(1, nn.GELU("tanh")),
        r"approximate of transformer\.0.*net\.1 is tanh",
    ),
    "unequal dropout": (lambda model: setattr(net(model, 1)[4], "p", 0.3), r"p of .*net\.4 is 0\.3, not 0\.1"),
    "one dropout less": (lambda model: net(model).__setitem__(4, nn.Identity()), r"net\.4 is Identity, not Dropout"),
    "another eps": (set_all("eps", 1e-6), r"eps of .*norm is 1e-06, not 1e-05"),
    "heads of one block": (lambda model: setattr(attention(model, 2), "heads", 4), "heads of .* is 4, not 2"),
    "a block of another width": (
        lambda model: model.transformer.append(reference.SepTrBlock(1, (8, 12), 2, 6, 4, (2, 2), dim=10)),
        r"dim of transformer\.3 is 10",
    ),
    "a block that is none": (lambda model: model.transformer.append(nn.Identity()), r"transformer\.3 is Identity"),
    "a first block that is none": (
        lambda model: model.transformer.insert(0, nn.Identity()),
        r"expected SepTrBlock as transformer\.0, got Identity",
    ),
    "no block": (lambda model: setattr(model, "transformer", nn.ModuleList()), r"as transformer\.0, got none"),
    "no hidden layer": (lambda model: setattr(attention(model), "to_out", nn.Identity()), "to_out is Identity"),
    "another axis": (lambda model: setattr(model.transformer[1], "first_axis", "width"), "first_axis of"),
    "another pooling": (
        lambda model: setattr(model.transformer[0], "pool", nn.MaxPool2d(2)),
        r"pool is MaxPool2d, not Identity",
    ),
    "positions of another length": (
        lambda model: setattr(model.transformer[1], "pos_embedding_h", nn.Parameter(torch.zeros(1, 1, 9, 8))),
        r"pos_embedding_h of transformer\.1 has the shape",
    ),
    "pruned weights": (
        lambda model: torch.nn.utils.prune.l1_unstructured(model.fc, "weight", amount=0.5),
        "fc has no weight",
    ),
    "a parametrized weight": (
        lambda model: torch.nn.utils.parametrizations.weight_norm(model.fc),
        r"one module more, fc\.parametrizations",
    ),
    "a parameter of its own": (
        lambda model: model.register_parameter("temperature", nn.Parameter(torch.ones(1))),
        "it has a temperature",
    ),
    "a forward set on it": (lambda model: setattr(model.fc, "forward", torch.sin), "fc has a forward of its own"),
}


@pytest.mark.parametrize(("change", "culprit"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_described_is_refused_by_name(
    change: Callable[[Any], object], culprit: str, tmp_path: Path
) -> None:
    model = hub.SepTr(**SIZES)
    change(model)
    with pytest.raises(ValueError, match=culprit):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match=culprit):
        checkpoints.save(tmp_path / "file", model, list("abcde"), FRONT_END.settings)
    assert not list(tmp_path.iterdir())


def test_quantized_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fn\.net\.0, got Linear|is Linear, not Linear"):
        checkpoints.save(tmp_path / "file", quantized(SepTr(**SIZES)), list("abcde"), FRONT_END.settings)


def test_a_class_with_a_forward_of_its_own(tmp_path: Path) -> None:
    """A file is loaded as a `SepTr`; a folder of the hub by the class that wrote it, which may compute otherwise."""
    with pytest.raises(ValueError, match="Louder has a forward of its own"):
        checkpoints.save(tmp_path / "file", Louder(**SIZES), list("abcde"), FRONT_END.settings)

    class LouderOfTheHub(hub.SepTr):
        def __init__(self, classes: int, **options: Any) -> None:
            super().__init__(num_classes=classes, **options)

        def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> Any:
            return super().forward(2 * x, *given, **named)

    options = {name: value for name, value in SIZES.items() if name != "num_classes"}
    model = LouderOfTheHub(classes=4, **options)
    model.save_pretrained(tmp_path / "folder")
    loaded = LouderOfTheHub.from_pretrained(str(tmp_path / "folder"))
    x = torch.randn(2, 1, 8, 12)
    assert torch.equal(loaded(x), model.eval()(x))


class Headed(hub.SepTr):
    """A class that its constructor makes with a head and a layer of its own, and without most of the arguments."""

    def __init__(self, hidden: int, num_classes: int = 5) -> None:
        super().__init__(**{**SIZES, "num_classes": num_classes})
        self.fc = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        self.gain = nn.Linear(num_classes, num_classes)
        self.steps = 0

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.gain(super().forward(*given, **named))


def test_a_class_of_ones_own_is_what_its_constructor_makes(tmp_path: Path) -> None:
    model = Headed(7)
    model.steps = 100
    model.save_pretrained(tmp_path / "folder")
    x = torch.randn(2, 1, 8, 12)
    assert torch.equal(Headed.from_pretrained(str(tmp_path / "folder"))(x), model.eval()(x))
    changes: list[tuple[Callable[[Any], object], str]] = [
        (lambda model: set_all("first_axis", "width")(model), "first_axis of transformer.0"),
        (lambda model: setattr(model, "return_cls", True), "return_cls of it is True"),
        (lambda model: model.resize_positions((10, 14)), "input_size of transformer.0"),
        (blocks_gone, "transformer.2 is not there"),
        (lambda model: model.gain.register_parameter("bias", None), "gain has no bias"),
    ]
    for change, culprit in changes:
        changed = Headed(7)
        change(changed)
        with pytest.raises(ValueError, match=culprit.replace(".", r"\.")):
            changed.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_class_that_its_configuration_does_not_make_is_refused(tmp_path: Path) -> None:
    class Positional(hub.SepTr):
        def __init__(self, *sizes: Any, **more: Any) -> None:
            super().__init__(*sizes, **more)

    with pytest.raises(ValueError, match="expected a Positional that its configuration makes again"):
        Positional(1, (8, 12), depth=1, heads=2, mlp_dim=6, dim_head=4, dim=8).save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_hooks_are_not_saved_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = hub.SepTr(**SIZES)
    model.save_pretrained(tmp_path / "one")
    assert not caplog.records
    model.fc.register_forward_hook(lambda module, given, out: 2 * out)
    model.save_pretrained(tmp_path / "two")
    assert "hooks are not saved: those of fc" in caplog.text


@pytest.mark.parametrize("classes", [7, 0, 5])
def test_other_classes(classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = hub.SepTr(**SIZES)
    model.save_pretrained(tmp_path)
    loaded = hub.SepTr.from_pretrained(str(tmp_path), num_classes=classes, input_size=[8, 12])
    assert loaded(torch.zeros(1, 1, 8, 12)).shape == (1, classes or 8)
    own, found = model.state_dict(), loaded.state_dict()
    for key in found:
        if not key.startswith("fc."):
            assert torch.equal(found[key], own[key])
    said = ["fc is new" in record.message for record in caplog.records]
    assert any(said) == (classes != 5)
    loaded.save_pretrained(tmp_path / "tuned")
    config = json.loads((tmp_path / "tuned" / "config.json").read_text(encoding="utf-8"))
    assert config["num_classes"] == classes
    again = hub.SepTr.from_pretrained(str(tmp_path / "tuned"))
    assert torch.equal(again(torch.zeros(1, 1, 8, 12)), loaded(torch.zeros(1, 1, 8, 12)))


@pytest.mark.parametrize("classes", [-1, 2.5, "5"])
def test_classes_that_are_none(classes: Any, tmp_path: Path) -> None:
    hub.SepTr(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_classes: expected a positive int"):
        hub.SepTr.from_pretrained(str(tmp_path), num_classes=classes)


def test_a_new_head_is_where_the_model_is_and_as_its_constructor_makes_it() -> None:
    model: Any = SepTr(**SIZES).double()
    optimized = {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("fc.")}
    torch.manual_seed(1)
    model.reset_classifier(9)
    assert optimized == {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("fc.")}
    torch.manual_seed(1)
    head = nn.Linear(8, 9)
    assert torch.equal(model.fc.weight, head.weight.double())
    assert model.plan().num_classes == 9
    before: Any = model.fc
    with pytest.raises(ValueError, match="num_classes: expected a positive int"):
        model.reset_classifier(-1)
    assert model.fc is before
