"""The page and the chart of accuracy against cost, from what the runs found."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from septr_fast.report.charts.figures import GREEN, INK, entitle, finish, layout, plain, tick
from septr_fast.report.tables import markdown
from septr_fast.report.units import quantity

OURS = "SepTr"
HEAD = """# Accuracy against cost

Made by `python examples/compare_models.py` from [its results]({source});
edits by hand are lost.

SepTr, AST and ViT, trained from new weights on the same clips, in the same order, with the same augmentation,
schedule and number of epochs, through the same spectrograms."""
LEGEND = """Accuracy: on clips that nothing was chosen by, mean ± standard deviation over the seeds. Rate: the highest
of the schedule, of those tried the one with the least validation loss for the first seed. GFLOP: of the products of a
forward pass of one clip, as it is executed. Clips a second: medians of calls of all models in turn. Kept: for the
backward pass."""
LIMITS = """## What this does not show

A few thousand clips, new weights and few epochs favour models with a sense of place and few things to learn. The
number of epochs is the same for all: what more of them would make of AST and ViT, which are quicker here, is not
shown. They are usually taken with weights from millions of images or recordings, which is another comparison. Rates
were tried from the same short list for all; nothing else was tuned for any of them."""
_BLUE, _GREY = "#1f5a99", "#8a97a5"
_PLACES = ((6, 6), (6, -13), (6, 17), (6, -24))
"""Where a name stands beside its point, for the first one there, the second and so on."""
_COLOURS = {"SepTr": GREEN, "AST": _GREY, "ViT": _BLUE}


def write(content: Mapping[str, Any], page: Path, file: Path) -> None:
    """Write the page, and a chart for each data set beside the results' file.

    Args:
        content: of the results' file.
        page: Markdown.
        file: of the results; the page refers to it and to the charts by their places relative to its own.
    """
    source = Path(os.path.relpath(file, page.parent)).as_posix()
    text = "\n\n".join([HEAD.format(source=source), *_blocks(content, source.removesuffix(file.suffix)), LIMITS])
    page.write_text(text + "\n", encoding="utf-8")
    for name, data in content["data"].items():
        draw(rows(data), name, file.with_name(f"{file.stem}-{_file(name)}.png"))


def rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each model its costs, and its accuracy over the seeds with the rate that validated best."""
    found = []
    for name, costs in data["costs"].items():
        chosen = [run for run in data["runs"] if run["model"] == name and run["learning_rate"] == data["rates"][name]]
        test = [run["test"] for run in chosen]
        found.append(
            {
                "model": name,
                **costs,
                "learning_rate": data["rates"][name],
                "accuracy": statistics.mean(test),
                "deviation": statistics.stdev(test) if len(test) > 1 else 0.0,
                "seeds": len(test),
            }
        )
    return sorted(found, key=lambda row: -row["accuracy"])


def findings(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Who wins where, in sentences."""
    best = found[0]
    rivals = [row for row in found if _family(row) != _family(best)]
    text = f"Most accurate: {best['model']}, {_accuracy(best)}"
    if rivals:
        gap = 100 * (best["accuracy"] - rivals[0]["accuracy"])
        apart = best["deviation"] + rivals[0]["deviation"] < best["accuracy"] - rivals[0]["accuracy"]
        text += f"; the best of another kind is {rivals[0]['model']}, {gap:.1f} points behind"
        text += "." if apart else ", which is within the spread of the seeds."
    yield text
    for key, words in (("forward_per_second", "inference"), ("training_per_second", "training")):
        yield f"Worth their time in {words}, from the fastest on, where nothing as fast is more accurate: " + "; ".join(
            f"{row['model']} ({_rate(row[key])}, {100 * row['accuracy']:.1f} %)" for row in frontier(found, key)
        )
    least = min(found, key=lambda row: row["kept_bytes"])
    yield f"Least memory in training: {least['model']}, {quantity(least['kept_bytes'], 'B')} kept for each clip."


def frontier(found: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """The models that no other is both faster and more accurate than, the fastest first."""
    kept: list[Mapping[str, Any]] = []
    for row in sorted(found, key=lambda row: -row[key]):
        if not kept or row["accuracy"] > kept[-1]["accuracy"]:
            kept.append(row)
    return kept


def draw(found: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Accuracy over arithmetic and over speed, with the spread of the seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(10.0, 4.4), layout=layout())
    kinds = (
        ("flops", f"{title}: accuracy over arithmetic", lambda value: quantity(value, "FLOP")),
        ("training_per_second", f"{title}: accuracy over clips a second in training", lambda value: f"{value:.3g}"),
    )
    for axes, (key, words, shown) in zip(figure.subplots(1, len(kinds), sharey=True), kinds, strict=True):
        drawn: list[tuple[float, float]] = []
        for row in found:
            colour = _COLOURS.get(_family(row), INK)
            at = row[key], 100 * row["accuracy"]
            axes.errorbar(*at, yerr=100 * row["deviation"], color=colour, marker="o", markersize=5, capsize=2)
            near = sum(abs(math.log10(at[0] / x)) < 0.3 and abs(at[1] - y) < 6 for x, y in drawn)
            offset = _PLACES[near % len(_PLACES)]
            axes.annotate(row["model"], at, offset, textcoords="offset points", fontsize=8, color=colour)
            drawn.append(at)
        axes.set_xscale("log")
        axes.margins(x=0.3, y=0.15)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place, shown=shown: tick(shown(value))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("a forward pass of one clip" if key == "flops" else "clips a second", fontsize=9, color=INK)
        axes.grid(alpha=0.25, linewidth=0.6)
        entitle(axes, words)
        plain(axes)
    figure.axes[0].set_ylabel("test accuracy, %", fontsize=9, color=INK)
    finish(figure, path, [tuple(row.items()) for row in found])


def _blocks(content: Mapping[str, Any], chart: str) -> Iterator[str]:
    machine, settings = content["machine"], content["settings"]
    yield (
        f"{machine['device']}, {machine['threads']} threads, PyTorch "
        f"{str(machine['versions']['torch']).partition('+')[0]}, commit {machine['commit']}, {machine['date'][:10]}; "
        f"spectrograms of {settings['mels']} x {settings['frames']}, batch {settings['batch']}."
    )
    for name, data in content["data"].items():
        found = rows(data)
        clips = ", ".join(f"{count:,} {split}" for split, count in data["clips"].items())
        yield f"## {name[:1].upper()}{name[1:]}"
        trained = f"{data['epochs']} epochs; all trainings took {data['minutes']:.0f} min"
        guessed = f"{data['classes']} classes, {100 / data['classes']:.1f} % by guessing"
        yield f"{data['about']} {guessed}; clips: {clips}; {trained}."
        yield "\n".join(f"- {sentence}" for sentence in findings(found))
        yield f"![accuracy of each model over its arithmetic and its speed]({chart}-{_file(name)}.png)"
        yield table(found)
    yield LEGEND
    yield "\n".join(f"- {name}: {what}." for name, what in _whats(content).items())


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model, the most accurate first."""
    header = [
        "model",
        "accuracy",
        "rate",
        "parameters",
        "GFLOP",
        "clips/s forward",
        "clips/s in training",
        "kept a clip",
    ]
    return markdown(
        header,
        [
            [
                str(row["model"]),
                _accuracy(row),
                f"{row['learning_rate']:g}",
                quantity(row["parameters"], ""),
                f"{row['flops'] / 1e9:.3g}",
                f"{row['forward_per_second']:.3g}",
                f"{row['training_per_second']:.3g}",
                quantity(row["kept_bytes"], "B"),
            ]
            for row in found
        ],
    )


def _whats(content: Mapping[str, Any]) -> dict[str, str]:
    return {name: row["what"] for data in content["data"].values() for name, row in data["costs"].items()}


def _accuracy(row: Mapping[str, Any]) -> str:
    spread = f" ± {100 * row['deviation']:.1f}" if row["seeds"] > 1 else ""
    return f"{100 * row['accuracy']:.1f}{spread} %"


def _rate(per_second: float) -> str:
    return f"{per_second:.3g}/s"


def _family(row: Mapping[str, Any]) -> str:
    return str(row["model"]).partition("-")[0].partition(" ")[0]


def _file(name: str) -> str:
    return name.replace(" ", "-")
