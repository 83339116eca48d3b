"""What is in the wheel and in the source distribution, built from a copy into which foreign files were put."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "septr_fast", "kernels", "tests", "docs")
FOREIGN = (".env", "septr_fast/weights.pt", "septr_fast/notes.txt", "kernels/secret.key", "kernels/native.so", "id_rsa")
"""Files that lie about in working copies."""

WHEEL = re.compile(
    r"septr_fast/([a-z_]+/)*[a-z_]+\.py|septr_fast/(py\.typed|forecast/stub\.c)"
    r"|septr_fast-[0-9.]+\.dist-info/([a-z]+/)*[A-Za-z_.]+"
)
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "LICENSE"}
SDIST = re.compile(
    r"(septr_fast|kernels)/([a-z_]+/)*[a-z_]+\.py|septr_fast/(py\.typed|forecast/stub\.c)"
    r"|septr_fast\.egg-info/[A-Za-z_-]+(\.txt)?"
    r"|setup\.py|setup\.cfg|pyproject\.toml|README\.md|LICENSE|PKG-INFO"
)
BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"


def build(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Names in the wheel and in the source distribution of a copy of `root`, made in `folder`; no network is needed."""
    copy, out = folder / "copy", folder / "out"
    out.mkdir()
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "goldens")
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=ignored)
        elif (root / name).exists():
            shutil.copy2(root / name, copy / name)
    for name in FOREIGN:
        (copy / name).write_text("not for others")
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = [name for name in archive.namelist() if not name.endswith("/")]
    with tarfile.open(sdist) as archive:
        in_sdist = [member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()]
    return in_wheel, in_sdist


def unlisted(in_wheel: list[str], in_sdist: list[str]) -> list[str]:
    """Names that no rule lists, and rules without any file."""
    wrong = [f"wheel: {name}" for name in in_wheel if not _listed(WHEEL, name)]
    wrong += [f"sdist: {name}" for name in in_sdist if not _listed(SDIST, name)]
    for name in ("septr_fast/model.py", "septr_fast/kernels/mlp.py", "septr_fast/py.typed"):
        wrong += [] if name in in_wheel else [f"wheel: no {name}"]
    for name in ("septr_fast/model.py", "kernels/mlp.py", "setup.py", "LICENSE"):
        wrong += [] if name in in_sdist else [f"sdist: no {name}"]
    return wrong


def _listed(rule: re.Pattern[str], name: str) -> bool:
    if not rule.fullmatch(name):
        return False
    return ".dist-info/" not in name or Path(name).name in METADATA
