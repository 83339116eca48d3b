"""Every formulation against the reference: results, every gradient, sizes, dtypes, dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import gradients, pair, relative_error, spectrograms, worst

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr, SepTrBlock, reference
from septr_fast.passes.torch import chunks

FORMULATIONS = [None, "direct", "merged", "low-rank", "class-only"]
CONFIGS = [pytest.param(config, id=name) for name, config in SMALL.items()]


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=lambda name: name or "planned")
@pytest.mark.parametrize("first_axis", ["height", "width"])
@pytest.mark.parametrize("config", CONFIGS)
def test_model_and_gradients(config: dict[str, Any], first_axis: str, formulation: str | None) -> None:
    expected, model = pair({**config, "first_axis": first_axis}, formulation=formulation)
    x = spectrograms(config, batch=2)
    wanted = gradients(expected, x)
    error, where = worst(gradients(model, x), wanted)
    assert error < 1e-11, where
    with torch.no_grad():
        assert relative_error(model.eval()(x), wanted["logits"]) < 1e-12


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("formulation", FORMULATIONS, ids=lambda name: name or "planned")
def test_batch_sizes(batch: int, formulation: str | None) -> None:
    config = SMALL["uneven pooling"]
    expected, model = pair(config, formulation=formulation)
    x = spectrograms(config, batch)
    assert model(x).shape == (batch, 35)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-11
    with torch.no_grad():
        assert relative_error(model.eval()(x), expected(x)) < 1e-12


@pytest.mark.parametrize("formulation", ["direct", "merged", "low-rank", "class-only"])
def test_gradcheck(formulation: str) -> None:
    config = {"input_size": (3, 2), "channels": 2, "num_classes": 2, "depth": 1, "heads": 2, "dim_head": 3}
    _, model = pair({**config, "mlp_dim": 3, "dim": 4}, formulation=formulation)
    names, values = zip(*model.named_parameters(), strict=True)
    x = spectrograms(config, batch=2).requires_grad_()

    def logits(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, (x, *values))


@pytest.mark.parametrize("formulation", ["direct", "merged", "low-rank", "class-only"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_second_derivatives(dtype: torch.dtype, formulation: str) -> None:
    """A gradient penalty: the gradient in every parameter of the squared norm of the input's gradient."""
    config = SMALL["tall"]
    expected, model = pair(config, formulation=formulation)
    x = spectrograms(config, batch=2)
    penalties = []
    for module, kind in ((expected, torch.float64), (model, dtype)):
        leaf = x.to(kind).requires_grad_()
        (slope,) = torch.autograd.grad(module.to(kind)(leaf).sin().sum(), leaf, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), list(module.parameters()), allow_unused=True))
    largest = max(gradient.norm().item() for gradient in penalties[0] if gradient is not None)
    for wanted, result in zip(*penalties, strict=True):
        assert (result is None) == (wanted is None)
        if result is not None and wanted is not None:
            limit = (1e-11 if dtype == torch.float64 else 1e-5) * largest
            assert (result.double() - wanted).norm().item() < limit


@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded", "channels last"])
def test_input_layouts(layout: str) -> None:
    config = {**SMALL["many channels"], "input_size": (6, 6)}
    _, model = pair(config)
    x = spectrograms(config, batch=4)
    views = {
        "sliced": torch.cat([x, x], dim=3)[:, :, :, ::2],
        "transposed": x.transpose(2, 3),
        "expanded": x[:1].expand(4, -1, -1, -1),
        "channels last": x.to(memory_format=torch.channels_last),
    }
    before = views[layout].clone()
    torch.testing.assert_close(model(views[layout]), model(before.contiguous()), rtol=0, atol=1e-13)
    assert torch.equal(views[layout], before)


@pytest.mark.parametrize("formulation", ["direct", "merged", "low-rank"])
def test_long_sequences_are_streamed(formulation: str) -> None:
    config = {"input_size": (2, 1100), "num_classes": 3, "depth": 1, "heads": 2, "dim_head": 8, "dim": 8, "mlp_dim": 8}
    expected, model = pair({**config, "first_axis": "width"}, formulation=formulation)
    x = spectrograms(config, batch=1)
    assert worst(gradients(model, x), gradients(expected, x))[0] < 1e-10


def test_a_sample_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large samples, for which this one is taken: bit for bit up to the classifier's product over the batch."""
    monkeypatch.setattr(chunks, "LEAST_ALONE_BYTES", 1)
    config = {"input_size": (24, 40), "depth": 2, "return_cls": True}
    model = SepTr(**config).eval()
    x = spectrograms(config, batch=3, dtype=torch.float32)
    with torch.no_grad():
        logits, features = model(x)
        for index in range(3):
            one_logits, one_features = model(x[index : index + 1])
            assert torch.equal(one_features[0], features[index])
            torch.testing.assert_close(one_logits[0], logits[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["square", "many channels", "single full head", "uneven pooling"])
def test_float32_is_as_accurate_as_the_reference(name: str) -> None:
    """Against float64 over six models: no tensor's error above twice the reference's, on average a quarter at most."""
    ours: dict[str, float] = {}
    plain: dict[str, float] = {}
    for _ in range(6):
        exact, model = pair(SMALL[name])
        x = spectrograms(SMALL[name], batch=8)
        wanted = gradients(exact, x)
        for errors, results in (
            (ours, gradients(model.float(), x.float())),
            (plain, gradients(exact.float(), x.float())),
        ):
            for key, value in wanted.items():
                errors[key] = errors.get(key, 0.0) + (results[key].double() - value).square().sum().item()
    ratios = {key: (ours[key] / plain[key]) ** 0.5 for key in ours}
    assert all(ratio <= 2 for ratio in ratios.values()), ratios
    assert sum(ratios.values()) / len(ratios) <= 1.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("mixed", [False, True], ids=["module", "autocast"])
@pytest.mark.parametrize("name", ["square", "many channels", "uneven pooling", "wide heads"])
def test_half_precision(name: str, mixed: bool, dtype: torch.dtype) -> None:
    config = SMALL[name]
    exact, model = pair(config, torch.float32)
    if not mixed:
        exact, model = exact.to(dtype), model.to(dtype)
    x = spectrograms(config, batch=16, dtype=torch.float32).to(dtype)
    results = {}
    with torch.autocast("cpu", dtype, enabled=mixed):
        for key, module in (("ours", model), ("plain", exact)):
            results[key] = gradients(module, x.float() if mixed else x)
    wanted = gradients(exact.double(), x.double())
    for key in ("logits", "input", "cls_token", "fc.weight", "transformer.0.pos_embedding_w"):
        ours, plain = (relative_error(results[who][key], wanted[key]) for who in ("ours", "plain"))
        assert ours <= 2 * plain + torch.finfo(dtype).eps, f"{key}: {ours:.1e}, plain PyTorch {plain:.1e}"


def test_dropout_is_absent_in_evaluation() -> None:
    config = {**SMALL["square"], "dropout_tr": 0.5}
    expected, model = pair(config)
    x = spectrograms(config, batch=2)
    assert not torch.equal(model(x), model(x))
    assert relative_error(model.eval()(x), expected.eval()(x)) < 1e-12


@pytest.mark.parametrize("formulation", ["direct", "merged", "low-rank", "class-only"])
def test_dropout_has_the_references_distribution(formulation: str) -> None:
    """Mean and spread of each logit over many draws, each mean within five standard errors."""
    config = {**SMALL["tall"], "num_classes": 3, "dropout_tr": 0.3}
    expected, model = pair(config, torch.float32, formulation=formulation)
    x = spectrograms(config, 1, torch.float32).expand(1500, -1, -1, -1)
    with torch.no_grad():
        wanted, drawn = expected(x), model(x)
    error = (wanted.var(0) / len(x) + drawn.var(0) / len(x)).sqrt()
    assert ((wanted.mean(0) - drawn.mean(0)).abs() < 5 * error).all()
    assert (drawn.std(0) / wanted.std(0)).sub(1).abs().max() < 0.12
    assert (drawn.std(0) > 0.01).all()


@pytest.mark.parametrize("formulation", ["direct", "merged", "low-rank", "class-only"])
def test_dropout_of_everything_leaves_the_residual(formulation: str) -> None:
    config = {**SMALL["square"], "dropout_tr": 1.0}
    expected, model = pair(config, formulation=formulation)
    x = spectrograms(config, batch=2)
    assert relative_error(model(x), expected(x)) < 1e-12


@pytest.mark.parametrize("first_axis", ["height", "width"])
def test_class_token_beside_the_logits(first_axis: str) -> None:
    config = {**SMALL["wide"], "return_cls": True, "first_axis": first_axis}
    expected, model = pair(config)
    x = spectrograms(config, batch=3)
    (logits, features), (wanted, wanted_features) = model(x), expected(x)
    assert features.shape == (3, 12)
    assert relative_error(logits, wanted) < 1e-12
    assert relative_error(features, wanted_features) < 1e-12


@pytest.mark.parametrize("reconstruct", [False, True], ids=["dim out", "channels out"])
@pytest.mark.parametrize("project", [False, True], ids=["tokens in", "pixels in"])
@pytest.mark.parametrize("cls_batch", [1, 3], ids=["shared class token", "one for each sample"])
def test_block(cls_batch: int, project: bool, reconstruct: bool) -> None:
    options = {"heads": 2, "mlp_dim": 8, "dim_head": 4, "down_sample_input": (2, 3), "dim": 8}
    arguments = {"channels": 5, "input_size": [9, 8], "project": project, "reconstruct": reconstruct, **options}
    expected, block = reference.SepTrBlock(**arguments).double(), SepTrBlock(**arguments).double()
    block.load_state_dict(expected.state_dict())
    x = torch.randn(3, 5 if project else 8, 9, 8, dtype=torch.float64, requires_grad=True)
    cls_token = torch.randn(cls_batch, 1, 1, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (block, expected):
        grid, cls_out = module(x, cls_token)
        assert grid.shape == (3, 5 if reconstruct else 8, 8, 6)
        assert cls_out.shape == (3, 1, 1, 8)
        leaves = [x, cls_token, *module.parameters()]
        grads = torch.autograd.grad(grid.sin().sum() + cls_out.cos().sum(), leaves)
        with torch.no_grad():
            results.append([grid, cls_out, *grads, *module.eval()(x, cls_token)])
    for result, wanted in zip(*results, strict=True):
        assert relative_error(result, wanted) < 1e-11


def test_block_leaves_its_input_alone() -> None:
    block = SepTrBlock(4, (6, 6), dim=8, heads=2, dim_head=4).eval()
    x, cls_token = torch.randn(2, 6, 6, 8).permute(0, 3, 1, 2), torch.randn(2, 1, 1, 8)
    before = x.clone(), cls_token.clone()
    with torch.no_grad():
        block(x, cls_token)
    assert torch.equal(x, before[0])
    assert torch.equal(cls_token, before[1])
