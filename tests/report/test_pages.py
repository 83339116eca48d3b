"""What the repository shows: its stored results, the README's part, the page of all results and their tables."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs.report_runs import (
    BASE,
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


def prepared(folder: Path, **files: object) -> Path:
    """A checkout with a README that has the markers, and with results."""
    (folder / pages.RESULTS).mkdir(parents=True)
    for name, content in files.items():
        write(folder / pages.RESULTS, f"{name}.json", content)
    text = f"# Title\n\n{pages.START}old table\n{pages.END}\n\nThe end.\n"
    (folder / pages.README).write_text(text, encoding="utf-8")
    return folder


def texts(root: Path) -> tuple[str, str]:
    """The README and the page."""
    return (root / pages.README).read_text(encoding="utf-8"), (root / pages.PAGE).read_text(encoding="utf-8")


def table_of(text: str, heading: str) -> str:
    """The only table with `heading` among its columns."""
    (found,) = [block for block in text.split("\n\n") if block.startswith("| ") and heading in block.splitlines()[0]]
    return found


def test_readme_is_replaced_between_the_markers_alone(tmp_path: Path) -> None:
    root = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(compiled_kernel()))
    assert pages.main(root) == 0
    once = texts(root)
    assert once[0].startswith(f"# Title\n\n{pages.START}Forward: default model 128x128, batch 1, float32; ")
    assert once[0].endswith(f"{pages.NO_GPU} [All results](docs/results.md).\n{pages.END}\n\nThe end.\n")
    assert "training step: default model 64x64, batch 2, float32" in " ".join(once[0].split())
    assert "Imaginary 9000, 2 threads, PyTorch 9.9, commit abc1234, 2030-01-02." in " ".join(once[0].split())
    assert "old table" not in once[0]
    assert PICTURE.findall(once[0]) == ["benchmarks/results/cpu-speed-main-cases.png"]
    assert is_png(root / PICTURE.findall(once[0])[0])
    pages.update(root, drawing=True)
    assert texts(root) == once


def test_readme_shows_each_model_in_one_row(tmp_path: Path) -> None:
    run = cpu_run()
    small = [replace(result, model=pages.LEFT_OUT[0]) for result in run.results if result.model == "reference"]
    root = prepared(tmp_path, cpu=replace(run, results=[*run.results, *small]))
    pages.update(root, drawing=False)
    assert pages.LEFT_OUT[0] in texts(root)[1]
    table = table_of(texts(root)[0], "times SepTr's")
    lines = [[cell.strip() for cell in line.replace("\\|", "/").split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0] == ["model", "forward", "times SepTr's", "training step", "times SepTr's"]
    assert lines[2:] == [
        ["SepTr", "1.50 s", "1", "1.50 s", "1"],
        ["reference", "6.00 s", "4.00", "4.50 s", "3.00"],
        ["AST / tiny", "750 ms", "0.50", "", ""],
    ]
    assert PICTURE.findall(texts(root)[0]) == []


def test_page_sums_up_every_run(tmp_path: Path) -> None:
    root, run = prepared(tmp_path, cpu=cpu_run(), another=cpu_run(setting="brief")), cpu_run()
    pages.update(root, drawing=True)
    page_text = texts(root)[1]
    assert [line for line in page_text.splitlines() if line.startswith("## ")] == [
        "## Imaginary 9000, setting brief",
        "## Imaginary 9000, setting full",
    ]
    for shown in (summary.machine(run), summary.ceilings(run), tables.growth(run), tables.largest_batch(run)):
        assert shown in page_text
    assert tables.not_run(run) in page_text
    assert all(f"- {sentence}\n" in page_text for sentence in summary.sentences(run))
    section = page_text.partition("setting full")[2]
    table = next(block for block in section.split("\n\n") if "| median" in block)
    assert row(table, model="reference")["SepTr is"] == "4.00 x as fast (3.60 to 4.80)"
    links = PICTURE.findall(page_text)
    assert {Path(link).name.partition("-")[0] for link in links} == {"cpu", "another"}
    assert all(is_png(root / "docs" / link) for link in links)
    for name in ("cpu", "another"):
        assert f"[{name}.json](../benchmarks/results/{name}.json)" in page_text
        assert f"[{name}.csv](../benchmarks/results/{name}.csv)" in page_text


def test_page_says_that_no_gpu_has_been_measured_until_one_has(tmp_path: Path) -> None:
    root = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(compiled_kernel(shortfalls=["planted"])))
    pages.update(root, drawing=False)
    assert all(pages.NO_GPU in text for text in texts(root))
    assert f"## {static.TITLE}\n" in texts(root)[1]
    assert "- mlp_fwd: planted" in texts(root)[1]
    write(root, "benchmarks/results/h100.json", gpu_run())
    pages.update(root, drawing=False)
    assert not any(pages.NO_GPU in text for text in texts(root))
    assert "\nDefault model 128x128, batch 1, bfloat16; Imaginary GPU, commit unknown" in texts(root)[0]
    assert "## Imaginary GPU, setting full\n" in texts(root)[1]
    assert "## Imaginary 9000, setting full\n" in texts(root)[1]


def test_page_has_no_table_of_what_is_not_there(tmp_path: Path) -> None:
    root = prepared(tmp_path, cpu=cpu_run(results=[BASE], not_run=[]))
    pages.update(root, drawing=False)
    page_text = texts(root)[1]
    assert "largest batch" not in page_text
    assert "| reason" not in page_text
    assert "Growth" not in page_text
    assert "\n\n\n" not in page_text


def test_tables_hold_all_figures(tmp_path: Path) -> None:
    kernels = [compiled_kernel(), compiled_kernel("normalize", note="a column of its own")]
    root = prepared(tmp_path, cpu=cpu_run(), kernels=compiled(*kernels))
    pages.update(root, drawing=False)
    results, found = (
        list(csv.DictReader((root / pages.RESULTS / f"{name}.csv").open(encoding="utf-8")))
        for name in ("cpu", "kernels")
    )
    assert len(results) == len(cpu_run().results)
    assert (results[0]["model"], results[0]["seconds"], results[0]["ratio"]) == ("reference", "6.0", "4.0")
    assert [one["note"] for one in found] == ["", "a column of its own"]
    assert found[0]["tensor_cores"] == "{'HGMMA': 24}"


@pytest.mark.parametrize("missing", [pages.START, pages.END], ids=["start", "end"])
def test_readme_without_markers_is_left_alone(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = prepared(tmp_path, cpu=cpu_run())
    path = root / pages.README
    text = path.read_text(encoding="utf-8").replace(missing, "")
    path.write_text(text, encoding="utf-8")
    assert pages.main(root) == 2
    assert "markers" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == text
    assert not (root / pages.PAGE).exists()


def test_pages_need_results_of_this_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = prepared(tmp_path)
    assert pages.main(root) == 2
    assert "found none" in capsys.readouterr().err
    write(root / pages.RESULTS, "sources.json", {"cpu.json": "0123"})
    assert pages.main(root) == 2
    assert "found none" in capsys.readouterr().err
    write(root / pages.RESULTS, "kernels.json", compiled(compiled_kernel()))
    assert pages.main(root) == 2
    assert "a run of the benchmarks" in capsys.readouterr().err
    write(root / pages.RESULTS, "cpu.json", OLD)
    assert pages.main(root) == 2
    assert "cpu.json" in capsys.readouterr().err
    assert "old table" in (root / pages.README).read_text(encoding="utf-8")


def test_pages_show_the_stored_results(tmp_path: Path) -> None:
    stored, made = pages.ROOT / pages.RESULTS, tmp_path / pages.RESULTS
    made.mkdir(parents=True)
    for file in stored.glob("*.json"):
        shutil.copy(file, made)
    shutil.copy(pages.ROOT / pages.README, tmp_path)
    pages.update(tmp_path, drawing=True)
    (tmp_path / pages.COUNTS).parent.mkdir()
    shutil.copy(pages.ROOT / pages.COUNTS, tmp_path / pages.COUNTS)
    pages.write_kernels(tmp_path)
    for name in (pages.README, pages.PAGE, pages.KERNELS):
        shown = (pages.ROOT / name).read_text(encoding="utf-8")
        assert (tmp_path / name).read_text(encoding="utf-8") == shown, "update it: python -m benchmarks.suite.pages"
    written, kept = ({file.name: file.read_bytes() for file in place.glob("*.csv")} for place in (made, stored))
    assert written == kept, "update the tables: python -m benchmarks.suite.pages"
    drawn, kept_charts = ({path.name: drawn_from(path) for path in place.glob("*.png")} for place in (made, stored))
    assert drawn == kept_charts, "update the charts: python -m benchmarks.suite.pages"
    assert all(drawn.values())
