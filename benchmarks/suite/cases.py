"""What is compared: groups of cases, each with a shape, a batch, a precision and the models that run it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.suite.shapes import AUDIO_SECONDS, IN_USE, SMALL, Config
from septr_fast import reference
from septr_fast.report.results import OURS as OURS

OURS_COMPILED = "SepTr, compiled"
ON_PYTORCH = "SepTr on PyTorch"
ON_TRITON = "SepTr on Triton kernels"
GRAPH = "SepTr, CUDA graph"
RECOMPUTING = "SepTr, recomputing"
REFERENCE = "reference"
REFERENCE_COMPILED = "reference, compiled"
FUSED = "reference, fused attention, compiled"
MERGED = "merged algebra, fused attention, compiled"
VIT, VIT_TINY, AST, AST_TINY = "ViT-B/16", "ViT-Ti/16", "AST", "AST-Ti/16"
COMPILED = (OURS_COMPILED, REFERENCE_COMPILED, FUSED, MERGED)
PATCH_MODELS = (VIT, VIT_TINY, AST, AST_TINY)

FORWARD, STEP, BLOCK, TRANSFORMER = "forward", "training step", "block", "transformer along the width"
ATTENTION = {axis: f"attention along the {axis}" for axis in reference.AXES}
LARGEST = "largest batch"
BESIDE_ONE, BESIDE_EACH = "forward beside one busy process", "forward beside a busy process for each core"
ONE_THREAD = "forward on one thread"
CIRCUMSTANCES = (BESIDE_ONE, BESIDE_EACH, ONE_THREAD)
"""Of a CPU that has other things to do."""
GROWTH = tuple(f"growth: {dimension}" for dimension in ("height", "width", "depth", "batch"))
PARTS = (*ATTENTION.values(), TRANSFORMER, BLOCK)
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "autocast")

ALL = (
    OURS,
    OURS_COMPILED,
    ON_PYTORCH,
    ON_TRITON,
    GRAPH,
    REFERENCE,
    REFERENCE_COMPILED,
    FUSED,
    MERGED,
    *PATCH_MODELS,
)
TRAINED = (OURS, OURS_COMPILED, ON_PYTORCH, RECOMPUTING, REFERENCE, REFERENCE_COMPILED, FUSED, MERGED, *PATCH_MODELS)
EAGER_TRAINED = (OURS, RECOMPUTING, REFERENCE, *PATCH_MODELS)
OF_PARTS = (OURS, ON_PYTORCH, REFERENCE, FUSED, MERGED)
ESSENTIAL = (OURS, GRAPH, REFERENCE, FUSED, MERGED)
GROWING = (OURS, REFERENCE, AST)


@dataclass(frozen=True)
class Case:
    """A task at a size, for several models.

    Attributes:
        group: "forward", "training step" (forward, backward, AdamW), one of `CIRCUMSTANCES`, a part of the model,
            "largest batch" or "growth: …".
        shape: name of the model's shape.
        config: constructor arguments of the model.
        batch: spectrograms at a time; of a largest batch, where the search starts.
        precision: one of `PRECISIONS`; "tf32" is float32 with `torch.set_float32_matmul_precision("high")`,
            "autocast" float32 parameters with products in bfloat16.
        models: names of the models that are compared.
        rounds: how often each is timed at least.
        at: where on the axis of a growth curve.
    """

    group: str
    shape: str
    config: Config = field(hash=False)
    batch: int
    precision: str = "float32"
    models: tuple[str, ...] = ALL
    rounds: int = 5
    at: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a spectrogram."""
        return reference.size_pair(self.config.get("input_size", (128, 128)), "input_size")

    @property
    def channels(self) -> int:
        """Channels of a spectrogram."""
        return int(self.config.get("channels", 1))

    @property
    def busy(self) -> int:
        """Busy processes beside the case."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {BESIDE_ONE: 1, BESIDE_EACH: cores}.get(self.group, 0)

    @property
    def training(self) -> bool:
        """Whether the task has a backward pass."""
        return self.group in (STEP, LARGEST)

    @property
    def audio_seconds(self) -> float | None:
        """Seconds of audio in one spectrogram; None for other signals and for the sizes of a growth curve."""
        return None if self.group in GROWTH else AUDIO_SECONDS.get(self.shape)

    @property
    def name(self) -> str:
        """Readable, and unique within a setting."""
        where = "" if self.at is None else f" {self.at:g}"
        batch = "" if self.group == LARGEST else f", batch {self.batch}"
        return f"{self.group}{where}, {self.shape}{batch}, {self.precision}"


def _growth(
    shape: str,
    config: Config,
    points: Mapping[str, tuple[int, ...]],
    batch: int,
    precision: str,
    models: tuple[str, ...] = GROWING,
) -> list[Case]:
    """Cases for every dimension of `points`, from the model `config`."""
    cases = []
    height, width = config["input_size"]
    for dimension, values in points.items():
        for value in values:
            changes: Config = {
                "height": {"input_size": (value, width)},
                "width": {"input_size": (height, value)},
                "depth": {"depth": value},
                "batch": {},
            }[dimension]  # type: ignore[assignment]
            samples = value if dimension == "batch" else batch
            one = Case(f"growth: {dimension}", shape, {**config, **changes}, samples, precision, models, 3, value)
            cases.append(one)
    return cases


def _parts(shape: str, batch: int, precision: str, models: tuple[str, ...]) -> list[Case]:
    return [Case(group, shape, IN_USE[shape], batch, precision, models) for group in PARTS]


_TINY: Config = SMALL["benchmark"]
OF_EXAMPLE = "examples/train.py, 64x64 pooled 4x4"
"""The model that the example trains by default, small enough for overhead to count."""
_OF_EXAMPLE: Config = {"input_size": (64, 64), "depth": 2, "mlp_dim": 128, "down_sample_input": (4, 4), "dim": 64}
_TINY_GROWTH = {"height": (16, 24), "width": (16, 24), "depth": (1, 2), "batch": (1, 2)}
_CPU_GROWTH = {"height": (16, 32, 64, 128), "width": (16, 32, 64, 128), "depth": (1, 2, 3, 4), "batch": (1, 2, 4, 8)}
_GPU_GROWTH = {"height": (32, 64, 128, 256), "width": (32, 64, 128, 256, 1024), "depth": (1, 2, 3, 6)}

_SMALL_MODELS = tuple(model for model in ALL if model not in (VIT, AST, FUSED, MERGED))
_SMALL_TRAINED = tuple(model for model in TRAINED if model not in (VIT, AST, MERGED))

SMOKE = (
    Case(FORWARD, "tiny", _TINY, 2, models=_SMALL_MODELS, rounds=2),
    Case(STEP, "tiny", _TINY, 2, models=_SMALL_TRAINED, rounds=2),
    Case(FORWARD, "tiny", _TINY, 3, "bfloat16", (OURS, REFERENCE, AST_TINY), rounds=2),
    *(Case(group, "tiny", _TINY, 2, models=(OURS, REFERENCE), rounds=2) for group in CIRCUMSTANCES),
    *(Case(group, "tiny", _TINY, 2, models=OF_PARTS, rounds=2) for group in PARTS),
    Case(LARGEST, "tiny", _TINY, 1, models=(OURS, REFERENCE), rounds=2),
    *_growth("tiny", {**_TINY, "input_size": (16, 16)}, _TINY_GROWTH, 1, "float32", (OURS, REFERENCE)),
)
"""Everything on tiny shapes: seconds. Its times say nothing. Each way to compile is met once, whole or as a part."""

BRIEF_CPU = (
    Case(FORWARD, "default", {}, 1, models=(OURS, REFERENCE, REFERENCE_COMPILED, FUSED, VIT, AST), rounds=3),
    Case(STEP, "default, 64x64", IN_USE["default, 64x64"], 2, models=(OURS, REFERENCE, VIT, AST), rounds=3),
    *(
        Case(group, "default, 64x64", IN_USE["default, 64x64"], 1, models=(OURS, REFERENCE), rounds=3)
        for group in CIRCUMSTANCES
    ),
)
"""The default setting without a GPU, for a first look: a few minutes on two cores."""

QUICK_CPU = (
    Case(FORWARD, "default", {}, 1, models=(*ALL[:2], *ALL[3:])),
    Case(FORWARD, "default", {}, 4, models=(OURS, OURS_COMPILED, REFERENCE, REFERENCE_COMPILED), rounds=3),
    Case(STEP, "default", {}, 1, models=EAGER_TRAINED),
    Case(STEP, "default, 64x64", IN_USE["default, 64x64"], 2, models=(OURS, RECOMPUTING, REFERENCE)),
    *(
        Case(group, "default, 64x64", IN_USE["default, 64x64"], 1, models=(OURS, REFERENCE, REFERENCE_COMPILED))
        for group in CIRCUMSTANCES
    ),
    Case(FORWARD, "default", {}, 1, "bfloat16", (OURS, REFERENCE, VIT, AST)),
    *(Case(FORWARD, OF_EXAMPLE, _OF_EXAMPLE, batch, models=(OURS, REFERENCE)) for batch in (1, 16)),
    Case(STEP, OF_EXAMPLE, _OF_EXAMPLE, 16, models=(OURS, REFERENCE)),
    *_parts("default", 1, "float32", (OURS, REFERENCE, FUSED)),
    Case(LARGEST, "default, 64x64", IN_USE["default, 64x64"], 1, models=(OURS, RECOMPUTING, REFERENCE), rounds=1),
    *_growth("default, 32x32", {"input_size": (32, 32)}, _CPU_GROWTH, 1, "float32"),
)
"""What there is to compare without a GPU: half an hour on two cores."""

FULL_CPU = (
    *QUICK_CPU,
    *(Case(FORWARD, shape, config, 1) for shape, config in IN_USE.items() if shape != "default"),
    Case(FORWARD, "default", {}, 1, "float16", (OURS, REFERENCE, VIT, AST)),
    Case(STEP, "default, 64x64", IN_USE["default, 64x64"], 8, models=TRAINED),
    Case(STEP, "default", {}, 1, models=TRAINED),
    *_parts("default, 64x64", 4, "float32", (OURS, REFERENCE, FUSED)),
    *_parts("default", 1, "bfloat16", (OURS, REFERENCE, FUSED)),
    Case(LARGEST, "default", {}, 1, models=(OURS, RECOMPUTING, REFERENCE), rounds=1),
)
"""All shapes on a CPU: hours."""

BRIEF_GPU = (
    Case(FORWARD, "default", {}, 64, "bfloat16", (OURS, REFERENCE, REFERENCE_COMPILED, FUSED, VIT, AST)),
    Case(STEP, "default", {}, 16, "bfloat16", (OURS, REFERENCE, REFERENCE_COMPILED, FUSED, VIT, AST)),
)
"""The default setting on a GPU, for a first look."""

QUICK_GPU = (
    Case(FORWARD, "default", {}, 64, "bfloat16", (*ALL[:3], *ALL[4:])),
    Case(STEP, "default", {}, 16, "bfloat16", TRAINED),
    Case(FORWARD, "default", {}, 1, "bfloat16", ESSENTIAL),
    *_parts("default", 8, "bfloat16", OF_PARTS),
    Case(STEP, "default", {}, 64, "bfloat16", (OURS, FUSED, AST)),
    Case(FORWARD, "default", {}, 8, "bfloat16", (OURS, GRAPH, REFERENCE, FUSED)),
    Case(FORWARD, "default", {}, 64, "tf32", ESSENTIAL),
    Case(FORWARD, "default", {}, 64, "float32", (OURS, ON_TRITON, REFERENCE)),
    Case(STEP, "default", {}, 16, "float32", (OURS, ON_TRITON, REFERENCE)),
    Case(FORWARD, "default", {}, 64, "float16", (OURS, REFERENCE, FUSED)),
    Case(STEP, "default", {}, 16, "autocast", (OURS, REFERENCE, FUSED)),
    Case(LARGEST, "default", {}, 1, "bfloat16", (OURS, REFERENCE, AST)),
    *_growth("default", {"input_size": (128, 128)}, {**_GPU_GROWTH, "batch": (1, 4, 16, 64)}, 4, "bfloat16"),
    *(
        Case(FORWARD, shape, config, 8, "bfloat16", (OURS, REFERENCE, FUSED, VIT, AST))
        for shape, config in IN_USE.items()
        if shape != "default"
    ),
)
"""What there is to compare on a GPU: what matters most first, for where the time is limited."""

FULL_GPU = (
    *QUICK_GPU,
    *(
        Case(group, shape, config, batch, precision, ALL if group == FORWARD else TRAINED)
        for shape, config in IN_USE.items()
        for batch in (1, 8, 64)
        for precision in ("bfloat16", "float16", "tf32", "float32")
        for group in (FORWARD, STEP)
    ),
    *(case for batch in (1, 64) for case in _parts("default", batch, "bfloat16", OF_PARTS)),
    *(case for name in ("float16", "tf32", "float32") for case in _parts("default", 8, name, OF_PARTS)),
    *(case for shape in ("default, 64x64", "ten seconds, 128x1024") for case in _parts(shape, 8, "bfloat16", OF_PARTS)),
    *(
        Case(LARGEST, shape, IN_USE[shape], 1, precision, (OURS, REFERENCE, FUSED, AST))
        for shape in ("default", "default, 64x64", "ten seconds, 128x1024")
        for precision in ("bfloat16", "float32")
    ),
)
"""All shapes, batches and precisions on a GPU: hours."""


def cases(setting: str, device: str) -> tuple[Case, ...]:
    """The cases of a setting ("smoke", "brief", "quick" or "full") on "cpu" or "cuda", names unique."""
    if setting == "smoke":
        return SMOKE
    table = {
        ("brief", "cpu"): BRIEF_CPU,
        ("brief", "cuda"): BRIEF_GPU,
        ("quick", "cpu"): QUICK_CPU,
        ("full", "cpu"): FULL_CPU,
        ("quick", "cuda"): QUICK_GPU,
    }
    found: dict[str, Case] = {}
    for case in table.get((setting, device), FULL_GPU):
        known = found.get(case.name)
        models = case.models if known is None else tuple(dict.fromkeys(known.models + case.models))
        found[case.name] = replace(case, models=models)
    return tuple(found.values())
