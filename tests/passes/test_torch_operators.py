"""Compiled inference on a CPU: each pass is one operator, with the results of the uncompiled model."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import pair, relative_error, spectrograms
from support.versions import needs_torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

import septr_fast
from septr_fast import SepTr
from septr_fast.passes.torch.operators import _axis_pass, _class_only_pass, _low_rank_pass

CONFIG: dict[str, Any] = {
    "channels": 2,
    "input_size": (9, 7),
    "num_classes": 4,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "dim": 8,
}
FORMULATIONS = ["low-rank", "direct", "merged", "class-only"]
OPERATORS = Counter({"torch_low_rank_pass": 1, "torch_axis_pass": 2, "torch_class_only_pass": 1})


def fast_model(dtype: torch.dtype = torch.float64, **options: Any) -> SepTr:
    return pair({**CONFIG, **options}, dtype, formulation=FORMULATIONS)[1].eval()


class Watched:
    """A model compiled as one graph, and the operators of the graphs that were made."""

    def __init__(self, model: torch.nn.Module, *, lowered: bool = False) -> None:
        torch.compiler.reset()
        self.lowered = lowered
        self.graphs: list[Counter[str]] = []
        self.model = torch.compile(model, fullgraph=True, backend=self._compile)

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        names = (str(node.target) for node in graph.graph.nodes if "septr_fast.torch_" in str(node.target))
        self.graphs.append(Counter(name.split(".")[1] for name in names))
        return aot_eager(graph, inputs) if self.lowered else graph


def test_each_pass_is_one_operator_for_all_batches() -> None:
    model = fast_model()
    watched = Watched(model, lowered=True)
    with torch.no_grad():
        for batch in (2, 5):
            x = spectrograms(CONFIG, batch)
            torch._dynamo.mark_dynamic(x, 0)
            assert relative_error(watched.model(x), model(x)) < 1e-14
    assert watched.graphs == [OPERATORS]


@pytest.mark.parametrize("axis", ["height", "width"])
def test_padded_batches(axis: str) -> None:
    model = fast_model()
    watched = Watched(model)
    x, lengths = spectrograms(CONFIG, 3), torch.tensor([3, 7, 1])
    with torch.no_grad():
        padded = watched.model(x, lengths, lengths_axis=axis)
        assert relative_error(padded, model(x, lengths, lengths_axis=axis)) < 1e-14
        assert relative_error(padded, model(x)) > 1e-6
    assert watched.graphs == [OPERATORS]


def test_in_autocast() -> None:
    model = fast_model(torch.float32)
    watched = Watched(model)
    x = spectrograms(CONFIG, 2, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, wanted = watched.model(x), model(x)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, wanted)
    assert watched.graphs == [OPERATORS]


def test_a_compiler_sees_into_a_pass_where_gradients_or_dropout_are_wanted() -> None:
    model = fast_model(dropout_tr=0.2)
    watched = Watched(model)
    x = spectrograms(CONFIG, 2)
    watched.model(x).sum().backward()
    model.train()
    with torch.no_grad():
        watched.model(x)
    assert watched.graphs == [Counter(), Counter()]


@needs_torch("2.8", "strict export without operators of this package")
def test_an_exported_program_needs_no_operator_of_this_package() -> None:
    with torch.no_grad():
        program = torch.export.export(fast_model(), (spectrograms(CONFIG, 2),))
    assert not any("septr_fast" in str(node.target) for node in program.graph.nodes)


def test_operators_keep_what_they_promise() -> None:
    """The checks of PyTorch: schema, shapes and strides without data, and what a compiler makes of them."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    model = fast_model()

    def note(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        class Interpreter(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                if "septr_fast.torch_" in str(target):
                    calls.append((target, args))
                return super().call_function(target, args, kwargs)

        return lambda *inputs: Interpreter(graph).run(*inputs)

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, fullgraph=True, backend=note)(spectrograms(CONFIG, 2), torch.tensor([3, 6]))
        assert {target for target, _ in calls} == {
            operator._opoverload for operator in (_axis_pass, _low_rank_pass, _class_only_pass)
        }
        for target, arguments in calls:
            torch.library.opcheck(target, arguments, test_utils=("test_schema", "test_faketensor"))


def test_what_a_compiled_block_is_given_stays_as_it_is() -> None:
    block = pair({**CONFIG, "depth": 2}, torch.float64)[1].eval().blocks[1]
    watched = Watched(block)
    x, cls_token = torch.randn(2, 8, 9, 7).double(), torch.randn(2, 1, 1, 8).double()
    given = x.clone()
    with torch.no_grad():
        found, wanted = watched.model(x, cls_token), block(x, cls_token)
    assert torch.equal(x, given)
    assert all(relative_error(a, b) < 1e-14 for a, b in zip(found, wanted, strict=True))
    assert watched.graphs == [Counter({"torch_axis_pass": 2})]


UNKNOWN = {"starmap", "is_exporting", "is_autocast_available"}
"""What the compiler of PyTorch 2.11, the oldest that is served, cannot trace or takes for something else."""


def test_the_oldest_pytorch_can_compile_the_package() -> None:
    package = Path(septr_fast.__file__).parent
    files = sorted(package.rglob("*.py"))
    assert package / "passes" / "torch" / "passes.py" in files
    for file in files:
        tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        names = {getattr(node, "attr", getattr(node, "id", None)) for node in tree}
        assert not names & UNKNOWN, file.name
