"""Passes whose kernels are compiled, executed on a CPU and compared with plain PyTorch; run as a program.

Compiling needs a process in which Triton does not interpret. Each argument is the name of a trial; or, behind slashes,
also that of a kernel to plant faults in, and in how many places. JSON objects are printed, one a line.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from septr_fast.kernels import launch
from support.execution.faults import FaultError
from support.execution.launches import Change, Execution, executed, unchanged
from support.judging import FIRST_SEED, by_norm, by_rule
from support.kernels.pass_cases import Case, draw, step
from support.tolerance import share_of_allowed
from torch import Tensor

from septr_fast import SepTr
from septr_fast.algebra.folded import Direct, LowRank, Merged
from septr_fast.passes.lengths import Lengths

CPU = torch.device("cpu")
ARCHITECTURES = (80, 86, 89, 90)
ROW = 2
"""Times that of plain PyTorch the largest error of a row may be, and a rounding of the largest row besides."""
SIZES: dict[str, Any] = {"shape": (1, 1, 70), "heads": 2, "dim_head": 64, "dim": 64, "mlp_dim": 64}
"""One sequence of 71 tokens: two tiles, the second one ragged."""


@dataclass(frozen=True)
class Trial:
    """A pass on an architecture.

    Attributes:
        arch: compute capability.
        draw: what `support.kernels.pass_cases.draw` takes.
        backward: whether gradients are taken.
        fused: whether products and attention are one kernel; None for what the tables prefer.
        lengths: valid tokens of each sample.
        misaligned: whether every tensor begins beside a multiple of 16 bytes.
    """

    arch: int
    draw: dict[str, Any] = field(hash=False)
    backward: bool = True
    fused: bool | None = None
    lengths: tuple[int, ...] | None = None
    misaligned: bool = False

    def case(self) -> Case:
        """The pass, with the same operands at every call."""
        torch.manual_seed(FIRST_SEED)
        case = draw(device=CPU, **self.draw)
        if self.lengths is not None:
            case = replace(case, lengths=Lengths(case.axis, torch.tensor(self.lengths)))
        return case.changed(_beside) if self.misaligned else case

    def results(self, case: Case, backend: str) -> dict[str, Tensor]:
        """What a pass gives, with gradients where they are taken, in the form of attention that is asked for."""
        torch.manual_seed(FIRST_SEED + 1)
        gradients = replace(case, lengths=None).output_gradients() if self.backward else {}
        form = {} if self.fused is None else {"attention_form": launch.Config({"FUSED": int(self.fused)})}
        with launch.override(form), torch.set_grad_enabled(self.backward):
            return step(case, backend, gradients) if self.backward else case.run(backend)

    def largest(
        self, found: dict[str, Tensor], plain: dict[str, Tensor], oracle: dict[str, Tensor]
    ) -> tuple[float, str]:
        """See the function of this name."""
        return largest(found, plain, oracle)


class ModelCase(NamedTuple):
    """A model and spectrograms."""

    model: SepTr
    x: Tensor

    def changed(self, change: Callable[[Tensor], Tensor], compute: torch.dtype) -> ModelCase:
        """Both in the dtype that `change` makes, `compute`."""
        return ModelCase(copy.deepcopy(self.model).to(compute), change(self.x))


@dataclass(frozen=True)
class ModelTrial:
    """A whole model on an architecture, forward and backward, in its own plan or a formulation.

    Attributes:
        arch: compute capability.
        config: arguments of the model besides those of `MODEL`.
        dtype: of its parameters.
        lengths: valid columns of each spectrogram.
        autocast: whether products are in bfloat16 under autocast.
    """

    arch: int
    config: dict[str, Any] = field(hash=False)
    dtype: torch.dtype
    lengths: tuple[int, ...] | None = None
    autocast: bool = False

    def case(self) -> ModelCase:
        """The model and spectrograms, the same at every call."""
        torch.manual_seed(FIRST_SEED)
        model = SepTr(**{**MODEL, **self.config}).to(self.dtype)
        height, width = model.blocks[0].input_size
        return ModelCase(
            model, torch.randn(len(self.lengths or "1"), model.blocks[0].channels, height, width).to(self.dtype)
        )

    def results(self, case: ModelCase, backend: str) -> dict[str, Tensor]:
        """Logits, and the gradients of the spectrograms and of all parameters."""
        model, x = case.model, case.x.detach().requires_grad_()
        for block in model.blocks:
            block.backend = backend
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast and x.dtype != torch.float64):
            logits = model(x, self.lengths)
        torch.manual_seed(FIRST_SEED + 1)
        direction = torch.randn(logits.shape).to(logits.dtype)
        names, tensors = zip(("x", x), *model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(logits, tensors, direction)
        return {"logits": logits.detach(), **dict(zip(names, gradients, strict=True))}

    def largest(
        self, found: dict[str, Tensor], plain: dict[str, Tensor], oracle: dict[str, Tensor]
    ) -> tuple[float, str]:
        """See the function of this name; all gradients are one, since many hold few values, brought to one size."""
        sizes = {name: 1 / float(x.norm()) for name, x in oracle.items() if name != "logits"}

        def joined(results: dict[str, Tensor]) -> dict[str, Tensor]:
            if not results:
                return {}
            parts = [results[name].double().flatten() * size for name, size in sizes.items()]
            return {"logits": results["logits"], "gradients": torch.cat(parts).to(results["x"].dtype)}

        return largest(joined(found), joined(plain), joined(oracle))


MODEL: dict[str, Any] = {
    "input_size": (5, 37), "num_classes": 7, "depth": 2, "heads": 2, "dim_head": 64, "dim": 64, "mlp_dim": 64,
}  # fmt: skip


def _beside(x: Tensor) -> Tensor:
    """The same values one element behind an aligned address."""
    room = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    return room.copy_(x)


def _drawn(kind: type, **changes: Any) -> dict[str, Any]:
    return {"kind": kind, "axis": "width", **SIZES, **changes}


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FORMS: dict[str, dict[str, Any]] = {
    "merged": {"draw": _drawn(Merged)},
    "direct": {"draw": _drawn(Direct)},
    "merged, 256 features": {"draw": _drawn(Merged, dim=256, heads=2, dim_head=256)},
    "direct, heads of 256": {"draw": _drawn(Direct, heads=1, dim_head=256)},
    "low-rank": {"draw": _drawn(LowRank, shape=(1, 1, 21), channels=2)},
    "low-rank, 8 channels": {"draw": _drawn(LowRank, shape=(1, 17, 33), channels=8)},
    "low-rank, 256 features, autocast": {
        "draw": _drawn(LowRank, shape=(1, 1, 21), channels=2, dim=256, compute=None), "backward": False,
    },
    "low-rank, autocast": {
        "draw": _drawn(LowRank, shape=(1, 1, 21), channels=2, compute=None), "backward": False,
    },
    "class-only": {"draw": _drawn(Direct, class_only=True, shape=(2, 3, 37))},
    "class-only, autocast": {
        "draw": _drawn(Direct, class_only=True, shape=(2, 3, 37), compute=None), "backward": False,
    },
    "class-only, 256 features": {"draw": _drawn(Direct, class_only=True, dim=256, shape=(1, 2, 37))},
    "class-only, 256 features, autocast": {
        "draw": _drawn(Direct, class_only=True, dim=256, shape=(1, 2, 37), compute=None), "backward": False,
    },
    "merged, forward": {"draw": _drawn(Merged), "backward": False, "fused": True},
    "merged, 256 features, forward": {
        "draw": _drawn(Merged, dim=256, heads=1, dim_head=256), "backward": False, "fused": True,
    },
}  # fmt: skip
"""In every dtype on every architecture, but for autocast of float32; forward in the form of attention that is not
preferred, where there are two."""
FUSING = (86, 89)
"""Where they do, for values of two bytes."""
BESIDES: dict[str, dict[str, Any]] = {
    "merged, autocast along the height": {"draw": _drawn(Merged, axis="height", compute=torch.bfloat16)},
    "direct, with lengths": {"draw": _drawn(Direct, shape=(2, 1, 70)), "lengths": (70, 33)},
    "merged, misaligned": {"draw": _drawn(Merged, residual=torch.bfloat16), "misaligned": True},
    "low-rank, misaligned": {
        "draw": _drawn(LowRank, residual=torch.bfloat16, shape=(1, 1, 21), channels=2), "misaligned": True,
    },
}  # fmt: skip
"""On the two architectures of data centres, in float32 or bfloat16."""


MODELS: dict[str, dict[str, Any]] = {
    "model, own plan, bfloat16": {"config": {}, "dtype": torch.bfloat16},
    "model, merged, float16": {"config": {"formulation": "merged"}, "dtype": torch.float16},
    "model, direct, bfloat16": {"config": {"formulation": "direct"}, "dtype": torch.bfloat16},
    "model, 3 channels, lengths, float32": {"config": {"channels": 3}, "dtype": torch.float32, "lengths": (37, 20)},
    "model, direct, float32": {"config": {"formulation": "direct"}, "dtype": torch.float32},
    "model, autocast, bfloat16": {"config": {"first_axis": "width"}, "dtype": torch.float32, "autocast": True},
}
"""Whole, on the two architectures of data centres."""


def _trials() -> Iterator[tuple[str, Trial | ModelTrial]]:
    for arch in ARCHITECTURES:
        for name, dtype in DTYPES.items():
            for form, what in FORMS.items():
                short = dtype.itemsize == 2
                of = {**what["draw"], "residual": dtype}
                if "compute" in of:
                    if not short:
                        continue
                    of |= {"residual": torch.float32, "compute": dtype}
                fused = arch not in FUSING if short and "fused" in what else None
                changes = {**what, "draw": of, "fused": fused}
                yield f"{form}, {name}, sm_{arch}", Trial(arch, **changes)
    for arch in (80, 90):
        for form, what in BESIDES.items():
            yield f"{form}, sm_{arch}", Trial(arch, **what)
        for name, what in MODELS.items():
            yield f"{name}, sm_{arch}", ModelTrial(arch, **what)


TRIALS: dict[str, Trial | ModelTrial] = dict(_trials())
"""By name."""
SHORT = ("merged, bfloat16, sm_80", "direct, float16, sm_90", "low-rank, bfloat16, sm_86")
"""What `make test` executes where it executes any."""


def run(trial: Trial | ModelTrial, change: Change = unchanged, kept: dict[str, Any] | None = None) -> dict[str, Any]:
    """What comes of a trial: a fault or none, how many times the error that is allowed, what was executed.

    Args:
        trial: to run.
        change: of the PTX of each kernel.
        kept: takes the results, those of plain PyTorch and of float64, as "found", "plain" and "oracle".
    """
    case: Any = trial.case()
    fault: FaultError | None = None
    found: dict[str, Tensor] = {}
    with executed(trial.arch, change) as execution:
        try:
            found = trial.results(case, "triton")
        except FaultError as error:
            fault = error
        plain = trial.results(case, "torch")
    oracle = trial.results(case.changed(Tensor.double, torch.float64), "torch")
    if kept is not None:
        kept |= {"found": found, "plain": plain, "oracle": oracle}
    share, worst = trial.largest(found, plain, oracle)
    return {"fault": None if fault is None else str(fault), "share": share, "worst": worst, **_told(execution)}


def _told(execution: Execution) -> dict[str, Any]:
    return {
        "programs": dict(execution.programs),
        "builds": sorted(execution.builds),
        "instructions": {name: dict(counts) for name, counts in execution.instructions.items()},
        "traffic": {name: asdict(traffic) for name, traffic in execution.traffic.items()},
    }


def code(trial: Trial | ModelTrial) -> tuple[str, ...]:
    """Hashes of the instructions of all kernels of a trial; none is executed."""
    with executed(trial.arch, compile_only=True) as execution:
        trial.results(trial.case(), "triton")
    return tuple(execution.code)


def largest(found: dict[str, Tensor], plain: dict[str, Tensor], oracle: dict[str, Tensor]) -> tuple[float, str]:
    """How many times what is allowed the worst result's error is, and which that is.

    Errors are compared by norm, by the largest value, and by the largest norm of a row.
    """
    shares = {name: _share(result, plain[name].to(result.dtype), oracle[name]) for name, result in found.items()}
    worst = max(shares, key=lambda name: shares[name], default="")
    return shares.get(worst, 0.0), worst


def _share(result: Tensor, plain: Tensor, oracle: Tensor) -> float:
    compared = (result, plain, oracle)
    found = [*by_norm(*compared).values(), by_rule(*compared)["largest"]]
    if oracle.dim() > 1:
        error, usual = (float((x.double() - oracle).norm(dim=-1).max()) for x in (result, plain))
        rounding = torch.finfo(result.dtype).eps * float(oracle.norm(dim=-1).max())
        found.append((error, ROW * usual + rounding))
    return max(share_of_allowed(error, limit) for error, limit in found)


def told(names: Sequence[str], folder: Path | None = None) -> Iterator[dict[str, Any]]:
    """What comes of trials; of one whose kernels are those of another, that they are."""
    from support.execution.planting import planted

    known: dict[tuple[Any, ...], str] = {}
    for name in names:
        trial, *faults = name.split("/")
        if faults:
            for one in planted(TRIALS[trial], faults[0], int(faults[1])):
                yield {"name": trial, **one}
            continue
        wanted = replace(TRIALS[trial], arch=0)
        key = (repr(wanted), code(TRIALS[trial]))
        if key in known:
            yield {"name": trial, "as": known[key]}
        else:
            known[key] = trial
            kept: dict[str, Any] = {}
            found = run(TRIALS[trial], kept=kept)
            if folder is not None:
                torch.save(kept, folder / f"{trial}.pt")
            yield {"name": trial, **found}


def main(names: Sequence[str]) -> None:
    """Print what comes of trials by name, or with faults planted in a kernel."""
    torch.set_num_threads(1)
    folder = Path(names[0][1:]) if names and names[0].startswith("@") else None
    for one in told(names[folder is not None :], folder):
        sys.stdout.write(json.dumps(one) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
