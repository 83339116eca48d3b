"""Models as users change them: a transformer that cannot be folded, and a changed block, are called as written."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst
from support.versions import needs_torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, reference
from septr_fast.algebra.plan import WRITTEN
from septr_fast.passes import backend

CONFIG = {**SMALL["wide"], "channels": 3}
"""Tokens of 12 features, 2 heads of 4, hidden layers of 12, 2 blocks."""
Change = Callable[[Any], object]

pytestmark = pytest.mark.usefixtures("one_thread")


def first(model: Any) -> Any:
    return model.transformer[0].transformer_h


def attention(model: Any) -> Any:
    return first(model).layers[0][0].fn


def net(model: Any) -> Any:
    return first(model).layers[0][1].fn.net


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The same module for both models."""
    torch.manual_seed(5)
    return make().double()


class Adapter(nn.Module):
    """As low-rank adapters do: a layer around another."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.weight = base, base.weight
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class OtherMlp(reference.FeedForward):
    """With the layers of an MLP, which it does not use alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Scaled(nn.Linear):
    """A linear layer by its class, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def own_forward(model: Any) -> None:
    layer = net(model)[0]
    written = layer.forward
    layer.forward = lambda x: written(x) + 1


CHANGES: dict[str, tuple[Change, str]] = {
    "bias of queries": (
        lambda m: setattr(attention(m), "to_qkv", seeded(lambda: nn.Linear(12, 24))),
        "layers.0.0.fn.to_qkv has a bias",
    ),
    "adapter of queries": (
        lambda m: setattr(attention(m), "to_qkv", seeded(lambda: Adapter(nn.Linear(12, 24, bias=False)))),
        "layers.0.0.fn.to_qkv is Adapter, not Linear",
    ),
    "scaled output": (
        lambda m: attention(m).to_out.__setitem__(0, seeded(lambda: Scaled(8, 12))),
        "layers.0.0.fn.to_out.0 is Scaled, not Linear",
    ),
    "no output": (
        lambda m: setattr(attention(m), "to_out", seeded(lambda: nn.Linear(8, 12))),
        "Linear, not Sequential",
    ),
    "activation": (lambda m: net(m).__setitem__(1, nn.ReLU()), "layers.0.1.fn.net.1 is ReLU, not GELU"),
    "activation for dropout": (lambda m: net(m).__setitem__(2, nn.ReLU()), "layers.0.1.fn.net.2 is ReLU, not Identity"),
    "no dropout": (lambda m: net(m).__delitem__(4), "layers.0.1.fn.net.4 is not there"),
    "tanh": (lambda m: setattr(net(m)[1], "approximate", "tanh"), "net.1 approximates GELU by tanh"),
    "no hidden bias": (
        lambda m: net(m).__setitem__(0, seeded(lambda: nn.Linear(12, 12, bias=False))),
        "layers.0.1.fn.net.0 has no bias",
    ),
    "adapter of the MLP": (lambda m: net(m).__setitem__(3, seeded(lambda: Adapter(nn.Linear(12, 12)))), "is Adapter"),
    "one layer more": (lambda m: net(m).append(seeded(lambda: nn.LayerNorm(12))), "one layer more is LayerNorm"),
    "norm": (
        lambda m: setattr(first(m).layers[0][1], "norm", seeded(lambda: nn.RMSNorm(12))),
        "layers.0.1.norm is RMSNorm, not LayerNorm",
    ),
    "norm without affine": (
        lambda m: setattr(first(m).layers[0][0], "norm", nn.LayerNorm(12, elementwise_affine=False)),
        "layers.0.0.norm has no bias",
    ),
    "pruned norm": (
        lambda m: prune.l1_unstructured(first(m).layers[0][0].norm, "weight", amount=0.5),
        "layers.0.0.norm has hooks",
    ),
    "no attention": (lambda m: setattr(first(m).layers[0][0], "fn", nn.Identity()), "layers.0.0.fn is Identity"),
    "another MLP": (
        lambda m: setattr(first(m).layers[0][1], "fn", seeded(lambda: OtherMlp(12, 12, 0.0))),
        "layers.0.1.fn is OtherMlp",
    ),
    "forward of its own": (own_forward, "layers.0.1.fn.net.0 has a forward of its own"),
    "hook": (
        lambda m: attention(m).to_qkv.register_forward_hook(lambda _, __, out: out * 1.5),
        "layers.0.0.fn.to_qkv has hooks",
    ),
    "hook before": (
        lambda m: first(m).layers[0][0].register_forward_pre_hook(lambda _, given: (given[0] + 1,)),
        "layers.0.0 has hooks",
    ),
    "hook on gradients": (
        lambda m: net(m).register_full_backward_hook(lambda _, grads, __: (grads[0] * 2,)),
        "layers.0.1.fn.net has hooks",
    ),
    "another transformer": (
        lambda m: setattr(m.transformer[0], "transformer_h", seeded(lambda: nn.Sequential(nn.Linear(12, 12)))),
        "the transformer is Sequential",
    ),
    "no transformer": (lambda m: setattr(m.transformer[0], "transformer_h", nn.Identity()), "the transformer is Iden"),
}


def changed_pair(change: Change, config: dict[str, Any] = CONFIG, **options: Any) -> tuple[Any, SepTr]:
    pair_of = pair(config, **options)
    for model in pair_of:
        change(model)
    return pair_of


@pytest.mark.parametrize("formulation", [None, "direct"], ids=["planned", "direct"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_folded_runs_as_written(name: str, formulation: str | None) -> None:
    """On every backend: none of them sees this pass."""
    change, reason = CHANGES[name]
    expected, model = changed_pair(change, formulation=formulation)
    x = spectrograms(CONFIG, batch=2)
    results = [gradients(one, x) for one in (model, expected)]
    assert worst(*results)[0] < 1e-10
    step = model.plan().steps[0]
    assert step.formulation == WRITTEN
    assert reason in str(step.reason)
    assert f"{step.name} runs as written: {step.reason}" in str(model.plan())
    assert all(other.formulation != WRITTEN for other in model.plan().steps[1:])
    with torch.no_grad():
        assert relative_error(model.eval()(x), expected.eval()(x)) < 1e-12


@pytest.mark.parametrize("name", ["adapter of queries", "hook", "no transformer"])
def test_after_the_weights_were_kept(name: str) -> None:
    expected, model = pair(CONFIG)
    x = spectrograms(CONFIG, batch=2)
    with torch.no_grad():
        before = model.eval()(x)
        for one in (expected.eval(), model):
            CHANGES[name][0](one)
        assert relative_error(model(x), expected(x)) < 1e-12
        assert relative_error(before, expected(x)) > 1e-4


def cut(model: Any, x: Tensor, length: int, axis: str) -> Tensor:
    """What `model`, a reference, gives for `x` cut to `length` along `axis`, its positions cut alike."""
    model = copy.deepcopy(model)
    for block in model.transformer:
        name = f"pos_embedding_{axis[0]}"
        setattr(block, name, nn.Parameter(getattr(block, name).detach()[:, :, : 1 + length]))
    return model(x[..., :length] if axis == "width" else x[..., :length, :])


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("name", ["adapter of queries", "one layer more", "hook"])
def test_padding_is_cut_off(name: str, axis: str) -> None:
    expected, model = changed_pair(CHANGES[name][0])
    size = CONFIG["input_size"][axis == "width"]
    lengths = [size, 1, size // 2, 1]
    x = spectrograms(CONFIG, batch=4)
    found = model(x, lengths, lengths_axis=axis)
    wanted = torch.cat([cut(expected, x[i : i + 1], n, axis) for i, n in enumerate(lengths)])
    assert relative_error(found, wanted) < 1e-12


@pytest.mark.parametrize("name", ["adapter of queries", "activation"])
def test_recomputed(name: str) -> None:
    expected, model = changed_pair(CHANGES[name][0])
    model.set_grad_checkpointing()
    x = spectrograms(CONFIG, batch=2)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10


def test_under_autocast() -> None:
    """Products in bfloat16 as the reference takes them, the residual stream in float32."""
    expected, model = (one.float() for one in changed_pair(CHANGES["adapter of queries"][0]))
    x = spectrograms(CONFIG, 2, torch.float32)
    seen: list[torch.dtype] = []
    attention(model).to_qkv.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = model(x), expected(x)
    exact = expected.double()(x.double())
    assert seen == [torch.bfloat16]
    assert relative_error(found, exact) < 1.5 * relative_error(wanted, exact) + 1e-3


@needs_torch("2.8", "a warning that quantization is moving, which the test expects")
def test_quantized() -> None:
    """All linear layers by `quantize_dynamic`, whose classes are no `nn.Linear`."""
    expected, model = (one.float().eval() for one in pair(CONFIG))
    x = spectrograms(CONFIG, 2, torch.float32)
    with pytest.warns(DeprecationWarning, match="torch.ao.quantization is deprecated"):
        changed = [torch.ao.quantization.quantize_dynamic(one, {nn.Linear}) for one in (expected, model)]
    with torch.no_grad():
        found, wanted = changed[1](x), changed[0](x)
        assert relative_error(found, wanted) < 1e-6
        assert relative_error(found, model(x)) > 1e-5
    assert {step.formulation for step in changed[1].plan().steps} == {WRITTEN}


@pytest.mark.parametrize("queries", ["class", "all"])
def test_attention_maps_of_an_adapter(queries: str) -> None:
    """As those of a layer with the weights of both together."""
    _, model = pair(CONFIG)
    merged = copy.deepcopy(model)
    adapter = seeded(lambda: Adapter(nn.Linear(12, 24, bias=False)))
    nn.init.zeros_(adapter.up.bias)
    nn.init.zeros_(adapter.down.bias)
    attention(model).to_qkv = adapter
    with torch.no_grad():
        attention(merged).to_qkv.weight.copy_(adapter.weight + adapter.up.weight @ adapter.down.weight)
    x = spectrograms(CONFIG, batch=2)
    found, wanted = (one.attention_maps(x, [9, 4], queries=queries) for one in (model, merged))
    for ours, theirs in zip(found, wanted, strict=True):
        for axis in ("height", "width"):
            assert relative_error(getattr(ours, axis), getattr(theirs, axis)) < 1e-12


def test_attention_maps_where_there_is_no_attention() -> None:
    model = changed_pair(CHANGES["no attention"][0])[1]
    with pytest.raises(TypeError, match="attention_maps: expected the attention of SepTr, got Identity"):
        model.attention_maps(spectrograms(CONFIG, 1))


def test_it_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_logged", set())
    model = changed_pair(CHANGES["bias of queries"][0])[1]
    with caplog.at_level(logging.INFO, logger="septr_fast"):
        for _ in range(2):
            model(spectrograms(CONFIG, 1))
    assert caplog.messages == ["the transformer along the height runs as written: layers.0.0.fn.to_qkv has a bias"]


def test_a_single_full_head_without_a_projection_is_folded() -> None:
    model = SepTr(**SMALL["single full head"])
    assert WRITTEN not in {step.formulation for step in model.plan().steps}


def test_two_heads_without_a_projection_run_as_written() -> None:
    config = {**SMALL["square"], "depth": 1}
    expected, model = changed_pair(lambda m: setattr(attention(m), "to_out", nn.Identity()), config)
    x = spectrograms(config, batch=2)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10
    assert "to_out is Identity, not Sequential" in str(model.plan().steps[0].reason)


def test_dropout_that_is_gone_is_folded() -> None:
    expected, model = pair({**CONFIG, "dropout_tr": 0.5})
    for one in (expected, model):
        for module in list(one.modules()):
            if isinstance(module, nn.Sequential):
                for index, inner in enumerate(module):
                    if isinstance(inner, nn.Dropout):
                        module[index] = nn.Identity()
    x = spectrograms(CONFIG, batch=2)
    assert worst(gradients(model.train(), x), gradients(expected.train(), x))[0] < 1e-10
    assert WRITTEN not in {step.formulation for step in model.plan().steps}


def test_a_projection_that_cannot_be_folded_is_called() -> None:
    change = lambda m: setattr(m.transformer[0], "projection", seeded(lambda: Adapter(nn.Linear(3, 12))))  # noqa: E731
    expected, model = changed_pair(change, formulation="low-rank")
    x = spectrograms(CONFIG, batch=2)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10
    step = model.plan().steps[0]
    assert step.formulation in ("direct", "merged")
    assert step.reason == "projection is Adapter, not Linear"


class Doubled(nn.Module):
    """A block of the user's own around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor]:
        x, cls_token = self.inner(x, cls_token)
        return 2 * x, cls_token + 1


def hook_on(index: int) -> Change:
    return lambda m: m.transformer[index].register_forward_hook(lambda _, __, out: (out[0] * 1.5, out[1] - 1))


POOLED: dict[str, Any] = {**CONFIG, "input_size": (11, 8), "down_sample_input": (3, 2), "depth": 3}
BLOCKS: dict[str, Change] = {
    "last deleted": lambda m: m.transformer.__delitem__(2),
    "middle deleted": lambda m: m.transformer.__delitem__(1),
    "one twice": lambda m: m.transformer.append(m.transformer[1]),
    "one more": lambda m: m.transformer.insert(1, copy.deepcopy(m.transformer[1])),
    "turned": lambda m: setattr(m, "transformer", nn.ModuleList([m.transformer[i] for i in (0, 2, 1)])),
    "in a sequence": lambda m: setattr(m, "transformer", nn.Sequential(*m.transformer)),
    "hook on the first": hook_on(0),
    "hook on the middle": hook_on(1),
    "hook on the last": hook_on(2),
    "wrapped first": lambda m: m.transformer.__setitem__(0, Doubled(m.transformer[0])),
    "wrapped middle": lambda m: m.transformer.__setitem__(1, Doubled(m.transformer[1])),
    "wrapped last": lambda m: m.transformer.__setitem__(2, Doubled(m.transformer[2])),
    "largest in place of mean": lambda m: setattr(m.transformer[1], "pool", nn.MaxPool2d((3, 2))),
    "other upsampling": lambda m: setattr(
        m.transformer[0], "upsample", nn.Upsample(scale_factor=(3.0, 2.0), mode="bilinear")
    ),
    "hook on the pooling": lambda m: m.transformer[2].pool.register_forward_hook(lambda _, __, out: 2 * out),
}
WALKED = ("last deleted", "middle deleted", "one twice", "one more", "turned", "in a sequence")
"""After these, the blocks are as they were, and none has to be called."""


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_that_are_changed(name: str) -> None:
    expected, model = changed_pair(BLOCKS[name], POOLED)
    x = spectrograms(POOLED, batch=2)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10
    with torch.no_grad():
        assert relative_error(model.eval()(x), expected.eval()(x)) < 1e-12
    assert ("called as it is" in str(model.plan())) == (name not in WALKED)


@pytest.mark.parametrize("name", BLOCKS)
def test_features_of_blocks_that_are_changed(name: str) -> None:
    expected, model = changed_pair(BLOCKS[name], POOLED)
    x = spectrograms(POOLED, batch=2)
    grid, cls_token = x, expected.cls_token
    found = model.forward_features(x)
    for block, (ours, token) in zip(expected.transformer, found, strict=True):
        grid, cls_token = block(grid, cls_token)
        assert relative_error(ours, grid) < 1e-12
        assert relative_error(token, cls_token[:, 0, 0]) < 1e-12


@pytest.mark.parametrize("index", range(3))
def test_lengths_reach_a_block_with_hooks(index: int) -> None:
    """Its class token is changed for every sample alike."""
    model, plain = pair(POOLED)[1], pair(POOLED)[1]
    plain.load_state_dict(model.state_dict())
    seen: list[int] = []
    model.transformer[index].register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    x, width = spectrograms(POOLED, batch=3), POOLED["input_size"][1]
    lengths = [width, width // 2, width // 3]
    assert relative_error(model(x, lengths), plain(x, lengths)) < 1e-12
    assert seen == [3]


@pytest.mark.parametrize("index", range(2))
def test_lengths_need_blocks_that_take_them(index: int) -> None:
    model = pair(POOLED)[1]
    BLOCKS[("wrapped first", "wrapped middle")[index]](model)
    x = spectrograms(POOLED, batch=2)
    with pytest.raises(ValueError, match=r"lengths: expected none for .* is Doubled, got some"):
        model(x, [POOLED["input_size"][1], 4])
    if index:
        with pytest.raises(TypeError, match="attention_maps: expected a SepTrBlock as block 1, got Doubled"):
            model.attention_maps(x)


def test_without_blocks() -> None:
    model = pair(POOLED)[1]
    del model.transformer[:]
    with pytest.raises(ValueError, match="transformer: expected at least one block, there is none"):
        model(spectrograms(POOLED, batch=1))
