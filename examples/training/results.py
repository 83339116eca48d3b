"""What a run leaves behind: `results.json`, its curves and its confusion matrices."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import accelerate
from accelerate.utils import gather_object

from benchmarks.suite.stamp import stamp
from training import figures
from training.data.preparation import Preparation
from training.loop import Run
from training.state import write_json

NAME = "results.json"

_logger = logging.getLogger(__name__)


def write(run: Run, preparation: Preparation) -> dict[str, Any]:
    """Test the best weights and write everything; `results.json` last, by which a run counts as finished.

    All processes call it, the main one writes.
    """
    models = {learner.name: _of_model(run, index) for index, learner in enumerate(run.learners)}
    content = {
        "options": run.options.as_json(),
        "classes": list(run.classes),
        "activation": run.objective.activation,
        "data": {
            "name": preparation.data.name,
            "clips": {split: len(clips) for split, clips in preparation.data.splits.items()},
            "skipped": len(preparation.skipped),
            "skipped_files": preparation.skipped,
            "unreadable_later": _unreadable(run),
        },
        "models": models,
        "comparison": _comparison(run) if run.options.compare else None,
        "seconds": run.progress.seconds,
        "processes": run.accelerator.num_processes,
        "machine": {**stamp(run.accelerator.device), "accelerate": accelerate.__version__},
    }
    if run.accelerator.is_main_process:
        try:
            _draw(run, models)
        except Exception as error:
            _logger.warning("the figures of %s are not drawn, results are kept: %r", run.options.out, error)
        write_json(run.options.out / NAME, content)
    run.accelerator.wait_for_everyone()
    return content


def _unreadable(run: Run) -> list[str]:
    """Files that could be read when the run began and not any more, found by any of the processes."""
    own = [str(path) for samples in run.samples.values() for path in samples.unreadable()]
    return sorted(set(gather_object(own)))


def _of_model(run: Run, index: int) -> dict[str, Any]:
    """History and test of one model."""
    learner = run.learners[index]
    test = run.test(learner)
    seconds = sum(entry["seconds"] for entry in learner.history)
    clips = sum(entry["seconds"] * entry["samples_per_second"] for entry in learner.history)
    return {
        "parameters": sum(parameter.numel() for parameter in learner.module.parameters()),
        "checkpoint": f"{learner.name}.safetensors",
        "history": learner.history,
        "best_epoch": None if learner.best is None else learner.best["epoch"],
        "training_seconds": seconds,
        "samples_per_second": clips / max(seconds, 1e-9),
        "test": None if test is None else asdict(test),
    }


def _comparison(run: Run) -> dict[str, Any]:
    """Times of both models' steps, each divided by that of the same step of the other right before it."""
    fast, plain = (learner.step_seconds for learner in run.learners)
    ratios = [slow / quick for quick, slow in zip(fast, plain, strict=True)]
    return {
        "steps": len(ratios),
        "step_seconds": {learner.name: _spread(learner.step_seconds) for learner in run.learners},
        "reference_over_septr": _spread(ratios),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes; of a single value that alone."""
    first, middle, third = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": middle,
        "lower_quartile": first,
        "upper_quartile": third,
        "least": min(values),
        "most": max(values),
        "sum": sum(values),
    }


def _draw(run: Run, models: dict[str, Any]) -> None:
    rows = [
        {
            f"{name} {key}" if len(models) > 1 else key: entry[key]
            for name, entry in zip(models, entries, strict=True)
            for key in entry
        }
        for entries in zip(*(model["history"] for model in models.values()), strict=True)
    ]
    figures.curves(rows, run.options.out / "curves.png")
    for name, model in models.items():
        test, suffix = model["test"], ".png" if len(models) == 1 else f"-{name}.png"
        if test is not None and test["confusion"] is not None:
            figures.confusion(test["confusion"], run.classes, run.options.out / f"confusion{suffix}")
        elif test is not None:
            file = run.options.out / f"average-precision{suffix}"
            figures.average_precision(test["average_precision"], run.classes, file)
