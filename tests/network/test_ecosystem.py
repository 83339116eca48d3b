"""Under the tools that people put around a model: export, tracing, transforms, copies, the hub, optimizers."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import pair, relative_error, spectrograms
from support.versions import needs_torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from septr_fast import SepTr, SepTrBlock, reference

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG: dict[str, Any] = {
    "channels": 3,
    "input_size": (9, 7),
    "num_classes": 4,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "down_sample_input": (2, 1),
    "dim": 8,
}
FORMULATIONS = ["low-rank", "direct", "merged", "class-only"]
"""One of each, in the order of the transformers."""


def models(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, SepTr]:
    expected, model = pair(CONFIG, dtype, formulation=FORMULATIONS)
    assert [step.formulation for step in model.plan().steps] == FORMULATIONS
    return expected.eval(), model.eval()


def doubled(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


@needs_torch("2.8", "exporting a model for any batch")
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_exported_for_any_batch(strict: bool) -> None:
    expected, model = models()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (spectrograms(CONFIG, 2),), dynamic_shapes=({0: batch},), strict=strict)
    exported = program.module()
    for size in (1, 2, 5):
        x = spectrograms(CONFIG, size)
        assert relative_error(exported(x), expected(x)) < 1e-12
    x = spectrograms(CONFIG, 3)
    names = dict(exported.named_parameters())
    assert names.keys() == dict(expected.named_parameters()).keys()
    for module in (exported, expected):
        module(x).square().sum().backward()
    for name, parameter in expected.named_parameters():
        assert relative_error(names[name].grad, parameter.grad) < 1e-10, name


@needs_torch("2.8", "exporting a model for any batch")
@pytest.mark.parametrize("axis", ["height", "width"])
def test_exported_for_any_frames_of_any_batch(axis: str) -> None:
    _, model = models()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model,
        (spectrograms(CONFIG, 2), torch.tensor([4, 2])),
        {"lengths_axis": axis},
        dynamic_shapes={"x": {0: batch}, "lengths": {0: batch}, "lengths_axis": None},
    ).module()
    for lengths in (torch.tensor([7]), torch.tensor([2, 6, 5])):
        x = spectrograms(CONFIG, len(lengths))
        wanted = model(x, lengths, lengths_axis=axis)
        assert relative_error(exported(x, lengths, lengths_axis=axis), wanted) < 1e-12


@needs_torch("2.10", "ONNX for any batch")
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_onnx_for_any_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    expected, model = models(torch.float32)
    batch = torch.export.Dim("batch")
    with caplog.at_level(logging.ERROR):
        program = torch.onnx.export(
            model,
            (spectrograms(CONFIG, 2, torch.float32),),
            input_names=["x"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["logits"]
    for size in (1, 2, 5):
        x = spectrograms(CONFIG, size, torch.float32)
        (logits,) = session.run(None, {"x": x.numpy()})
        assert relative_error(torch.from_numpy(logits), expected(x)) < 1e-5


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
def test_traced(gradients: bool) -> None:
    """For any batch, and on the parameters of the model, not on weights folded once."""
    expected, model = models()
    with warnings.catch_warnings(), torch.set_grad_enabled(gradients):
        warnings.simplefilter("ignore")
        model(spectrograms(CONFIG, 2))
        traced = torch.jit.trace(model, spectrograms(CONFIG, 2))
    for module in (model, expected):
        doubled(module)
    for size in (1, 2, 5):
        x = spectrograms(CONFIG, size)
        assert relative_error(traced(x), expected(x)) < 1e-12
    traced(x).sum().backward()
    expected(x).sum().backward()
    assert relative_error(model.cls_token.grad, expected.cls_token.grad) < 1e-10


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_a_file],
    ids=["deepcopy", "pickle", "file"],
)
def test_copies_of_the_whole_model(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Also after a call that kept folded weights, which belong to the one model alone."""
    expected, model = models()
    model.set_grad_checkpointing()
    x = spectrograms(CONFIG, 2)
    with torch.no_grad():
        before = model(x)
        other = copied(model)
        assert torch.equal(other(x), before)
        doubled(other)
        assert torch.equal(model(x), before)
        doubled(expected)
        assert relative_error(other(x), expected(x)) < 1e-12
    assert [block.recompute for block in other.blocks] == [True, True]
    assert [step.formulation for step in other.plan().steps] == FORMULATIONS


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, x: functional_call(model, parameters, (x,)).square().mean()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gradients_of_each_sample(recompute: bool) -> None:
    """Per-sample gradients, as differential privacy asks for; what is recomputed elsewhere is kept here."""
    expected, model = models()
    model.set_grad_checkpointing(recompute)
    x = spectrograms(CONFIG, 3)
    each = vmap(grad(loss_of(model)), (None, 0))(dict(model.named_parameters()), x.unsqueeze(1))
    for sample in range(3):
        loss = expected(x[sample : sample + 1]).square().mean()
        wanted = torch.autograd.grad(loss, list(expected.parameters()))
        for (name, _), value in zip(expected.named_parameters(), wanted, strict=True):
            assert relative_error(each[name][sample], value) < 1e-10, name


def test_directional_derivative() -> None:
    expected, model = models()
    x, direction = spectrograms(CONFIG, 2), spectrograms(CONFIG, 2)
    (logits, along), (wanted_logits, wanted) = (jvp(module, (x,), (direction,)) for module in (model, expected))
    assert relative_error(logits, wanted_logits) < 1e-12
    assert relative_error(along, wanted) < 1e-11


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
@pytest.mark.parametrize("stacked", ["all", "transformer.0.pos_embedding_w", "fc.bias"])
def test_several_models_at_once(gradients: bool, stacked: str) -> None:
    """An ensemble over all parameters or one of them, after a call that kept folded weights."""
    pairs = [models() for _ in range(3)]
    for expected, model in pairs[1:]:
        for module in (expected, model):
            others = {name for name, _ in module.named_parameters() if stacked not in ("all", name)}
            module.load_state_dict({n: v for n, v in pairs[0][1].state_dict().items() if n in others}, strict=False)
    parameters, _ = stack_module_state([model for _, model in pairs])
    axes = {name: 0 if stacked in ("all", name) else None for name in parameters}
    given = {name: value if axes[name] == 0 else value[0] for name, value in parameters.items()}
    x, model = spectrograms(CONFIG, 2), pairs[0][1]
    with torch.set_grad_enabled(gradients):
        model(x)
        together = vmap(lambda values: functional_call(model, values, (x,)), (axes,))(given)
        wanted = torch.stack([expected(x) for expected, _ in pairs])
    assert relative_error(together, wanted) < 1e-12
    assert together.requires_grad == gradients
    assert relative_error(wanted[0], wanted[1]) > 1e-3


def watched(module: nn.Module) -> list[str]:
    """Names of the submodules of `module` that are called, in order, as hooks on all of them see it."""
    called: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        return lambda *_: called.append(name)

    for name, one in module.named_modules():
        one.register_forward_hook(watch(name))
    return called


@pytest.mark.parametrize("formulation", [None, "direct"])
def test_hooks_are_called_as_those_of_the_reference(formulation: str | None) -> None:
    expected, model = pair(CONFIG, formulation=formulation)
    wanted, called = watched(expected), watched(model)
    x = spectrograms(CONFIG, 1)
    assert relative_error(model(x), expected(x)) < 1e-12
    assert called == wanted


@pytest.mark.parametrize("when", ["before", "after"])
def test_hook_on_the_classifier_sees_the_batch(when: str) -> None:
    """Also where it would be called for each sample."""
    model, seen = SepTr(**CONFIG).eval(), []
    register = model.fc.register_forward_pre_hook if when == "before" else model.fc.register_forward_hook
    register(lambda _, given, *__: seen.append(len(given[0])))
    with torch.no_grad():
        model(spectrograms(CONFIG, 3, torch.float32))
    assert seen == [3]


def test_hooks_inside_of_a_block() -> None:
    arguments: Any = (2, (6, 4), 2, 8, 4, (2, 2), True, True, 8)
    expected = reference.SepTrBlock(*arguments)
    block = SepTrBlock(*arguments)
    block.load_state_dict(expected.state_dict())
    wanted, called = watched(expected), watched(block)
    x, cls_token = torch.randn(2, 2, 6, 4), torch.randn(1, 1, 1, 8)
    for ours, theirs in zip(block(x, cls_token), expected(x, cls_token), strict=True):
        assert relative_error(ours, theirs) < 1e-5
    assert called == wanted


@pytest.fixture
def hub() -> Any:
    """`septr_fast.hub`, which needs a package of its own."""
    pytest.importorskip("huggingface_hub")
    from septr_fast.adopt import hub

    return hub


def test_hub_folder(hub: Any, tmp_path: Path) -> None:
    options = {**CONFIG, "return_cls": True, "first_axis": "width", "dropout_tr": 0.2}
    positional = [options.pop(name) for name in ("channels", "input_size")]
    model = hub.SepTr(*positional, **options).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {**CONFIG, "input_size": [9, 7], "down_sample_input": [2, 1], "dropout_tr": 0.2}.items() <= config.items()
    x = spectrograms(CONFIG, 2, torch.float32)
    loaded = hub.SepTr.from_pretrained(str(tmp_path))
    assert isinstance(loaded, SepTr)
    assert not loaded.training
    for result, wanted in zip(loaded(x), model(x), strict=True):
        assert torch.equal(result, wanted)
    plain = SepTr(**config)
    from safetensors.torch import load_file

    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(plain.eval()(x)[0], model(x)[0])


def test_hub_weights_have_to_fit(hub: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    hub.SepTr(**CONFIG).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["cls_token"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="cls_token"):
        hub.SepTr.from_pretrained(str(tmp_path))
    hub.SepTr.from_pretrained(str(tmp_path), strict=False)


def test_parameters_without_weight_decay() -> None:
    model = SepTr(**CONFIG)
    tokens = {"cls_token"} | {f"transformer.{i}.pos_embedding_{side}" for i in (0, 1) for side in "hw"}
    assert model.no_weight_decay() == tokens
    model.transformer[0].transformer_h.requires_grad_(False)
    decayed, others = model.parameter_groups(0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        name
        for name, _ in model.named_parameters()
        if name.endswith("weight") and "norm" not in name and "0.transformer_h" not in name
    }
    together = [id(parameter) for parameter in (*decayed["params"], *others["params"])]
    assert sorted(together) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    optimizer = torch.optim.AdamW([decayed, others], lr=0.1, weight_decay=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    for name, value in model.state_dict().items():
        factor = 0.995 if id(model.get_parameter(name)) in {id(one) for one in decayed["params"]} else 1.0
        assert relative_error(value, factor * before[name]) < 1e-6, name


def replicated(module: nn.Module, known: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """`module` as `nn.DataParallel` replicates it for a GPU: copies of its parameters, which are no parameters."""
    known = {} if known is None else known
    if module not in known:
        known[module] = copied = module._replicate_for_data_parallel()
        copied._former_parameters = {}
        for name, below in module._modules.items():
            copied._modules[name] = None if below is None else replicated(below, known)
        for name, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[name] = None
            else:
                copied._former_parameters[name] = parameter.view_as(parameter)
                setattr(copied, name, copied._former_parameters[name])
    return known[module]


def test_replicas_of_data_parallel() -> None:
    """Each follows the parameters of the model, with gradients and without, in threads of their own."""
    expected, model = models()
    parts = [spectrograms(CONFIG, size) for size in (2, 3)]
    for change in (lambda model: None, doubled):
        for module in (expected, model):
            change(module)
        with torch.no_grad():
            assert all(relative_error(replicated(model)(x), expected(x)) < 1e-12 for x in parts)
        replicas = [replicated(model) for _ in parts]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda replica, x: replica(x), replicas, parts))
        model.zero_grad()
        torch.cat(found).square().sum().backward()
        expected.zero_grad()
        expected(torch.cat(parts)).square().sum().backward()
        wanted = dict(expected.named_parameters())
        for name, parameter in model.named_parameters():
            assert relative_error(parameter.grad, wanted[name].grad) < 1e-11, name
