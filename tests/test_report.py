"""The report: numbers on the page, charts, refusals, the command and the README's part."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from report_runs import (
    BASE,
    FORWARD,
    STEP,
    TRAINING,
    beside,
    compiled,
    compiled_kernel,
    cpu_run,
    drawn_from,
    gpu_run,
    growth,
)

from benchmarks import cases, readme
from septr_fast.__main__ import main
from septr_fast.report import bars, page, roofline, roofline_chart, static, summary, tables
from septr_fast.report.charts import GREEN, Album, palette
from septr_fast.report.fits import curves, fit
from septr_fast.report.groups import main_cases, speed_groups
from septr_fast.report.results import OURS, Run, load, store
from septr_fast.report.sources import read
from septr_fast.report.units import duration, quantity, share, significant, slug

PICTURE = re.compile(r"!\[[^]]+\]\(([^)]+)\)")
STORED = readme.RESULTS / "cpu.json"
EQUAL = 1.05
"""The highest median ratio of a model that counts as no slower: two runs of one differ by as much."""

OLD = {"machine": {"processor": "Imaginary"}, "results": []}


def rows(table: str) -> list[dict[str, str]]:
    """A Markdown table as one dict for each row."""
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert set("".join(lines[1])) == {"-"}
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def row(table: str, **wanted: str) -> dict[str, str]:
    """The only row with the cells `wanted`."""
    (found,) = [one for one in rows(table) if all(one[name] == cell for name, cell in wanted.items())]
    return found


def is_png(path: Path) -> bool:
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


def write(folder: Path, name: str, content: object) -> Path:
    """`content`, a run or what JSON can hold, as a file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Run):
        store(content, path)
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (significant(0), "0"),
        (significant(0.0123456), "0.0123"),
        (significant(1.4269), "1.43"),
        (significant(35112.6), "35113"),
        (quantity(1.395e9, "B"), "1.40 GB"),
        (quantity(999.6e6, "B"), "1.00 GB"),
        (quantity(512, "B"), "512 B"),
        (quantity(4_200_000, ""), "4.20 M"),
        (quantity(110e9, "FLOP/s"), "110 GFLOP/s"),
        (duration(5.163), "5.16 s"),
        (duration(0.99951), "1.00 s"),
        (duration(0.03712), "37.1 ms"),
        (duration(2.5e-5), "25.0 µs"),
        (share(0.449), "45 %"),
        (share(0.0032), "0.32 %"),
        (slug("forward, 128x128, batch 1"), "forward-128x128-batch-1"),
    ],
)
def test_numbers_in_words(words: str, expected: str) -> None:
    assert words == expected


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.1])
def test_a_planted_power_law_is_found_again(power: float) -> None:
    law = fit([(at, 0.03 * at**power) for at in (16.0, 24.0, 64.0, 100.0)])
    assert law is not None
    assert law.exponent == pytest.approx(power, rel=1e-9)
    assert law.factor == pytest.approx(0.03, rel=1e-9)
    assert law(50.0) == pytest.approx(0.03 * 50**power)
    assert law.points == 4
    assert law.deviation < 1e-9


def test_a_fit_tells_how_far_a_point_is_off() -> None:
    law = fit([(1.0, 1.0), (10.0, 2.0), (100.0, 1.0)])
    assert law is not None
    assert law.exponent == pytest.approx(0.0, abs=1e-12)
    assert law.deviation == pytest.approx(2 ** (2 / 3) - 1)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(3.0, 2.0), (3.0, 4.0)]], ids=["none", "one", "one place"])
def test_no_line_through_fewer_than_two_places(points: list[tuple[float, float]]) -> None:
    assert fit(points) is None


def test_curves_are_sorted_and_precisions_kept_apart() -> None:
    results = [*reversed(growth("width", OURS, 1.0, 1.0, 1.0))]
    assert [result.at for result in curves(cpu_run(results=results))[0].measured] == [16, 32, 64, 128]
    both = [*results, *(replace(result, precision="bfloat16") for result in results)]
    assert [curve.model for curve in curves(cpu_run(results=both))] == ["SepTr, float32", "SepTr, bfloat16"]


def test_groups() -> None:
    run = cpu_run()
    assert speed_groups(run) == ["forward", "training step"]
    assert list(main_cases(run)) == [FORWARD, TRAINING]


def test_summary_says_what_the_numbers_say() -> None:
    forward, training = summary.sentences(cpu_run())
    assert forward == (
        "Forward pass, default model 128x128, batch 1, float32: SepTr takes 1.50 s, the reference 6.00 s: "
        "4.00 times as long (3.60 to 4.80). Less time than SepTr took: AST | tiny."
    )
    assert training == (
        "Training step, default model 64x64, batch 2, float32: SepTr takes 1.50 s, the reference 4.50 s: "
        "3.00 times as long (2.70 to 3.60). It keeps 720 MB for the backward pass, the reference 1.44 GB."
    )


def test_summary_tells_the_times_that_its_ratio_is_of() -> None:
    other = replace(beside(BASE, "reference", 4.0), seconds=5.28, ours_seconds=1.32)
    (sentence,) = summary.sentences(cpu_run(results=[BASE, other]))
    assert sentence.endswith("SepTr takes 1.32 s, the reference beside it 5.28 s: 4.00 times as long (3.60 to 4.80).")
    found = row(tables.speed(cpu_run(), [BASE, other]), model="reference")
    assert (found["SepTr beside it"], found["median"].split(" ±")[0]) == ("1.32 s", "5.28 s")


def test_summary_over_several_cases() -> None:
    other = replace(BASE, case="another", shape="default, 64x64", size=(64, 64))
    results = [BASE, beside(BASE, "reference", 4.0), beside(BASE, "AST", 0.5)]
    results += [other, beside(other, "reference", 2.5), beside(other, "AST", 2.0)]
    (sentence,) = summary.sentences(cpu_run(results=results))
    assert "In both cases the reference takes 2.50 to 4.00 times as long." in sentence
    assert sentence.endswith("Less time than SepTr took: AST (in 1 of 2 cases).")
    assert summary.model_size(other) == "default, 64x64 model"


def test_without_a_reference_the_first_baseline_is_spoken_of() -> None:
    results = [BASE, beside(BASE, "SepTr, recomputing", 1.5), beside(BASE, "fused", 2.0)]
    (sentence,) = summary.sentences(cpu_run(results=results))
    assert "fused 3.00 s: 2.00 times as long" in sentence


def test_smoke_runs_say_that_their_times_say_nothing() -> None:
    assert next(summary.sentences(cpu_run(setting="smoke"))) == summary.NO_TIMES
    assert summary.NO_TIMES not in summary.sentences(cpu_run())


def test_machine_and_ceilings() -> None:
    assert summary.machine(cpu_run()) == (
        "Measured on Imaginary 9000, 2 threads; torch 9.9; commit abc1234; 2030-01-02; setting: full; "
        "input: 35 made-up words."
    )
    assert summary.ceilings(gpu_run()) == (
        "Ceilings, measured in the same run: copy 1.00 TB/s (read and written); matrix products 50.0 TFLOP/s in "
        "float32, 100 TFLOP/s in bfloat16, 200 TFLOP/s in float16."
    )
    assert summary.ceilings(cpu_run(ceilings={})) == ""


def test_speed_table() -> None:
    run = cpu_run()
    table = tables.speed(run, run.results[:3])
    assert row(table, model=OURS) == {
        "case": FORWARD,
        "model": OURS,
        "median": "1.50 s ± 50.0 ms",
        "SepTr is": "",
        "spectrograms/s": "0.667",
        "s of audio/s": "1.33",
        "GFLOP": "158",
        "useful FLOP/s (of the ceiling)": "100 GFLOP/s (50 %)",
        "parameters": "4.20 M",
        "peak memory": "250 MB",
        "error against float64": "6.3e-07",
        "note": "",
    }
    plain = row(table, model="reference")
    assert plain["SepTr is"] == "4.00 x as fast (3.60 to 4.80)"
    assert plain["useful FLOP/s (of the ceiling)"] == "25.0 GFLOP/s (12 %)"
    assert row(table, model="AST \\| tiny")["note"] == "another function"


def test_empty_columns_are_left_out_and_unknown_ceilings_too() -> None:
    own = replace(BASE, flops=None, precision="autocast", audio_seconds=None)
    found = row(tables.speed(cpu_run(), [own]), model=OURS)
    assert {"GFLOP", "s of audio/s", "kept for backward", "note", "SepTr is"}.isdisjoint(found)
    assert found["useful FLOP/s (of the ceiling)"] == "100 GFLOP/s"


def test_largest_batch_table() -> None:
    table = tables.largest_batch(cpu_run())
    assert [(one["model"], one["largest batch"]) for one in rows(table)] == [(OURS, "96"), ("reference", "24")]
    assert row(table, model=OURS)["limit"] == "8 GB, made up"
    assert tables.largest_batch(cpu_run(results=[BASE])) == ""


def test_growth_table() -> None:
    table = tables.growth(cpu_run())
    own = row(table, along="height", model=OURS)
    assert own["sizes"] == "16 to 128"
    assert own["time grows with power"] == "1.50 (4 points, within 1 %)"
    assert own["peak memory grows with power"] == "1.00 (4 points, within 1 %)"
    plain = row(table, along="height", model="reference")
    assert plain["time grows with power"].startswith("2.00 (4 points")
    assert plain["peak memory grows with power"] == ""
    assert [one["along"] for one in rows(table)] == ["height", "height", "batch"]


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


def test_page_of_several_files(tmp_path: Path) -> None:
    files = [
        write(tmp_path, "cpu.json", cpu_run()),
        write(tmp_path, "gpu.json", gpu_run()),
        write(tmp_path, "kernels.json", compiled(compiled_kernel())),
    ]
    path = page.write(read(files), tmp_path / "out", drawing=True)
    text = path.read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## In short",
        "## Imaginary 9000 (cpu)",
        "## Imaginary GPU (gpu)",
        "## Static evidence: compiled, not run (kernels)",
    ]
    pictures = PICTURE.findall(text)
    assert len(pictures) == len(set(pictures))
    assert {name.split("-", 1)[0] for name in pictures} == {"cpu", "gpu"}
    assert sorted(pictures) == sorted(file.name for file in path.parent.glob("*.png"))
    assert all(is_png(path.parent / name) for name in pictures)
    expected = {"speed-forward", "speed-training-step", "memory-kept", "memory-peak", "growth"}
    assert {f"cpu-{name}.png" for name in expected} < set(pictures)
    for run in (cpu_run(), gpu_run()):
        for group in speed_groups(run):
            results = [result for found in run.cases(group).values() for result in found]
            assert tables.speed(run, results) in text
        assert all(sentence in text for sentence in summary.sentences(run))
    assert row(tables.not_run(cpu_run()), model="FlexAttention")["reason"] == "needs a GPU"
    assert tables.not_run(cpu_run()) in text


def test_page_of_the_least(tmp_path: Path) -> None:
    least = replace(BASE, flops=None, useful_flops=None, peak_bytes=None)
    run = cpu_run(results=[least], ceilings={}, not_run=[], kernels=[], stamp={})
    text = page.write(read([write(tmp_path, "cpu.json", run)]), tmp_path, drawing=True).read_text(encoding="utf-8")
    assert not PICTURE.search(text)
    assert "### Growth" not in text
    assert "### Not run" not in text
    assert "### Memory" not in text
    assert "unknown device" in text


def test_files_of_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    found = read([write(tmp_path, f"{name}/results.json", cpu_run()) for name in ("a", "b", "c")])
    assert list(found.runs) == ["results", "results-2", "results-3"]


@pytest.mark.parametrize(
    "content",
    [OLD, [], {"format": 1}, {"format": 2, "results": [{"case": "x"}]}, compiled(), compiled({"kernel": "mlp_fwd"})],
    ids=["old", "list", "format 1", "wrong result", "no kernel", "wrong kernel"],
)
def test_other_files_are_refused_by_name(content: object, tmp_path: Path) -> None:
    path = write(tmp_path, "odd.json", content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read([path])


@pytest.mark.parametrize("text", [None, "", "{", "\xff"], ids=["missing", "empty", "broken", "no text"])
def test_unreadable_files_are_refused_by_name(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read([path])


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    assert load(write(tmp_path, "cpu.json", cpu_run())) == cpu_run()


def test_files_from_before_a_field_are_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, "cpu.json", cpu_run())
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, field in (("results", "ours_seconds"), ("kernels", "precision")):
        for entry in content[name]:
            del entry[field]
    assert load(write(tmp_path, "old.json", content)) == cpu_run()


def stored_ratios(group: str, batch: int) -> dict[str, float | None]:
    """Ratios of the default model in the stored results of a CPU, by the name of the model beside it."""
    found = load(STORED).cases(group)[f"{group}, default, batch {batch}, float32"]
    return {result.model: result.ratio for result in found}


@pytest.mark.parametrize(
    ("group", "batch", "model", "least"),
    [
        (cases.FORWARD, 1, cases.REFERENCE, 3.0),
        (cases.FORWARD, 4, cases.REFERENCE, 3.0),
        (cases.FORWARD, 1, cases.REFERENCE_COMPILED, 2.4),
        (cases.FORWARD, 4, cases.REFERENCE_COMPILED, 2.4),
        (cases.STEP, 1, cases.REFERENCE, 3.0),
    ],
)
def test_stored_results_keep_what_is_promised(group: str, batch: int, model: str, least: float) -> None:
    ratio = stored_ratios(group, batch)[model]
    assert ratio is not None
    assert ratio >= least


@pytest.mark.parametrize("batch", [1, 4])
def test_stored_results_show_compilation_no_slower(batch: int) -> None:
    ratio = stored_ratios(cases.FORWARD, batch)[cases.OURS_COMPILED]
    assert ratio is not None
    assert ratio <= EQUAL


@pytest.mark.parametrize("group", [cases.FORWARD, cases.STEP])
def test_stored_results_have_the_patch_models(group: str) -> None:
    ratios = stored_ratios(group, 1)
    assert all(ratios[model] is not None for model in cases.PATCH_MODELS)


def test_stored_results_are_of_a_whole_run_on_a_cpu() -> None:
    run = load(STORED)
    assert summary.is_cpu(run)
    assert run.setting in {"quick", "full"}


def test_static_table_tells_the_worst_variant(tmp_path: Path) -> None:
    small = {"flops": 1_000_000, "executed_flops": 3_000_000, "least_bytes_moved": 1000}
    kernels = [
        compiled_kernel(),
        compiled_kernel(registers=255, spills=7, shared_memory=1024, programs_per_multiprocessor=1, **small),
        compiled_kernel("normalize", flops=0, executed_flops=0, tensor_cores={}),
        compiled_kernel(model="another"),
        compiled_kernel(arch=80, registers=1),
        compiled_kernel(dtype="float32", registers=1),
    ]
    evidence = static.load(write(tmp_path, "kernels.json", compiled(*kernels)))
    assert evidence.shown == ("bfloat16", 90)
    assert row(static.table(evidence), kernel="mlp_fwd") == {
        "kernel": "mlp_fwd",
        "registers": "255",
        "spills": "7",
        "shared memory": "96.0 KiB",
        "tensor cores": "HGMMA",
        "programs per multiprocessor": "1",
        "GFLOP": "32.0",
        "executed / useful FLOP": "1.25",
        "least bytes": "279 MB",
    }
    assert row(static.table(evidence), kernel="normalize")["executed / useful FLOP"] == ""
    assert len(rows(static.table(evidence))) == 2
    assert "sm_90: torch 9.9, triton 8.8, ptxas 7.7. No kernel ran." in static.about(evidence)


def test_static_table_of_another_architecture_and_of_failures(tmp_path: Path) -> None:
    failed = compiled_kernel("mlp_bwd", arch=80, shortfalls=["does not compile: planted"])
    for key in ("registers", "spills", "shared_memory", "tensor_cores"):
        del failed[key]
    evidence = static.load(write(tmp_path, "kernels.json", compiled(compiled_kernel(arch=80), failed)))
    assert evidence.shown == ("bfloat16", 80)
    assert row(static.table(evidence), kernel="mlp_bwd")["registers"] == "does not compile"
    assert static.shortfalls(evidence) == ["mlp_bwd: does not compile: planted"]
    assert "- mlp_bwd: does not compile: planted" in page.compiled(evidence)


def test_command_writes_beside_the_first_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path, "cpu.json", cpu_run()), write(tmp_path, "kernels.json", compiled(compiled_kernel()))]
    assert main(["report", *map(str, files)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report' / 'report.md'}\n"
    assert (tmp_path / "report" / "report.md").exists()


def test_command_reports_the_latest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "benchmarks/out/results.json" in capsys.readouterr().err
    write(tmp_path, "benchmarks/out/results.json", cpu_run())
    assert main(["report", "--out", "here"]) == 0
    assert "Imaginary 9000" in (tmp_path / "here" / "report.md").read_text(encoding="utf-8")


def test_command_refuses_old_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "old.json", OLD)
    assert main(["report", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_command_refuses_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "cpu.json", cpu_run())
    assert main(["report", str(path), "--out", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_page_has_no_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "cpu.json", cpu_run())
    assert main(["report", str(path)]) == 0
    assert "pip install 'septr_fast[report]'" in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "4.00 x as fast" in text
    assert not PICTURE.search(text)
    assert not list(tmp_path.rglob("*.png"))


def test_importing_imports_no_matplotlib() -> None:
    code = "import sys, septr_fast, septr_fast.__main__, septr_fast.report.page; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_readme_folds_nothing_away_that_is_not_there(tmp_path: Path) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run(results=[BASE], not_run=[]))
    readme.update(path, results, drawing=False)
    text = path.read_text(encoding="utf-8")
    assert "<summary>In figures</summary>" in text
    assert "Largest batch" not in text
    assert "Not run" not in text


def prepared(folder: Path, **files: object) -> tuple[Path, Path]:
    """A README with markers, and a folder of results."""
    (folder / "results").mkdir()
    for name, content in files.items():
        write(folder, f"results/{name}.json", content)
    text = f"# Title\n\n{readme.START}old table\n{readme.END}\n\nThe end.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder / "README.md", folder / "results"


def test_readme_is_replaced_between_the_markers_alone(tmp_path: Path) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(compiled_kernel()))
    assert readme.main(path, results) == 0
    once = path.read_text(encoding="utf-8")
    assert once.startswith(f"# Title\n\n{readme.START}### Imaginary 9000\n")
    assert once.endswith(f"\n{readme.END}\n\nThe end.\n")
    assert "old table" not in once
    assert tables.growth(cpu_run()) in once
    assert "\n<summary>Growth</summary>\n" in once
    assert "### Growth" not in once
    assert once.count("<details>") == once.count("</details>") == 7
    table = next(block for block in once.split("\n\n") if "| median" in block)
    found = row(table, case=FORWARD, model="reference")
    assert found["SepTr is"] == "4.00 x as fast (3.60 to 4.80)"
    assert (found["spectrograms/s"], found["s of audio/s"], found["GFLOP"]) == ("0.167", "0.333", "351")
    assert (found["parameters"], found["useful FLOP/s (of the ceiling)"]) == ("4.20 M", "25.0 GFLOP/s (12 %)")
    assert summary.ceilings(cpu_run()) in once
    for title, table in (("Largest batch", tables.largest_batch(cpu_run())), ("Not run", tables.not_run(cpu_run()))):
        folded = once.partition(f"<summary>{title}</summary>")[2].partition("</details>")[0]
        assert table in folded
    assert PICTURE.findall(once)
    assert all(is_png(tmp_path / link) for link in PICTURE.findall(once))
    assert "(results/cpu.json)" in once
    readme.update(path, results, drawing=True)
    assert path.read_text(encoding="utf-8") == once


def test_readme_says_that_no_gpu_has_been_measured_until_one_has(tmp_path: Path) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(compiled_kernel()))
    readme.update(path, results, drawing=False)
    without = path.read_text(encoding="utf-8")
    assert f"{readme.NO_GPU}\n\n### {static.TITLE}" in without
    assert static.table(static.load(results / "kernels.json")) in without
    write(tmp_path, "results/h100.json", gpu_run())
    readme.update(path, results, drawing=False)
    measured = path.read_text(encoding="utf-8")
    assert "### Imaginary GPU" in measured
    assert readme.NO_GPU not in measured
    assert static.TITLE not in measured


@pytest.mark.parametrize("missing", [readme.START, readme.END], ids=["start", "end"])
def test_readme_without_markers_is_left_alone(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run())
    text = path.read_text(encoding="utf-8").replace(missing, "")
    path.write_text(text, encoding="utf-8")
    assert readme.main(path, results) == 2
    assert "markers" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == text


def test_readme_needs_results_of_this_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = prepared(tmp_path)
    assert readme.main(path, results) == 2
    assert "found none" in capsys.readouterr().err
    write(tmp_path, "results/cpu.json", OLD)
    assert readme.main(path, results) == 2
    assert "cpu.json" in capsys.readouterr().err
    assert "old table" in path.read_text(encoding="utf-8")
