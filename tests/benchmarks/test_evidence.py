"""Hashes of what stored results depend on: what changes them, what does not, and what they are compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.suite import evidence
from benchmarks.suite.evidence import ROOT, digest, out_of_date, sources

FILES = {
    "constraints.txt": "# of development\ntorch==9.9.0\ntriton==8.8.0\ntriton-tools==1.0\nnumpy==7.7.0\n",
    "septr_fast/__init__.py": """
        from septr_fast.audio.mel import Mel
        from septr_fast.model import SepTr as Net
        LIMIT = 3
        """,
    "septr_fast/model.py": """
        from septr_fast.algebra import plan
        class SepTr:
            def run(self):
                from septr_fast.kernels import mlp
                return mlp.SIZE
        """,
    "septr_fast/algebra/__init__.py": "",
    "septr_fast/algebra/plan.py": """
        import math
        import torch
        HALF = math.pi / 2
        """,
    "septr_fast/audio/__init__.py": "",
    "septr_fast/audio/mel.py": "class Mel: pass",
    "kernels/__init__.py": "",
    "kernels/mlp.py": """
        from . import tables
        from .launch import launch as start
        SIZE = 1
        """,
    "kernels/tables.py": "ROWS = [1, 2]",
    "kernels/launch.py": "def launch(): return 'a  b'",
    "benchmarks/suite/runner.py": '''
        """Runs."""
        from septr_fast import Net  # of the package
        def run(model):
            """Run."""
            if model:
                return {"a": 1, "b": "two words"}
        ''',
    "benchmarks/suite/limits.py": "from septr_fast import LIMIT",
    "benchmarks/suite/star.py": """
        from septr_fast.audio import *
        import septr_fast.algebra.plan as plan
        import nothing.here
        """,
    "benchmarks/measuring/roofline.py": "ROOF = 1",
    "benchmarks/measuring/forecasts.py": "import json",
    "benchmarks/results/cases.txt": "one",
    "examples/training/command.py": "import torch",
    "septr_fast/commands/kernels.py": "import json",
    "septr_fast/tuning/kernel_launches.py": "import json",
}
"""A project of the same folders."""
RUNNER = "benchmarks.suite.runner"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    for name in FILES:
        change(made, name)
    return made


def change(root: Path, name: str, old: str = "", new: str = "") -> None:
    """Write a file of `FILES`, with `new` for `old`."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = FILES[name].splitlines()
    dedented = "\n".join(line.removeprefix(" " * 8) for line in lines).strip() + "\n"
    assert old in dedented
    file.write_text(dedented.replace(old, new), encoding="utf-8")
    evidence._tree.cache_clear()
    evidence._code.cache_clear()


def names(root: Path, *modules: str) -> set[str]:
    return {file.relative_to(root).as_posix() for file in sources(modules, root)}


def test_imports_are_followed_wherever_they_stand(root: Path) -> None:
    assert names(root, RUNNER) == {
        "benchmarks/suite/runner.py",
        "septr_fast/model.py",
        "septr_fast/algebra/plan.py",
        "kernels/mlp.py",
        "kernels/tables.py",
        "kernels/launch.py",
    }


def test_a_name_of_the_package_itself_brings_all_that_it_imports(root: Path) -> None:
    everything = {f"septr_fast/{name}.py" for name in ("__init__", "model", "algebra/plan", "audio/mel")}
    kernels = {f"kernels/{name}.py" for name in ("mlp", "tables", "launch")}
    assert names(root, "benchmarks.suite.limits") == {"benchmarks/suite/limits.py", *everything, *kernels}


def test_other_forms_of_imports(root: Path) -> None:
    assert names(root, "benchmarks.suite.star") == {
        "benchmarks/suite/star.py",
        "septr_fast/audio/__init__.py",
        "septr_fast/algebra/plan.py",
    }


def test_names_passed_on_twice_are_followed_to_their_home(root: Path) -> None:
    (root / "septr_fast/audio/__init__.py").write_text("from .mel import Mel as Filters\n", encoding="utf-8")
    (root / "septr_fast/__init__.py").write_text("from septr_fast.audio import Filters as Net\n", encoding="utf-8")
    evidence._tree.cache_clear()
    assert names(root, RUNNER) == {"benchmarks/suite/runner.py", "septr_fast/audio/mel.py"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("benchmarks/suite/runner.py", "# of the package", "# another"),
        ("benchmarks/suite/runner.py", '"""Runs."""', '"""Runs, in other words."""'),
        ("benchmarks/suite/runner.py", '    """Run."""\n', ""),
        ("benchmarks/suite/runner.py", '{"a": 1, "b": "two words"}', "{\n    'a': 1,\n    'b': ('two ' 'words'),\n}"),
        ("septr_fast/algebra/plan.py", "HALF = math.pi / 2", 'HALF = (math.pi/2)\n"""Half a turn."""'),
        ("septr_fast/audio/mel.py", "pass", "SIZE = 1"),
        ("benchmarks/suite/limits.py", "LIMIT", "Mel"),
        ("septr_fast/__init__.py", "LIMIT = 3", "LIMIT = 4"),
        ("constraints.txt", "numpy==7.7.0", "numpy==7.7.1"),
        ("constraints.txt", "triton-tools==1.0", "triton-tools==1.1"),
        ("constraints.txt", "# of development", "# of tests"),
        ("benchmarks/results/cases.txt", "one", "two"),
    ],
)
def test_what_does_not_matter_changes_no_hash(name: str, old: str, new: str, root: Path) -> None:
    before = digest([RUNNER], root=root)
    change(root, name, old, new)
    assert digest([RUNNER], root=root) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("benchmarks/suite/runner.py", '"a": 1', '"a": 2'),
        ("benchmarks/suite/runner.py", "if model:", "if not model:"),
        ("septr_fast/model.py", "mlp.SIZE", "mlp.SIZE + 1"),
        ("septr_fast/algebra/plan.py", "/ 2", "/ 3"),
        ("kernels/mlp.py", "SIZE = 1", "SIZE = 1.0"),
        ("kernels/tables.py", "[1, 2]", "[1, 3]"),
        ("kernels/launch.py", "launch()", "launch(x)"),
        ("kernels/launch.py", "'a  b'", "'a b'"),
        ("septr_fast/__init__.py", "septr_fast.model import SepTr as", "septr_fast.audio.mel import Mel as"),
        ("constraints.txt", "torch==9.9.0", "torch==9.9.1"),
        ("constraints.txt", "triton==8.8.0", "triton==8.9.0"),
    ],
)
def test_what_matters_changes_the_hash(name: str, old: str, new: str, root: Path) -> None:
    before = digest([RUNNER], root=root)
    change(root, name, old, new)
    assert digest([RUNNER], root=root) != before
    change(root, name)
    assert digest([RUNNER], root=root) == before


def test_files_that_are_named_count(root: Path) -> None:
    file = root / "benchmarks/results/cases.txt"
    before = digest([RUNNER], [file], root)
    assert before != digest([RUNNER], root=root)
    assert before == digest([RUNNER, RUNNER], [file, file], root)
    change(root, "benchmarks/results/cases.txt", "one", "two")
    assert digest([RUNNER], [file], root) != before


def test_a_module_that_moves_changes_the_hash(root: Path) -> None:
    before = digest([RUNNER], root=root)
    (root / "septr_fast/algebra/plans.py").write_bytes((root / "septr_fast/algebra/plan.py").read_bytes())
    change(root, "septr_fast/model.py", "import plan", "import plans as plan")
    assert digest([RUNNER], root=root) != before


@pytest.mark.parametrize("module", ["benchmarks.nothing", "torch", "septr_fast.plan", ""])
def test_a_module_of_nowhere_is_an_error(module: str, root: Path) -> None:
    with pytest.raises(ValueError, match=f"modules: expected modules of this project, got {module}$"):
        digest([RUNNER, module], root=root)


def stored(root: Path, **runs: str) -> None:
    """Runs of the benchmarks, of sources by name, and no hash of any other file."""
    folder = root / "benchmarks/results"
    (folder / "sources.json").write_text("{}", encoding="utf-8")
    (folder / "check.json").write_text('{"stage": "check"}', encoding="utf-8")
    for name, found in runs.items():
        (folder / f"{name}.json").write_text(json.dumps({"stamp": {"sources": found}}), encoding="utf-8")


def test_results_of_other_sources_are_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(root, now=digest(evidence.MEASURED, root=root), before="0" * 16)
    kernels, forecast, training = sorted(evidence.STORED)
    before = "benchmarks/results/before.json"
    assert out_of_date(root) == sorted([before, kernels, forecast, training])
    assert evidence.main(["--made", kernels], root) == 0
    assert out_of_date(root) == sorted([before, forecast, training])
    assert evidence.main(["--made", training, kernels, forecast], root) == 0
    assert json.loads((root / evidence.HASHES).read_text(encoding="utf-8")).keys() == evidence.STORED.keys()
    assert out_of_date(root) == [before]
    assert capsys.readouterr().out == ""
    change(root, "septr_fast/commands/kernels.py", "import json", "import csv")
    assert evidence.main([], root) == 0
    assert capsys.readouterr().out == f"{before}\n{kernels}\n"


def test_only_results_without_a_hash_of_their_own_can_be_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(root)
    with pytest.raises(SystemExit):
        evidence.main(["--made", "benchmarks/results/cpu-all.json"], root)
    assert "invalid choice" in capsys.readouterr().err


def test_sources_here() -> None:
    found = names(ROOT, *evidence.MEASURED)
    for file in (
        "septr_fast/model.py",
        "septr_fast/algebra/low_rank.py",
        "kernels/mlp.py",
        "benchmarks/suite/cases.py",
    ):
        assert file in found
    assert not any(file.startswith(("septr_fast/commands", "septr_fast/adopt", "tests", "examples")) for file in found)
    assert "septr_fast/__init__.py" not in found
    for modules in evidence.STORED.values():
        assert {"septr_fast/model.py", "kernels/mlp.py"} <= names(ROOT, *modules)
    assert all(file.is_file() for file in sources([f"{name}" for name in ("septr_fast", "septr_fast.kernels")]))
    assert all((ROOT / file).is_file() for file in evidence.STORED)


def test_a_kernel_here_is_part_of_the_hash(tmp_path: Path) -> None:
    for folder in ("septr_fast", "kernels", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "out", "*.png"))
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    before = digest(evidence.MEASURED, root=tmp_path)
    assert before == digest(evidence.MEASURED)
    with (tmp_path / "kernels" / "mlp.py").open("a", encoding="utf-8") as file:
        file.write("# a remark\n")
    evidence._code.cache_clear()
    assert digest(evidence.MEASURED, root=tmp_path) == before
    with (tmp_path / "kernels" / "mlp.py").open("a", encoding="utf-8") as file:
        file.write("PLANTED = 1\n")
    evidence._code.cache_clear()
    assert digest(evidence.MEASURED, root=tmp_path) != before
