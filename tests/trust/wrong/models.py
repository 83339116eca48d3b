"""Wrong calls of the model and its blocks: constructor, inputs, lengths, sizes, state dicts, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from septr_fast.kernels.axis_attention_operator import axis_attention
from torch import Tensor
from torch.masked import masked_tensor

from septr_fast import SepTr, SepTrBlock
from trust.wrong.calls import SIZES, Subject, WrongCall

NAN = float("nan")

ARGUMENTS: list[tuple[str, Any, str]] = [
    ("depth", 0, "depth: expected a positive int, got 0"),
    ("depth", -1, "depth"),
    ("depth", 1.0, "depth"),
    ("depth", NAN, "depth"),
    ("depth", None, "depth"),
    ("channels", 0, "channels"),
    ("channels", True, "channels"),
    ("heads", 0, "heads"),
    ("heads", "2", "heads"),
    ("dim", -8, "dim"),
    ("dim", [8], "dim"),
    ("dim_head", 4.0, "dim_head"),
    ("mlp_dim", 0, "mlp_dim"),
    ("num_classes", -1, "num_classes"),
    ("num_classes", torch.tensor(3.0), "num_classes"),
    ("input_size", (6, 8, 1), "input_size"),
    ("input_size", (6, 0), "input_size"),
    ("input_size", (6.0, 8), "input_size"),
    ("input_size", None, "input_size"),
    ("input_size", "68", "input_size"),
    ("input_size", -6, "input_size"),
    ("input_size", (True, 8), "input_size"),
    ("down_sample_input", 0, "down_sample_input"),
    ("down_sample_input", (7, 1), "down_sample_input"),
    ("down_sample_input", (2,), "down_sample_input"),
    ("down_sample_input", 0.5, "down_sample_input"),
    ("dropout_tr", 1.5, "dropout_tr"),
    ("dropout_tr", -0.1, "dropout_tr"),
    ("dropout_tr", NAN, "dropout_tr"),
    ("dropout_tr", "0.1", "dropout_tr"),
    ("dropout_tr", None, "dropout_tr"),
    ("first_axis", "time", "first_axis"),
    ("first_axis", None, "first_axis"),
    ("formulation", "fast", "formulation"),
    ("formulation", 3, "formulation"),
    ("formulation", ["direct"], "formulation"),
    ("formulation", [None, "low-rank"], "formulation"),
    ("formulation", ["class-only", None], "formulation"),
    ("backend", "cuda", "backend"),
    ("backend", None, "backend"),
]

BLOCK: dict[str, Any] = {"channels": 8, "input_size": (6, 8), "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}


LOADS: dict[str, dict[str, bool]] = {
    "load_state_dict": {},
    "load_state_dict in part": {"strict": False},
    "load_state_dict by assignment": {"assign": True},
}
BROKEN: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("empty", lambda state: {}, "cls_token"),
    ("a key missing", lambda state: _without(state, "fc.weight"), "fc.weight"),
    ("a key too many", lambda state: {**state, "fc.scale": torch.ones(1)}, "fc.scale"),
    ("a prefix", lambda state: {f"module.{key}": x for key, x in state.items()}, "module.cls_token"),
    ("more classes", lambda state: {**state, "fc.bias": torch.zeros(4)}, "fc.bias"),
    ("another width", lambda state: {**state, "cls_token": torch.zeros(1, 1, 1, 9)}, "cls_token"),
    (
        "another length",
        lambda state: {**state, "transformer.0.pos_embedding_w": torch.zeros(1, 1, 10, 8)},
        "transformer.0.pos_embedding_w",
    ),
    ("a text in place of a tensor", lambda state: {**state, "fc.bias": "zeros"}, "fc.bias"),
    ("an array of objects", lambda state: {**state, "fc.bias": [object()]}, "fc.bias"),
    ("a tensor without data", lambda state: {**state, "fc.bias": torch.zeros(3, device="meta")}, "fc.bias"),
    ("a sparse tensor", lambda state: {**state, "fc.bias": torch.zeros(3).to_sparse()}, "fc.bias"),
]
ALLOWED = {
    "load_state_dict in part": ("empty", "a key missing", "a key too many", "a prefix"),
    "load_state_dict by assignment": ("a tensor without data", "a sparse tensor"),
}
"""What PyTorch takes; a parameter without values fails in the next call."""


def calls() -> Iterator[WrongCall]:
    """All of them."""
    for argument, value, culprit in ARGUMENTS:
        yield WrongCall(f"SepTr({argument}={value!r})", ValueError, culprit, _constructor(argument, value))
    for name, change, error, culprit in _inputs():
        yield WrongCall(f"model(x), {name}", error, culprit, lambda on, change=change: on.model(change(on.x)))
    yield from _views()
    for name, lengths, error in _lengths():
        yield WrongCall(f"lengths {name}", error, "lengths: ", lambda on, given=lengths: on.model(on.x, given))
    yield from _states()
    yield from _blocks()
    yield from _gradients()


def _constructor(argument: str, value: Any) -> Any:
    return lambda on: SepTr(**{**SIZES, argument: value})


def _inputs() -> list[tuple[str, Any, type[Exception], str]]:
    return [
        ("a list", Tensor.tolist, TypeError, "x: expected a tensor"),
        ("an array", Tensor.numpy, TypeError, "got ndarray"),
        ("nothing", lambda x: None, TypeError, "got NoneType"),
        ("no batch", lambda x: x[0], ValueError, "x: expected (batch, 1, 6, 8), got 3 dimensions"),
        ("no dimension", lambda x: x.sum(), ValueError, "x: expected (batch, 1, 6, 8), got 0 dimensions"),
        ("five dimensions", lambda x: x[None], ValueError, "x: expected (batch, 1, 6, 8), got 5 dimensions"),
        ("three channels", lambda x: x.repeat(1, 3, 1, 1), ValueError, "x: expected 1 channels"),
        ("no channel", lambda x: x[:, :0], ValueError, "x: expected 1 channels"),
        ("transposed", lambda x: x.transpose(2, 3), ValueError, "x: expected input_size (6, 8)"),
        ("a column more", lambda x: torch.cat([x, x[..., :1]], 3), ValueError, "x: expected input_size (6, 8)"),
        ("a row less", lambda x: x[:, :, 1:], ValueError, "x: expected input_size (6, 8)"),
        ("no column", lambda x: x[..., :0], ValueError, "x: expected input_size (6, 8)"),
        ("float64", Tensor.double, TypeError, "x: expected torch.float32"),
        ("float16", Tensor.half, TypeError, "x: expected torch.float32"),
        ("bfloat16", Tensor.bfloat16, TypeError, "x: expected torch.float32"),
        ("int64", Tensor.long, TypeError, "x: expected torch.float32"),
        ("bool", Tensor.bool, TypeError, "x: expected torch.float32"),
        ("complex", lambda x: x.to(torch.complex64), TypeError, "x: expected torch.float32"),
        ("float8", lambda x: x.to(torch.float8_e4m3fn), TypeError, "x: expected torch.float32"),
        ("meta", lambda x: x.to("meta"), TypeError, "x: expected a tensor on cpu"),
        ("sparse", Tensor.to_sparse, TypeError, "x: expected a dense tensor"),
        ("sparse rows", Tensor.to_sparse_csr, TypeError, "x: expected a dense tensor"),
        ("of oneDNN", Tensor.to_mkldnn, TypeError, "x: expected a dense tensor"),
        ("nested", lambda x: torch.nested.nested_tensor(list(x)), TypeError, "x: expected a dense tensor"),
        (
            "nested, jagged",
            lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
            TypeError,
            "x: expected a dense tensor",
        ),
        ("masked", lambda x: masked_tensor(x, x > 0), TypeError, "MaskedTensor"),
    ]


def _views() -> Iterator[WrongCall]:
    def narrow(on: Subject) -> Tensor:
        return on.x[..., 1:]

    def call(name: str, culprit: str, made: Any) -> WrongCall:
        return WrongCall(name, ValueError, culprit, made)

    yield call("forward_features of another width", "x: expected input_size", lambda on: _features(on, narrow(on)))
    yield call(
        "attention_maps of another width", "x: expected input_size", lambda on: on.model.attention_maps(narrow(on))
    )
    yield call("attention_maps(queries=…)", "queries", lambda on: on.model.attention_maps(on.x, queries="grid"))
    yield call("attention_maps(queries=None)", "queries", lambda on: on.model.attention_maps(on.x, queries=None))
    yield call("lengths_axis of another name", "lengths_axis", lambda on: on.model(on.x, [4, 4], lengths_axis="time"))
    yield call("lengths_axis without lengths", "lengths_axis", lambda on: on.model(on.x, lengths_axis="time"))
    for size in ((6, 0), (0, 8), -1, (NAN, 8), (6.0, 8.0), "big", None, (1, 2, 3)):
        yield call(f"resize_positions({size!r})", "input_size", lambda on, size=size: on.model.resize_positions(size))


def _features(on: Subject, x: Tensor) -> object:
    return on.model.forward_features(x)


def _lengths() -> list[tuple[str, Any, type[Exception]]]:
    pair = torch.tensor([4, 4])
    return [
        ("zero", [0, 4], ValueError),
        ("negative", [4, -1], ValueError),
        ("too long", [9, 4], ValueError),
        ("far too long", [2**40, 4], ValueError),
        ("beyond int64", [2**70, 4], TypeError),
        ("too few", [4], ValueError),
        ("too many", [4, 4, 4], ValueError),
        ("a number", 4, ValueError),
        ("a column", pair[:, None], ValueError),
        ("none of them", [], (ValueError, TypeError)),
        ("floats", [4.0, 4.0], TypeError),
        ("NaN", [NAN, 4], TypeError),
        ("infinite", torch.tensor([float("inf"), 4]), TypeError),
        ("that require gradients", torch.tensor([4.0, 4.0], requires_grad=True), TypeError),
        ("bool", torch.tensor([True, True]), TypeError),
        ("complex", pair.to(torch.complex64), TypeError),
        ("uint32", pair.to(torch.uint32), TypeError),
        ("texts", ["4", "4"], TypeError),
        ("with None", [4, None], TypeError),
        ("ragged", [[4], [4, 4]], TypeError),
        ("a dictionary", {0: 4, 1: 4}, TypeError),
        ("a generator", (length for length in (4, 4)), TypeError),
        ("sparse", pair.to_sparse(), TypeError),
        ("meta", pair.to("meta"), TypeError),
    ]


def _states() -> Iterator[WrongCall]:
    """Loads into the subject itself, which a load that fails must leave as it is."""
    for name, options in LOADS.items():
        for what, change, culprit in BROKEN:
            if what not in ALLOWED.get(name, ()):
                yield _load(f"{name}, {what}", "", change, culprit, options)
    yield _load("load_state_dict, nothing", "", lambda state: None, "state_dict", {}, TypeError)
    yield _load("load_state_dict, a list", "", list, "state_dict", {}, TypeError)
    yield _load(
        "load_state_dict of a block, another width",
        "transformer.0",
        lambda state: {**state, "pos_embedding_h": torch.zeros(1, 1, 7, 9)},
        "pos_embedding_h",
        {},
    )
    yield _load(
        "load_state_dict of a block, a key missing",
        "transformer.0",
        lambda state: _without(state, "projection.weight"),
        "projection.weight",
        {},
    )


def _load(
    name: str,
    module: str,
    change: Callable[[dict[str, Any]], object],
    culprit: str,
    options: dict[str, bool],
    error: type[Exception] = RuntimeError,
) -> WrongCall:
    """A load of other values than the subject's, but for what `change` does, so that what is copied is seen."""

    def call(on: Subject) -> object:
        into = on.model.get_submodule(module)
        return into.load_state_dict(change({key: x + 1 for key, x in into.state_dict().items()}), **options)

    return WrongCall(name, error, culprit, call)


def _without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: x for name, x in state.items() if name != key}


def _blocks() -> Iterator[WrongCall]:
    x, cls_token = torch.zeros(3, 8, 6, 8), torch.zeros(1, 1, 1, 8)
    given: list[tuple[str, Any, Any, type[Exception], str]] = [
        ("one dimension", x, torch.zeros(8), ValueError, "cls_token"),
        ("another batch", x, torch.zeros(2, 1, 1, 8), ValueError, "cls_token"),
        ("another width", x, torch.zeros(3, 1, 1, 4), ValueError, "cls_token"),
        ("float64", x, cls_token.double(), TypeError, "cls_token"),
        ("meta", x, cls_token.to("meta"), TypeError, "cls_token"),
        ("a map of one channel", x[:, :1], cls_token, ValueError, "x: expected 8 channels"),
        ("a map that is sparse", x.to_sparse(), cls_token, TypeError, "x: expected a dense tensor"),
    ]
    for name, feature_map, token, error, culprit in given:
        yield WrongCall(
            f"block(x, cls_token), {name}", error, culprit, lambda on, a=feature_map, b=token: SepTrBlock(**BLOCK)(a, b)
        )
    for argument, value in (("heads", 0), ("input_size", (0, 8)), ("formulation", ["direct"] * 3), ("backend", "gpu")):
        yield WrongCall(
            f"SepTrBlock({argument}={value!r})",
            ValueError,
            argument,
            lambda on, argument=argument, value=value: SepTrBlock(**{**BLOCK, argument: value}),
        )


def _gradients() -> Iterator[WrongCall]:
    yield WrongCall("backward of no scalar", RuntimeError, "scalar", lambda on: SepTr(**SIZES)(on.x).backward())
    yield WrongCall("backward twice", RuntimeError, "second time", _backward_twice)
    yield WrongCall("a parameter of another dtype", TypeError, "parameters: expected one dtype", _half_built)
    yield WrongCall("a submodule elsewhere", TypeError, "parameters: expected one dtype and device", _moved)
    yield WrongCall("a second derivative of a kernel", RuntimeError, "axis_attention", _second_derivative)


def _backward_twice(on: Subject) -> None:
    total = SepTr(**SIZES)(on.x).sum()
    total.backward()
    total.backward()


def _half_built(on: Subject) -> None:
    model = SepTr(**SIZES)
    model.fc.half()
    model(on.x)


def _moved(on: Subject) -> None:
    model = SepTr(**SIZES)
    model.transformer[0].to("meta")
    model(on.x)


def _second_derivative(on: Subject) -> None:
    """Refused where it is asked for; launches of the first derivative are right, so shapes alone are given."""
    grid, token = (torch.zeros(1, 2, 2, 4, device="meta", requires_grad=True), torch.zeros(1, 4, device="meta"))
    out = axis_attention(grid, grid, None, token, token, None, 1, "width")[0]
    (first,) = torch.autograd.grad(out.sum(), grid, create_graph=True)
    torch.autograd.grad(first.sum(), grid)
