"""The kernel report: what it counts, what it objects to, and that the shipped kernels pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from septr_fast.kernels import launch
from septr_fast.kernels.launch import Config, Launch
from septr_fast.kernels.tables import TABLES
from trust import page, registry

from benchmarks.suite import evidence, shapes
from septr_fast.tuning.compiled import Compiled, Failed
from septr_fast.tuning.kernel_launches import MODELS
from septr_fast.tuning.kernel_report import Case, Entry, bytes_moved, programs_per_multiprocessor

ROOT = Path(__file__).resolve().parents[2]
NO_KERNELS = {"chunk", "attention_form"}
"""Rows of the tables that are no kernel's."""
STORED = ROOT / "benchmarks" / "results" / "kernels.json"
UPDATE = "python -m septr_fast kernels --arch 80 89 90 --dtype bfloat16 --json > benchmarks/results/kernels.json"
SHARED_ROWS = {"low_rank_bwd_class_key": "low_rank_bwd"}
"""Kernels that take the row of another, whose grid they share."""


def finding(**changes: Any) -> Compiled:
    """What is found in a kernel for sm_90 with nothing to object to."""
    found = {"registers": 128, "stack": 0, "spills": 0, "shared_memory": 65536, "tensor_memory": 0}
    return Compiled(**{**found, "tensor_cores": {"HGMMA": 16}, **changes})


def entry(compiled: Compiled | Failed, *, name: str = "axis", model: str = "default", padding: float = 1.0) -> Entry:
    x = torch.empty(4, dtype=torch.bfloat16, device="meta")
    described = Launch(name, None, 1, {"x_ptr": x}, Config({}, 8), 1000, int(1000 * padding))
    return Entry(Case(model, "bfloat16", 90), [described], compiled)


@pytest.mark.parametrize(
    ("found", "objection"),
    [
        pytest.param(entry(finding()), None, id="good"),
        pytest.param(entry(finding(spills=1)), "1 instructions spill", id="one spill"),
        pytest.param(entry(finding(stores_beside=9)), None, id="stores beside a product"),
        pytest.param(entry(finding(touched=2)), "2 instructions use registers of products", id="registers touched"),
        pytest.param(entry(finding(shared_memory=232448)), None, id="all shared memory"),
        pytest.param(entry(finding(shared_memory=232449)), "232449 bytes of shared memory", id="a byte too much"),
        pytest.param(entry(finding(tensor_memory=512)), None, id="all tensor memory"),
        pytest.param(entry(finding(tensor_memory=513)), "513 columns", id="a column too much"),
        pytest.param(entry(finding(tensor_cores={"HMMA": 9})), "HGMMA, got HMMA", id="old tensor cores"),
        pytest.param(entry(finding(tensor_cores={})), "HGMMA, got none", id="no tensor cores"),
        pytest.param(entry(finding(tensor_cores={"HMMA": 9}), name="class_query"), None, id="class token, old"),
        pytest.param(entry(finding(tensor_cores={}), name="class_query"), "got none", id="class token, none"),
        pytest.param(entry(finding(), padding=1.1), None, id="padded by a tenth"),
        pytest.param(entry(finding(), padding=1.11), "1.11 times", id="padded by more"),
        pytest.param(entry(finding(), padding=2, model="narrow"), None, id="padded, another model"),
        pytest.param(entry(finding(), padding=2, name="class_query"), None, id="padded, class token"),
        pytest.param(entry(Failed("no such thing")), "does not compile: no such thing", id="not compiled"),
    ],
)
def test_objections(found: Entry, objection: str | None) -> None:
    assert len(found.shortfalls) == (objection is not None)
    assert all(objection in shortfall for shortfall in found.shortfalls)


@pytest.mark.parametrize(
    ("arch", "warps", "changes", "programs"),
    [
        pytest.param(90, 8, {"registers": 255, "shared_memory": 0}, 1, id="registers"),
        pytest.param(80, 4, {"registers": 65, "shared_memory": 0}, 7, id="registers in units of 256"),
        pytest.param(90, 4, {"registers": 32, "shared_memory": 100 << 10}, 2, id="shared memory"),
        pytest.param(90, 4, {"registers": 32, "shared_memory": 232448}, 1, id="all shared memory"),
        pytest.param(89, 8, {"registers": 32, "shared_memory": 0}, 6, id="warps"),
        pytest.param(89, 1, {"registers": 32, "shared_memory": 0}, 24, id="programs"),
        pytest.param(100, 4, {"registers": 32, "shared_memory": 0, "tensor_memory": 256}, 2, id="tensor memory"),
    ],
)
def test_programs_per_multiprocessor(arch: int, warps: int, changes: dict[str, int], programs: int) -> None:
    assert programs_per_multiprocessor(arch, warps, finding(**changes)) == programs


def test_bytes_moved_counts_each_value_once() -> None:
    x = torch.empty(8, 16, dtype=torch.bfloat16, device="meta")
    arguments = {
        "x_ptr": x,
        "same_ptr": x.view(8, 16),
        "expanded_ptr": torch.empty(16, device="meta").expand(8, 16),
        "other_ptr": torch.empty_like(x),
        "none_ptr": None,
        "x_strides": x.stride(),
    }
    assert bytes_moved(Launch("copy", None, 1, arguments, Config({}))) == 2 * 8 * 16 * 2 + 16 * 4


@pytest.mark.parametrize(
    ("capability", "tables"), [(80, 80), (90, 90), (103, 100), (120, 120), (121, 120), (75, launch.UNKNOWN)]
)
def test_every_architecture_has_tables(capability: int, tables: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10))
    assert launch.architecture(torch.device("cuda", 0)) == tables
    with launch.record(capability):
        assert launch.architecture(torch.device("meta")) == tables
    assert launch.SHARED_MEMORY.get(capability, 1 << 30) >= launch.SHARED_MEMORY[tables]


@pytest.mark.parametrize(("capability", "most"), [(80, 2), (100, 1), (103, 1)])
@pytest.mark.parametrize("tuned", [(), TABLES], ids=["shipped", "tuned"])
def test_no_products_are_pipelined_where_that_goes_wrong(
    capability: int, most: int, tuned: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10))
    monkeypatch.setattr(launch, "_sources", [lambda device: tuned])
    monkeypatch.setattr(launch, "_tuned", {})
    device = torch.device("cuda", 0)
    found = [launch.choose(row.kernel, device, torch.bfloat16, row.width).stages for row in TABLES]
    assert max(found) == most
    exact = [launch.choose(row.kernel, device, torch.float32, row.width).stages for row in TABLES if row.itemsize == 4]
    assert max(exact) == 2, "IEEE float32 takes no tensor cores"


def test_narrow_model_is_that_of_the_benchmarks() -> None:
    assert MODELS["default"] == shapes.DEFAULT
    assert MODELS["head dim 64"] == shapes.IN_USE["ESC-50, narrow"]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `planted_kernels` prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        done = program(
            str(ROOT / "tests" / "support" / "runs" / "planted_kernels.py"), str(tmp_path_factory.mktemp("planted"))
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kind", "objections"),
    [
        ("spilling", {80: "spill registers", 90: "spill registers", 100: "spill registers"}),
        ("large", {80: "limit 166912", 90: "limit 232448", 100: "limit 232448"}),
        ("old tensor cores", {90: "expected tensor-core instructions HGMMA", 100: "instructions UTC*MMA, got HMMA"}),
        ("no tensor cores", {80: "HMMA, got none", 90: "HGMMA, got none", 100: "UTC*MMA, got none"}),
        ("padded", {80: "2.00 times", 90: "2.00 times", 100: "2.00 times"}),
        ("wrong", {80: "incompatible dimensions", 90: "incompatible dimensions", 100: "incompatible dimensions"}),
    ],
)
def test_planted_kernels_are_found(planted: dict[str, Any], kind: str, objections: dict[int, str]) -> None:
    report = planted["reports"][kind]
    assert report["status"] == 1
    for kernel in report["kernels"]:
        objection = objections.get(kernel["arch"])
        if objection is None:
            assert kernel["shortfalls"] == []
        else:
            assert any(objection in shortfall for shortfall in kernel["shortfalls"]), kernel
    assert all(shortfall in report["text"] for shortfall in report["shortfalls"])
    assert all(shortfall.startswith(report["kernels"][0]["kernel"]) for shortfall in report["shortfalls"])


def test_good_kernels_pass(planted: dict[str, Any]) -> None:
    report = planted["reports"]["good"]
    assert report["status"] == 0
    assert report["shortfalls"] == []
    found = {(kernel["kernel"], kernel["arch"]): set(kernel["tensor_cores"]) for kernel in report["kernels"]}
    assert found["good", 80] == {"HMMA"}
    assert found["good", 90] == {"HGMMA"}
    assert found["good", 100] == {"UTCHMMA"}
    assert all(kernel["registers"] > 7 for kernel in report["kernels"])


def test_a_report_on_nothing_fails(planted: dict[str, Any]) -> None:
    assert planted["reports"]["nothing"]["status"] == 1
    assert "no model launched a kernel" in planted["reports"]["nothing"]["text"]


def test_results_are_read_from_the_cache(planted: dict[str, Any]) -> None:
    assert {kernel["registers"] for kernel in planted["cached"]} == {7}


def test_launches_are_specialised_as_when_they_run(planted: dict[str, Any]) -> None:
    identities = planted["identities"]
    plain, odd = identities.pop("plain"), identities.pop("odd")
    assert identities.pop("another multiple of 16") == identities.pop("aligned view") == plain
    assert identities.pop("odd, another") == odd
    assert identities.pop("in words") == plain
    different = [plain, odd, *identities.values()]
    assert len(set(different)) == len(different)


def test_identity_knows_what_a_kernel_calls_and_the_numbers_that_it_takes(planted: dict[str, Any]) -> None:
    code = dict(text.split(" ", 1) for text in planted["code"])
    assert {"septr_fast.kernels.mlp.normal_tail", "septr_fast.kernels.rounding.dot"} < set(code)
    assert "('SQRT_HALF', 'constexpr[0.7071067811865476]')" in code["septr_fast.kernels.mlp.normal_distribution"]
    assert not any(" at 0x" in text for text in code.values()), "addresses differ from run to run"


@pytest.fixture(scope="module")
def unchanged(request: pytest.FixtureRequest) -> bool:
    """Whether the stored report was made of these sources; with `--long` that counts for nothing."""
    file = STORED.relative_to(ROOT).as_posix()
    return file not in evidence.out_of_date() and not request.config.getoption("--long")


@pytest.fixture(scope="module")
def shipped(request: pytest.FixtureRequest, unchanged: bool) -> dict[str, Any]:
    """The report on what is shipped: the stored one where nothing has changed, otherwise made with what it knows."""
    if unchanged:
        stored = json.loads(STORED.read_text(encoding="utf-8"))
        return {"status": int(bool(stored["shortfalls"])), **stored}
    options = ("--arch", "80", "89", "90", "--dtype", "bfloat16", "--json", "--known", str(STORED))
    cache = request.config.cache.mkdir("kernels")
    done = program("-m", "septr_fast", "kernels", *options, "--cache", str(cache))
    assert done.stdout, done.stderr
    return {"status": done.returncode, **json.loads(done.stdout)}


def test_shipped_kernels_fall_short_of_nothing(shipped: dict[str, Any]) -> None:
    assert shipped["shortfalls"] == []
    assert shipped["status"] == 0


def test_every_kernel_of_the_tables_is_in_the_report(shipped: dict[str, Any]) -> None:
    for arch in (80, 89, 90):
        names = {kernel["kernel"] for kernel in shipped["kernels"] if kernel["arch"] == arch}
        assert names > set(SHARED_ROWS)
        reported = {SHARED_ROWS.get(name, name) for name in names}
        tabled = {row.kernel.removesuffix("_direct") for row in TABLES if arch in row.archs}
        assert reported == tabled - NO_KERNELS
    assert {kernel["model"] for kernel in shipped["kernels"]} == set(MODELS)
    assert set(shipped["versions"]) == {"torch", "triton", "ptxas"}


def compilers(report: dict[str, Any]) -> dict[str, str]:
    """Versions of what decides the machine code for the architectures of the stored report."""
    versions = report["versions"]
    return {"triton": versions["triton"], **{arch: versions["ptxas"][arch] for arch in ("sm_80", "sm_89", "sm_90")}}


def test_stored_report_is_that_on_the_shipped_kernels(shipped: dict[str, Any], unchanged: bool) -> None:
    if unchanged:
        pytest.skip("made of these sources: --long")
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    if compilers(stored) != compilers(shipped):
        pytest.skip(f"{STORED.name} was compiled by {compilers(stored)}, here are {compilers(shipped)}")
    kernels = shipped["kernels"]
    changed = [kernel for kernel in kernels if kernel not in stored["kernels"]]
    changed += [kernel for kernel in stored["kernels"] if kernel not in kernels]
    names = dict.fromkeys(f"{kernel['kernel']} on sm_{kernel['arch']}, {kernel['model']}" for kernel in changed)
    assert not names, f"other than stored: {'; '.join(names)}; where this is meant, update the report: {UPDATE}"
    assert len(kernels) == len(stored["kernels"]), f"update the report: {UPDATE}"


def test_stored_report_is_what_compiling_gives(shipped: dict[str, Any], unchanged: bool, tmp_path: Path) -> None:
    """One kernel of each kind is compiled anew; the stored findings that `shipped` took may not hide anything."""
    if unchanged and registry.unchanged_since("compilation", page.stored()):
        pytest.skip("made of these sources, all of which make trust has compiled: --long")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        done = program(str(ROOT / "tests" / "support" / "runs" / "recompiled_kernels.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    reported = {kernel["identity"]: kernel for kernel in shipped["kernels"]}
    assert {reported[key]["kernel"] for key in found} == {kernel["kernel"] for kernel in shipped["kernels"]}
    for key, compiled in found.items():
        assert {name: reported[key][name] for name in compiled} == compiled, reported[key]["kernel"]
