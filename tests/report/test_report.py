"""The report: numbers and tables on the page, refusals and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs.report_runs import (
    BASE,
    FORWARD,
    OLD,
    PICTURE,
    TRAINING,
    beside,
    compiled,
    compiled_kernel,
    cpu_run,
    gpu_run,
    growth,
    is_png,
    row,
    rows,
    write,
)

from septr_fast.__main__ import main
from septr_fast.report import page, summary, tables
from septr_fast.report.fits import curves, fit
from septr_fast.report.groups import main_cases, speed_groups
from septr_fast.report.results import OURS, load
from septr_fast.report.sources import read
from septr_fast.report.units import duration, quantity, share, significant, slug


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


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
        "4.00 times as long (3.60 to 4.80). At the ceiling its products alone would take 750 ms: 8.00 times as long "
        "at most. Less time than SepTr took: AST | tiny."
    )
    assert training == (
        "Training step, default model 64x64, batch 2, float32: SepTr takes 1.50 s, the reference 4.50 s: "
        "3.00 times as long (2.70 to 3.60). At the ceiling its products alone would take 750 ms: 6.00 times as long "
        "at most. It keeps 720 MB for the backward pass, the reference 1.44 GB."
    )


def test_summary_tells_the_times_that_its_ratio_is_of() -> None:
    other = replace(beside(BASE, "reference", 4.0), seconds=5.28, ours_seconds=1.32)
    (sentence,) = summary.sentences(cpu_run(results=[BASE, other]))
    assert "SepTr takes 1.32 s, the reference beside it 5.28 s: 4.00 times as long (3.60 to 4.80). At" in sentence
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


@pytest.mark.parametrize("without", ["ceiling", "arithmetic", "the device to itself"])
def test_no_bound_is_told(without: str) -> None:
    base = replace(BASE, useful_flops=None) if without == "arithmetic" else BASE
    base = replace(base, group="forward on one thread") if without == "the device to itself" else base
    results = [base, beside(base, "reference", 4.0)]
    run = cpu_run(results=results, **({"ceilings": {}} if without == "ceiling" else {}))
    (sentence,) = summary.sentences(run)
    assert "4.00 times as long" in sentence
    assert "ceiling" not in sentence


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
