"""NaN and infinity come out where the reference has them, and no sample sees another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from septr_fast.kernels import launch
from support.compare import gradients, pair
from support.judging import Results
from support.kernels.pass_cases import TILES
from torch import Tensor

from benchmarks.suite.shapes import SMALL
from septr_fast import SepTr
from trust.fuzzing.cases import AXES, DTYPES, FORMULATIONS, PassCase
from trust.fuzzing.chunks import KINDS, chunks, counted, never
from trust.fuzzing.models import Operands, expected_pass, run_pass
from trust.outcome import Outcome, Progress

NAME = "isolation"
WHAT = (
    "NaN, infinities and 1e18 in tokens, class token and positions of every pass, NaN and infinities in each of its "
    "weights and biases, all of them and 3e38, which overflows, in the gradients of what comes out, and 1e30, which "
    "overflows too, in a pixel of a model: results are not finite where the reference's are not, and no others. NaN "
    "or other neighbours in a batch leave the bits of a sample alone, in chunks of rows as shipped and in several "
    "chunks of a sample, and so does the size of the batch where a chunk holds one sample."
)
CANNOT = (
    "What a GPU's own products do. What comes of a pass over tokens from 2e19 on, whose squares overflow float32, and "
    "of weights' gradients where others overflow. 16-bit passes along the height, and in float16 1e18 and 3e38, which "
    "it cannot hold. On Triton weights hold NaN alone, along the width, and of 16-bit passes those in bfloat16 NaN and "
    "infinity in tokens and the first gradient. The same bits in a batch of any size are promised without gradients on "
    "a CPU for large samples, whose chunks hold no other, and elsewhere by `set_batch_invariant`; without it a table "
    "says how often they were the same."
)

VALUES = {"NaN": float("nan"), "infinity": float("inf"), "-infinity": -float("inf"), "1e18": 1e18}
"""Put into one place. From 2e19 on squares overflow float32, and what comes of a pass is its normalization's affair."""
OF_WEIGHTS = {name: value for name, value in VALUES.items() if name != "1e18"}
"""Folded weights are products: what overflows in them does not in the reference, or elsewhere."""
OVERFLOWS = 3e38
OF_GRADIENTS = {**VALUES, "3e38": OVERFLOWS}
"""After what overflows the gradients of weights, which folding adds up otherwise, are not compared."""
PIXELS = {**VALUES, "1e30": 1e30}
"""Put into one pixel of a spectrogram."""
INPUTS = ("tokens", "cls_token", "positions")
GRADIENTS = {"gradient": 0, "class token's gradient": -1}
"""Which of the results they belong to; the class token is the last."""
FEW = ("tokens", "gradient")
LARGE = {"input_size": (16, 24), "depth": 2, "heads": 4, "dim_head": 64, "dim": 64, "mlp_dim": 128}
"""Heads and tokens as wide as in a published narrow model."""
ODD = {"channels": 71, "input_size": (8, 48), "num_classes": 35, "heads": 3, "dim_head": 20, "dim": 44, "mlp_dim": 68}
"""No size is a multiple of a tile's."""
TINY = {"input_size": (3, 5), "num_classes": 4, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16, "dim": 16}
CONFIGS = {"small": SMALL["wide"], "pooled": SMALL["uneven pooling"], "large": LARGE, "odd": ODD}
IN_CHUNKS = {"small": 1, "pooled": 1 << 12, "odd": 1 << 16}
"""Bytes of a chunk, with which a sample takes several, for these too."""
ON_TRITON = {"tiny": TINY}
SEEN = 1
"""The sample of a batch of three that is looked at; its neighbours change."""


def pass_case(formulation: str, axis: str, backend: str, dtype: str = "float32", chunk: int | None = None) -> PassCase:
    """A pass over two samples of three sequences of five tokens."""
    return PassCase(
        formulation=formulation,
        backend=backend,
        axis=axis,
        shape=(2, 3, 5),
        heads=2,
        dim_head=8,
        dim=16,
        mlp_dim=16,
        channels=2,
        dtypes=(dtype, dtype),
        scale=1.0,
        layout="contiguous",
        gradient_layout="contiguous",
        padded=None,
        seed=0,
        chunk=chunk,
    )


def kinds(x: Tensor) -> Tensor:
    """0 where a value is finite, else what it is."""
    return x.isnan() + 2 * x.isposinf() + 3 * x.isneginf()


def differs(name: str, found: Tensor, expected: Tensor) -> bool:
    """Whether other values are not finite, or of another kind; of a gradient only whether others are.

    Folded weights bring their gradients back by another sum: of infinities it may be NaN.
    """
    if name in ("out", "cls_out", "logits"):
        return not torch.equal(kinds(found), kinds(expected))
    return not torch.equal(found.isfinite(), expected.isfinite())


def spread(case: PassCase, place: str, value: float) -> list[str]:
    """Results and gradients whose values that are not finite differ from the reference's.

    Args:
        case: the pass.
        place: one of `GRADIENTS`, or the name of an operand.
        value: put there.
    """
    torch.manual_seed(case.seed)
    operands = Operands(case).to(DTYPES[case.dtypes[0]])
    if place not in GRADIENTS:
        tensor = operands.get_parameter(place)
        with torch.no_grad():
            tensor[(0,) * (tensor.dim() - 1)][-1] = value
    with chunks(case.chunk):
        found, expected = (_step(run, operands, case, place, value) for run in (run_pass, expected_pass))
    exactly = place in INPUTS or place in GRADIENTS
    compared = [name for name in expected if value != OVERFLOWS or name in (*INPUTS, "out", "cls_out")]
    return [name for name in compared if differs(name if exactly else "of weights", found[name], expected[name])]


def _step(run: Callable[..., Results], operands: Operands, case: PassCase, place: str, value: float) -> Results:
    results = run(operands, case, None)
    random = torch.Generator().manual_seed(1)
    directions = [torch.randn(x.shape, generator=random).to(x.dtype) for x in results.values()]
    if place in GRADIENTS:
        directions[GRADIENTS[place]].view(-1)[0] = value
    named = dict(operands.named_parameters())
    found = torch.autograd.grad(list(results.values()), list(named.values()), directions, allow_unused=True)
    gradients = (torch.zeros_like(x) if g is None else g for g, x in zip(found, named.values(), strict=True))
    return {name: x.detach() for name, x in results.items()} | dict(zip(named, gradients, strict=True))


def spreads(full: bool) -> Iterator[tuple[str, list[str]]]:
    """Every pass, dtype, place and value that is tried, and what is wrong; in the short form few on Triton."""
    for case in (*_on_torch(), *_on_triton(full)):
        many = case.backend == "torch" or (full and case.dtypes[0] == "float32")
        for place, name, value in _tried(case, many, nan_alone=not full):
            of = f"{case.formulation} along the {case.axis} on {case.backend}, {case.dtypes[0]}"
            yield f"{name} in {place}, {of}, chunks of {case.chunk} bytes", spread(case, place, value)


def _on_torch() -> Iterator[PassCase]:
    """In float32 with chunks as shipped and a row each."""
    for formulation in FORMULATIONS:
        for axis in AXES:
            yield pass_case(formulation, axis, "torch")
            yield pass_case(formulation, axis, "torch", chunk=1)
        for dtype in ("float16", "bfloat16"):
            yield pass_case(formulation, "width", "torch", dtype)


def _on_triton(full: bool) -> Iterator[PassCase]:
    for formulation in FORMULATIONS:
        for axis in AXES if full else AXES[1:]:
            yield pass_case(formulation, axis, "triton")
        if full:
            yield pass_case(formulation, "width", "triton", "bfloat16")


def _tried(case: PassCase, many: bool, *, nan_alone: bool) -> Iterator[tuple[str, str, float]]:
    """Places, names of values and values; `many` of them, or those that few cases have."""
    largest = torch.finfo(DTYPES[case.dtypes[0]]).max
    places = [*INPUTS, *list(GRADIENTS)[: 1 if case.formulation == "class-only" else 2]] if many else FEW
    for place in places:
        values = OF_GRADIENTS if place in GRADIENTS else VALUES
        few = ("NaN",) if nan_alone else ("NaN", "infinity")
        for name in values if many else few:
            if not 0 <= values[name] < float("inf") or values[name] <= largest:
                yield place, name, values[name]
    if many:
        for place in weights(case):
            for name, value in OF_WEIGHTS.items() if case.backend == "torch" else [("NaN", OF_WEIGHTS["NaN"])]:
                if case.backend == "torch" or case.axis == "width":
                    yield place, name, value


def weights(case: PassCase) -> list[str]:
    """The names of all weights and biases that a pass takes."""
    return [name for name, _ in Operands(case).named_parameters() if name not in INPUTS]


def model_spreads(full: bool) -> Iterator[tuple[str, list[str]]]:
    """Every formulation, backend and value in one pixel of a batch, and what is wrong of logits and gradients.

    In the short form one of them.
    """
    for backend in ("torch", "triton"):
        for formulation in (None, *FORMULATIONS) if full else (None,):
            for name, value in PIXELS.items() if full else [("1e30", PIXELS["1e30"])]:
                torch.manual_seed(3)
                expected, model = pair(TINY, torch.float32, backend=backend, formulation=formulation)
                x = torch.randn(3, 1, *TINY["input_size"])
                x[SEEN, 0, 1, 2] = value
                wanted, found = gradients(expected, x), gradients(model, x)
                wrong = [key for key in wanted if differs(key, found[key], wanted[key])]
                yield f"{name} in a pixel, model {formulation or 'planned'} on {backend}", wrong


def outcome_of(model: SepTr, x: Tensor, *, training: bool, others: float = 1.0) -> Results:
    """Logits and class tokens; in training also the input's gradient, of what is one in `SEEN` and else `others`."""
    if not training:
        with torch.no_grad():
            logits, cls_token = model.eval()(x)
        return {"logits": logits, "class token": cls_token}
    leaf = x.clone().requires_grad_()
    logits, cls_token = model.train()(leaf)
    directions = [torch.full_like(out, others) for out in (logits, cls_token)]
    for direction in directions:
        direction[SEEN : SEEN + 1] = 1.0
    (gradient,) = torch.autograd.grad([logits, cls_token], leaf, directions)
    return {"logits": logits.detach(), "class token": cls_token.detach(), "input's gradient": gradient}


def neighbours(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Batches in which the sample `SEEN` is the same and the others are not."""
    for name, value in {"NaN": float("nan"), "infinity": float("inf"), "1e30": 1e30, "zeros": 0.0}.items():
        changed = torch.full_like(x, value)
        changed[SEEN] = x[SEEN]
        yield f"neighbours of {name}", changed
    one = x.clone()
    one[SEEN - 1].view(-1)[3] = float("nan")
    yield "a neighbour with one NaN", one


@dataclass(frozen=True)
class Setting:
    """A model and how it is called."""

    config: str
    dtype: torch.dtype
    backend: str
    training: bool
    batch_invariant: bool
    chunk: int | None = None

    def __str__(self) -> str:
        return f"{self.config}, {str(self.dtype).removeprefix('torch.')}, {self.kind()}, chunks of {self.chunk} bytes"

    def kind(self) -> str:
        """What promises are made for."""
        mode = "training" if self.training else "evaluation"
        return f"{mode}, {self.backend}{', batch-invariant' if self.batch_invariant else ''}"

    def promises(self) -> bool:
        """Whether results have the same bits in a batch of any size: where asked for, else of large samples' chunks."""
        return self.batch_invariant or (self.backend == "torch" and not self.training and self.chunk is not None)

    def built(self) -> tuple[SepTr, Tensor]:
        """A model that returns its class token, and three spectrograms."""
        config = (CONFIGS if self.backend == "torch" else ON_TRITON)[self.config]
        _, model = pair({**config, "return_cls": True}, torch.float32, backend=self.backend)
        model.set_batch_invariant(self.batch_invariant)
        size = model.blocks[0].input_size
        return model.to(self.dtype), torch.randn(3, model.blocks[0].channels, *size).to(self.dtype)


def settings(full: bool) -> Iterator[Setting]:
    """Models on both backends, in evaluation and in training; in the short form few on Triton."""
    for backend, configs in {"torch": CONFIGS, "triton": ON_TRITON}.items():
        few = backend == "triton" and not full
        for name in configs:
            for dtype in (torch.float32, torch.bfloat16) if full or name == "odd" else (torch.float32,):
                for training in (False,) if few else (False, True):
                    for batch_invariant in (True,) if few else (False, True):
                        yield Setting(name, dtype, backend, training, batch_invariant)
                        if backend == "torch" and name in IN_CHUNKS:
                            yield Setting(name, dtype, backend, training, batch_invariant, IN_CHUNKS[name])


def seen_bits(model: SepTr, x: Tensor, *, training: bool) -> Iterator[tuple[str, list[str]]]:
    """Each change of the neighbours, and which results of the sample changed a bit."""
    wanted = outcome_of(model, x, training=training)
    for name, changed in neighbours(x):
        found = outcome_of(model, changed, training=training)
        yield name, _changed(found, wanted)
    if training:
        found = outcome_of(model, x, training=True, others=float("nan"))
        yield "neighbours with a gradient of NaN", _changed(found, wanted)


def _changed(found: Results, wanted: Results) -> list[str]:
    return [key for key in wanted if not torch.equal(found[key][SEEN], wanted[key][SEEN])]


def batch_sizes(model: SepTr, x: Tensor, *, training: bool) -> Iterator[tuple[str, bool]]:
    """Each result of a sample in batches of one, two and six, and whether its bits are those in a batch of three."""
    wanted = outcome_of(model, x, training=training)
    for batch, place in ((x[[SEEN]], 0), (x[[0, SEEN]], 1), (x[[SEEN, SEEN, 0, 2, 0, SEEN]], 5)):
        found = outcome_of(model, batch, training=training)
        for key, values in wanted.items():
            yield key, torch.equal(found[key][place], values[SEEN])


def run(full: bool, progress: Progress) -> Outcome:
    """See `trust`."""
    torch.manual_seed(7)
    wrong: list[str] = []
    tried: Counter[str] = Counter()
    sizes: dict[tuple[str, str, bool], tuple[bool, ...]] = {}
    with launch.override(TILES), counted() as in_chunks:
        for name, names in chain(spreads(full), model_spreads(full)):
            tried["values that are not finite"] += 1
            progress(1)
            wrong += (
                [f"{name}: other values of {', '.join(names)} than the reference's are not finite"] if names else []
            )
        for setting in settings(full):
            with chunks(setting.chunk):
                model, x = setting.built()
                changes = list(seen_bits(model, x, training=setting.training))
                of_sizes = list(batch_sizes(model, x, training=setting.training))
            progress(len(changes) + len(of_sizes))
            tried["other neighbours"] += len(changes)
            tried["other sizes of the batch"] += len(of_sizes)
            wrong += [f"{setting}: {change} change the bits of {', '.join(keys)}" for change, keys in changes if keys]
            for key, same in of_sizes:
                of = key, setting.kind(), setting.promises()
                sizes[of] = (*sizes.get(of, ()), same)
                if setting.promises() and not same:
                    wrong.append(f"{setting}: the bits of the {key} change with the size of the batch")
    wrong += never(in_chunks)
    shares = [
        {
            "result": f"{key}, {kind}",
            "same bits": f"{sum(same)} of {len(same)}",
            "promised": "yes" if promised else "no",
        }
        for (key, kind, promised), same in sizes.items()
    ]
    figures = {
        "cases": dict(tried),
        "passes on PyTorch in several chunks of a sample": {kind: in_chunks[kind] for kind in KINDS},
        "in batches of other sizes": shares,
    }
    return Outcome(tried.total(), wrong, figures)
