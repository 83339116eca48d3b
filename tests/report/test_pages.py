"""What the repository shows: its stored results, the static evidence and the README's part."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.report_runs import (
    BASE,
    FORWARD,
    OLD,
    PICTURE,
    STORED,
    compiled,
    compiled_kernel,
    cpu_run,
    drawn_from,
    gpu_run,
    is_png,
    row,
    rows,
    write,
)

from benchmarks.suite import cases, pages
from septr_fast.report import page, static, summary, tables
from septr_fast.report.results import load

EQUAL = 1.05
"""The highest median ratio of a model that counts as no slower: two runs of one differ by as much."""


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


def test_readme_folds_nothing_away_that_is_not_there(tmp_path: Path) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run(results=[BASE], not_run=[]))
    pages.update(path, results, drawing=False)
    text = path.read_text(encoding="utf-8")
    assert "<summary>In figures</summary>" in text
    assert "Largest batch" not in text
    assert "Not run" not in text


def prepared(folder: Path, **files: object) -> tuple[Path, Path]:
    """A README with markers, and a folder of results."""
    (folder / "results").mkdir()
    for name, content in files.items():
        write(folder, f"results/{name}.json", content)
    text = f"# Title\n\n{pages.START}old table\n{pages.END}\n\nThe end.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder / "README.md", folder / "results"


def test_readme_is_replaced_between_the_markers_alone(tmp_path: Path) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(compiled_kernel()))
    assert pages.main(path, results) == 0
    once = path.read_text(encoding="utf-8")
    assert once.startswith(f"# Title\n\n{pages.START}### Imaginary 9000\n")
    assert once.endswith(f"\n{pages.END}\n\nThe end.\n")
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
    pages.update(path, results, drawing=True)
    assert path.read_text(encoding="utf-8") == once


def test_readme_says_that_no_gpu_has_been_measured_until_one_has(tmp_path: Path) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(compiled_kernel()))
    pages.update(path, results, drawing=False)
    without = path.read_text(encoding="utf-8")
    assert f"{pages.NO_GPU}\n\n### {static.TITLE}" in without
    assert static.table(static.load(results / "kernels.json")) in without
    write(tmp_path, "results/h100.json", gpu_run())
    pages.update(path, results, drawing=False)
    measured = path.read_text(encoding="utf-8")
    assert "### Imaginary GPU" in measured
    assert pages.NO_GPU not in measured
    assert static.TITLE not in measured


@pytest.mark.parametrize("missing", [pages.START, pages.END], ids=["start", "end"])
def test_readme_without_markers_is_left_alone(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = prepared(tmp_path, cpu=cpu_run())
    text = path.read_text(encoding="utf-8").replace(missing, "")
    path.write_text(text, encoding="utf-8")
    assert pages.main(path, results) == 2
    assert "markers" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == text


def test_readme_needs_results_of_this_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = prepared(tmp_path)
    assert pages.main(path, results) == 2
    assert "found none" in capsys.readouterr().err
    write(tmp_path, "results/cpu.json", OLD)
    assert pages.main(path, results) == 2
    assert "cpu.json" in capsys.readouterr().err
    assert "old table" in path.read_text(encoding="utf-8")


def test_readme_shows_the_stored_results(tmp_path: Path) -> None:
    stored = pages.RESULTS.parent.parent / "benchmarks" / "results"
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for file in stored.glob("*.json"):
        shutil.copy(file, folder)
    shown = (pages.RESULTS.parent.parent / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(shown, encoding="utf-8")
    pages.update(tmp_path / "README.md", folder, drawing=True)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == shown, "update it: python -m benchmarks.suite.pages"
    drawn, kept = ({path.name: drawn_from(path) for path in place.glob("*.png")} for place in (folder, stored))
    assert drawn == kept, "update the charts: python -m benchmarks.suite.pages"


def test_readme_shows_the_plan() -> None:
    done = subprocess.run([sys.executable, "-m", "septr_fast", "plan"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (pages.RESULTS.parent.parent / "README.md").read_text(encoding="utf-8")
