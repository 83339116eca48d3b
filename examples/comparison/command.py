"""The command: data sets one after the other, of each the costs of the models, then their training."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from benchmarks.suite.stamp import stamp
from comparison import costs, page, runs
from comparison.contestants import CONTESTANTS, Contestant, named
from training.data import data_sets, preparation
from training.data.preparation import Preparation
from training.options import Options
from training.state import write_json

NAME = "accuracy.json"
_logger = logging.getLogger(__name__)
SPOKEN = "Words spoken by eSpeak NG; voices of validation and test are never heard in training."


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare as the command line says; returns the exit status."""
    given = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        compare(given)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"compare_models.py: {error}\n")
        return 2
    return 0


def compare(given: argparse.Namespace) -> None:
    """Measure, train and evaluate every model, each seed kept as soon as it is done, and write the page.

    Raises:
        ValueError: for options that do not fit each other or the results that are there; clips of several labels.
    """
    accelerator = Accelerator(cpu=given.cpu)
    on_gpu = accelerator.device.type == "cuda"
    models = named(tuple(given.models)) if given.models else [one for one in CONTESTANTS if on_gpu or not one.heavy]
    options = Options(
        data=given.data, layout=given.layout, rate=given.rate, seconds=given.seconds, mels=given.size[0],
        frames=given.size[1], epochs=given.epochs, batch=given.batch, workers=given.workers, cpu=given.cpu,
        out=given.out / _folder(given.name),
    )  # fmt: skip
    preparation.check_options(options)
    preparation.begin(options, accelerator.device)
    prepared = preparation.read(options)
    if prepared.activation != "softmax" or not all(prepared.data.splits.get(split) for split in data_sets.SPLITS):
        raise ValueError("data: expected one label for each clip, and clips in all three splits")
    file = given.results or given.out / NAME
    content = _content(file, given, accelerator)
    data = content["data"].setdefault(given.name, {"costs": {}, "runs": [], "rates": {}, "minutes": 0})
    data |= _about(given, options, prepared)
    unknown = [one for one in models if one.name not in data["costs"]]
    size, classes = (options.mels, options.frames), len(prepared.data.classes)
    data["costs"] |= costs.measure(unknown, size, classes, given.batch, accelerator.device)
    write_json(file, content)
    for seed in range(given.seeds):
        _train(models, seed, given.learning_rates, options, prepared, accelerator, data)
        write_json(file, content)
    page.write(content, given.page or file.with_suffix(".md"), file)


def _train(
    models: Sequence[Contestant],
    seed: int,
    rates: Sequence[float],
    options: Options,
    prepared: Preparation,
    accelerator: Accelerator,
    data: dict[str, Any],
) -> None:
    """Train what is not trained yet of a seed: for the first with every rate, for others with the one chosen then."""
    done = {(run["model"], run["learning_rate"], run["seed"]) for run in data["runs"]}
    wanted = [(one, rate) for one in models for rate in (rates if seed == 0 else [data["rates"][one.name]])]
    entrants = [(one, rate) for one, rate in wanted if (one.name, rate, seed) not in done]
    if not entrants:
        return
    began = time.perf_counter()
    found = runs.train(entrants, seed, options, prepared, accelerator)
    data["runs"] += [asdict(one) for one in found]
    data["minutes"] = round(data["minutes"] + (time.perf_counter() - began) / 60, 1)
    if seed == 0:
        data["rates"] = _best_rates(data["runs"])
    for one in found:
        _logger.info("%s, rate %g, seed %d: test %.1f %%", one.model, one.learning_rate, seed, 100 * one.test)


def _best_rates(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each model the learning rate with the least loss on the validation clips, by the first seed."""
    best: dict[str, Mapping[str, Any]] = {}
    for run in found:
        name = run["model"]
        if run["seed"] == 0 and (name not in best or run["validation_loss"] < best[name]["validation_loss"]):
            best[name] = run
    return {name: run["learning_rate"] for name, run in best.items()}


def _content(file: Path, given: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """What is in the results' file, or what a new one begins with.

    Raises:
        ValueError: for results of other settings.
    """
    settings = {"mels": given.size[0], "frames": given.size[1], "batch": given.batch}
    if not file.exists():
        return {"settings": settings, "machine": stamp(accelerator.device), "data": {}}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if content["settings"] != settings:
        raise ValueError(f"out: expected results of {settings} in {file}, got {content['settings']}")
    return content


def _about(given: argparse.Namespace, options: Options, prepared: Preparation) -> Mapping[str, Any]:
    return {
        "about": given.about or (SPOKEN if given.data is None else f"Layout: {prepared.data.name}."),
        "classes": len(prepared.data.classes),
        "clips": {split: len(clips) for split, clips in prepared.data.splits.items()},
        "epochs": options.epochs,
        "rate": options.rate,
        "seconds": options.seconds,
    }


def _folder(name: str) -> str:
    return name.replace(" ", "-")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="compare_models.py",
        description="Train SepTr, AST and ViT alike on the same clips; accuracy, cost, a chart and a page. Stopped "
        "between two seeds, the same command goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of a data set; without it, words are spoken by eSpeak NG")
    add("--layout", default="auto", choices=data_sets.LAYOUTS, help="how that folder is laid out")
    add("--name", default="spoken words", help="of the data in the results; results of several are kept side by side")
    add("--about", help="a sentence on the data for the page")
    add("--models", nargs="+", help=f"of {', '.join(one.name for one in CONTESTANTS)}; without it, what the device can")
    add("--rate", type=int, default=16000, help="sampling rate in hertz")
    add("--seconds", type=float, default=1.0, help="length of a clip")
    add("--size", type=int, nargs=2, default=(64, 64), help="mels and frames of a spectrogram")
    add("--epochs", type=int, default=6, help="of every model")
    add("--batch", type=int, default=16, help="clips of a step")
    add("--seeds", type=int, default=3, help="trainings of every model")
    add("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-4], help="tried with the first seed")
    add("--workers", type=int, default=0, help="processes that read clips")
    add("--cpu", action="store_true", help="run on the processor even where there is a GPU")
    add(
        "--out",
        type=Path,
        default=Path("examples/out/accuracy"),
        help="folder of what a run begins with, and of the results",
    )
    add("--results", type=Path, help=f"the results, charts beside them; {NAME} in that folder without it")
    add("--page", type=Path, help="the page; beside the results without it")
    return parser.parse_args(arguments)
