"""Transformers' common tests for models, of the installed version: `PYTHONPATH=tests python -m compat.own_tests`.

They come from its source distribution; its wheels have none. There are those alone that stand directly in `tests`;
of two others they inherit what concerns generation and exporters, in which this package's models take no part.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "transformers_tests"
"""What the tests are imported as."""
FILES = ("test_modeling_common.py", "test_feature_extraction_common.py")
ABSENT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}
"""Modules that those import and the distribution lacks, with nothing in them."""
ALSO = "parameterized"
"""A package that the tests import besides."""

_making = threading.Lock()


def folder(kept: Path, python: Path = Path(sys.executable)) -> Path:
    """Where `PACKAGE` can be imported from, for the Transformers of `python`; made below `kept` where it is not yet."""
    asked = [str(python), "-c", "import importlib.metadata as m; print(m.version('transformers'))"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    made = kept / f"transformers-{version}"
    with _making:
        if not (made / "made").exists():
            _make(made, python, version)
    return made


def _make(made: Path, python: Path, version: str) -> None:
    made.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "--quiet"]
    own = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", f"transformers=={version}"]
    subprocess.run([*pip, "download", *own, "--dest", str(made)], check=True)
    subprocess.run([*pip, "install", "--no-compile", "--target", str(made), ALSO], check=True)
    for name, text in {"__init__.py": "", **ABSENT}.items():
        file = made / PACKAGE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text, encoding="utf-8")
    with tarfile.open(made / f"transformers-{version}.tar.gz") as archive:
        for name in FILES:
            member = archive.extractfile(f"transformers-{version}/tests/{name}")
            assert member is not None
            (made / PACKAGE / name).write_bytes(member.read())
    (made / "made").touch()


def main() -> int:
    """Run those of `common_models`; pytest's exit status."""
    environment = {**os.environ, "PYTHONPATH": str(folder(ROOT / "build" / "compat"))}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", str(Path(__file__).with_name("common_models.py"))]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
