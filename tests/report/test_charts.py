"""The report's charts, and the roofline with every kernel on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from support.runs.report_runs import (
    BASE,
    FORWARD,
    PICTURE,
    STEP,
    STORED,
    beside,
    cpu_run,
    drawn_from,
    gpu_run,
    is_png,
    row,
    rows,
)

from septr_fast.report import page, roofline
from septr_fast.report.charts import bars
from septr_fast.report.charts import roofline as roofline_chart
from septr_fast.report.charts.figures import GREEN, Album, palette
from septr_fast.report.groups import main_cases
from septr_fast.report.results import OURS, Run, load


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure that is saved, by the name of its file."""
    kept: dict[str, Figure] = {}
    save = Figure.savefig

    def keep(figure: Figure, path: Path, **options: Any) -> None:
        save(figure, path, **options)
        kept[path.name] = figure

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def test_kernels_under_the_roofs_of_their_precision() -> None:
    run = gpu_run()
    table = roofline.table(run, STEP)
    assert row(table, kernel="attention_fwd") == {
        "": "1",
        "kernel": "attention_fwd",
        "launches": "2",
        "GFLOP": "40.0",
        "bytes": "100 MB",
        "FLOP per byte": "400",
        "time": "1.00 ms",
        "FLOP/s": "40.0 TFLOP/s",
        "of what the ceilings allow": "40 %",
        "of the copy's bandwidth": "10 %",
        "at best": "400 µs",
    }
    unmeasured = row(table, kernel="mlp_fwd")
    assert (unmeasured["time"], unmeasured["at best"], unmeasured["FLOP per byte"]) == ("", "100 µs", "40.0")
    moving = row(table, kernel="normalize")
    assert (moving["FLOP/s"], moving["of the copy's bandwidth"]) == ("", "50 %")
    assert "Hollow: not measured" in roofline.status(run, STEP)
    above = roofline.roofs(run, STEP)
    assert above is not None
    assert (above.precision, above.rate(40.0), above.rate(400.0)) == ("bfloat16", 4e13, 1e14)


@pytest.mark.parametrize("missing", ["bfloat16", "copy"])
def test_no_roof_of_another_precision(missing: str, tmp_path: Path) -> None:
    run = gpu_run()
    less = replace(run, ceilings={name: rate for name, rate in run.ceilings.items() if name != missing})
    unknown = replace(run, kernels=[replace(kernel, precision="") for kernel in run.kernels])
    mixed = replace(run, kernels=[replace(run.kernels[0], precision="float16"), *run.kernels[1:]])
    for one in (less, unknown, mixed):
        assert roofline.roofs(one, STEP) is None
        assert roofline.status(one, STEP).startswith("Counted: no roofs")
        assert "at best" not in rows(roofline.table(one, STEP))[0]
        roofline_chart.draw(one, STEP, tmp_path / "chart.png")
        assert is_png(tmp_path / "chart.png")


def test_kernels_of_a_cpu_run_are_counted_alone() -> None:
    kernel = replace(cpu_run().kernels[0], seconds=0.1, precision="float32")
    run = cpu_run(kernels=[kernel])
    assert roofline.roofs(run, FORWARD) is None
    assert roofline.status(run, FORWARD).startswith("Counted, not measured")
    assert set(rows(roofline.table(run, FORWARD))[0]) == {"", "kernel", "launches", "GFLOP", "bytes", "FLOP per byte"}


def words(figure: Figure) -> list[str]:
    """All that is written in `figure`, legends line by line."""
    return [line for text in figure.findobj(Text) for line in text.get_text().splitlines()]


@pytest.mark.parametrize(
    ("run", "case", "beside_names"),
    [
        (cpu_run(), FORWARD, {"200", "20.0 MB", "500 MB", "no matrix products"}),
        (gpu_run(), STEP, {"1.00 ms, 50 %", "at best 200 µs", "1", "2"}),
        (gpu_run(kernels=gpu_run().kernels[2:]), STEP, {"1.00 ms, 50 %", "at best 200 µs"}),
        (gpu_run(kernels=gpu_run().kernels[:2]), STEP, {"1", "2"}),
        (load(STORED), load(STORED).kernels[0].case, {"212", "9.61", "5.72 MB"}),
    ],
    ids=["counted", "under roofs", "no products", "all with products", "stored"],
)
def test_every_kernel_is_on_the_chart(
    run: Run, case: str, beside_names: set[str], figures: dict[str, Figure], tmp_path: Path
) -> None:
    roofline_chart.draw(run, case, tmp_path / "chart.png")
    written = words(figures["chart.png"])
    for number, kernel in enumerate(run.kernels, 1):
        assert f"{number}  {kernel.name}" in [line.strip("\u2007") for line in written]
    assert beside_names <= set(written)


def title_extent(axes: Axes) -> Bbox | None:
    """Where the title of `axes` is in the figure; None without one."""
    title = axes.get_title(loc="left")
    return next((text.get_window_extent() for text in axes.findobj(Text) if title and text.get_text() == title), None)


def test_no_title_is_clipped(figures: dict[str, Figure], tmp_path: Path) -> None:
    long = replace(BASE, case="transformer along the width, default, 128x128, batch 128, bfloat16", group="x")
    other = beside(long, "merged algebra, fused attention, a kernel of its own, compiled", 2.0)
    wide = [BASE, beside(BASE, "reference", 3.0), long, other]
    runs = {"stored": load(STORED), "cpu": cpu_run(), "gpu": gpu_run(), "wide": cpu_run(results=wide)}
    for name, run in runs.items():
        shown, album = main_cases(run), Album(tmp_path, name, "", palette([run]), drawing=True)
        blocks = [page.speed_chart(shown, album, "main cases"), *page.memory_charts(shown, album)]
        blocks += [*page.growth(run, album), *page.kernels(run, album)]
        assert len(PICTURE.findall("".join(blocks))) >= 3
    assert len(figures) == 16
    for name, figure in figures.items():
        figure.draw_without_rendering()
        titled = {axes: extent for axes in figure.axes if (extent := title_extent(axes)) is not None}
        boxes = {axes: axes.get_tightbbox() for axes in figure.axes}
        assert titled
        for axes, extent in titled.items():
            where = f"{name}: {axes.get_title(loc='left')}"
            assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1, where
            assert figure.bbox.y0 <= extent.y0 < extent.y1 <= figure.bbox.y1, where
            assert not any(extent.overlaps(box) for other, box in boxes.items() if other is not axes), where


def test_a_chart_tells_which_data_it_shows(tmp_path: Path) -> None:
    run = cpu_run()
    changed = [
        replace(result, seconds=1.1 * result.seconds, peak_bytes=1 + (result.peak_bytes or 0)) for result in run.results
    ]
    kernels = [replace(kernel, bytes=kernel.bytes + 1) for kernel in run.kernels]
    for folder, one in {"a": run, "b": run, "c": replace(run, results=changed, kernels=kernels)}.items():
        for _ in page.section(one, Album(tmp_path / folder, "cpu", "", palette([one]), drawing=True)):
            pass
    first, same, other = (
        {path.name: (drawn_from(path), path.read_bytes()) for path in (tmp_path / folder).glob("*.png")}
        for folder in "abc"
    )
    assert first == same
    assert first.keys() == other.keys()
    assert len(first) == 6
    assert all(digest for digest, _ in first.values())
    assert all(first[name][0] != other[name][0] for name in first if name != "cpu-memory-kept.png")
    assert first["cpu-memory-kept.png"] == other["cpu-memory-kept.png"]


def test_bars_are_relative_to_septr() -> None:
    (panel,) = bars.speed_panels(cpu_run().cases("forward"))
    plain, own, small = panel.bars
    assert (own.model, own.value, own.low) == (OURS, 1.0, None)
    assert (plain.value, plain.low, plain.high) == pytest.approx((4.0, 3.6, 4.8))
    assert small.value == 0.5
    assert bars.speed_panels({"alone": [BASE]}) == []
    (saved,) = bars.saved_panels(cpu_run().cases())
    assert [(bar.model, bar.value, bar.label) for bar in saved.bars] == [
        ("reference", 1.44, "1.44 GB"),
        (OURS, 0.72, "720 MB"),
    ]


def test_a_model_has_one_colour_in_all_files() -> None:
    names = (OURS, "SepTr, recomputing", "reference", "ViT")
    results = [BASE, *(beside(BASE, name, 2.0) for name in names[1:])]
    colours = palette([cpu_run(results=results), gpu_run()])
    assert colours[OURS] == GREEN
    assert len({colours[name] for name in names}) == len(names)
    assert palette([cpu_run(results=results)]) == colours
