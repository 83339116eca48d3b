"""What a run of the benchmarks found, and the JSON file that keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 2
OURS = "SepTr"
"""The model that every other one is timed beside."""


@dataclass(frozen=True)
class Result:
    """One model's figures in one case.

    Attributes:
        group: what is timed, "forward" for example; cases of a group can be compared.
        case: the group with shape, batch and precision; unique in a file.
        model: in words.
        shape: name of the model's shape.
        size: height and width of a spectrogram.
        batch: spectrograms at a time.
        precision: "float32", "tf32", "bfloat16", "float16" or "autocast".
        seconds: median time of one call.
        lower_quartile: of the times, in seconds.
        upper_quartile: of the times, in seconds.
        rounds: calls timed.
        ratio: this model's time over that of `OURS`, call beside call: the median. None for `OURS` itself
            and where nothing was timed beside.
        lowest_ratio: the lowest of those ratios.
        highest_ratio: the highest.
        ours_seconds: median time of `OURS` in the calls right before this model's; None where `ratio` is, and in
            files that did not keep it.
        flops: matrix arithmetic of a call, counted as it runs, 2 for a multiply-add.
        useful_flops: the least arithmetic that is known to give the same result.
        parameters: of the model; None for a part of one.
        audio_seconds: seconds of audio in one spectrogram; None for other signals.
        saved_bytes: alive between forward and backward, parameters left out; None without a backward pass.
        peak_bytes: the most that a call held beside parameters, optimizer state and inputs.
        error: largest error against float64 of the same function in this run.
        at: where on the axis of a growth curve; None elsewhere.
        note: what else there is to know, such as the name of the attention kernel that ran.
    """

    group: str
    case: str
    model: str
    shape: str
    size: tuple[int, int]
    batch: int
    precision: str
    seconds: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    ratio: float | None = None
    lowest_ratio: float | None = None
    highest_ratio: float | None = None
    ours_seconds: float | None = None
    flops: int | None = None
    useful_flops: int | None = None
    parameters: int | None = None
    audio_seconds: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    error: float | None = None
    at: float | None = None
    note: str = ""

    @property
    def samples_per_second(self) -> float:
        """Spectrograms in a second."""
        return self.batch / self.seconds

    @property
    def audio_per_second(self) -> float | None:
        """Seconds of audio in a second."""
        return None if self.audio_seconds is None else self.audio_seconds * self.samples_per_second


@dataclass(frozen=True)
class NotRun:
    """A model that could not run in a case, and why."""

    case: str
    model: str
    reason: str


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a call.

    Attributes:
        name: in the tables of launch configurations.
        case: of the model that launches it.
        launches: how many.
        flops: of use, in all of them; 0 where there are no matrix products.
        bytes: read and written, every operand once.
        seconds: in all launches, measured; None where no GPU was there.
        precision: of the products, as in `Result`; empty in files that did not keep it.
    """

    name: str
    case: str
    launches: int
    flops: int
    bytes: int
    seconds: float | None = None
    precision: str = ""


@dataclass(frozen=True)
class Run:
    """One file of results.

    Attributes:
        stamp: device, kind ("cpu" or "cuda"), threads, versions, commit, date.
        setting: "quick", "full" or "smoke".
        input: what the spectrograms show.
        ceilings: "copy" in bytes per second, read and written, and products' FLOP per second by precision;
            measured in the same run.
        results: in the order of the run.
        not_run: with reasons.
        kernels: for the roofline.
    """

    stamp: dict[str, Any]
    setting: str
    input: str
    ceilings: dict[str, float]
    results: list[Result]
    not_run: list[NotRun] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    def cases(self, group: str | None = None) -> dict[str, list[Result]]:
        """The results by case, those of `group` alone where it is given."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            if group in (None, result.group):
                found.setdefault(result.case, []).append(result)
        return found


def store(run: Run, path: Path) -> None:
    """Write `run` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, **asdict(run)}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Run:
    """Read what `store` wrote; raise `ValueError`, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"not results of format {FORMAT}")
        results = [Result(**{**entry, "size": tuple(entry["size"])}) for entry in content.pop("results")]
        return Run(
            results=results,
            not_run=[NotRun(**entry) for entry in content.pop("not_run")],
            kernels=[Kernel(**entry) for entry in content.pop("kernels")],
            **content,
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected results of the benchmarks: {error}") from error
