"""Security: nothing runs code out of data, trusts others' folders, ships what nobody listed, or needs the network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from septr_fast.passes.folders import why_not_private
from trust.outcome import Outcome, Progress
from trust.supply import offline, packages, pins, source_rules

NAME = "security"
WHAT = (
    "Syntax trees of all sources for calls that run code or data; folders in every combination of permissions that "
    "caches may lie in; the files in wheel and source distribution; a whole use of the package with network, programs "
    "and pickles barred; versions and hashes of all packages for development, but for torch, whose version alone is "
    "pinned, and its nvidia-* and cuda-* packages, which follow from it; known vulnerabilities of what is installed, "
    "where pip-audit reaches its advisories."
)
CANNOT = (
    "What dependencies do with data; a dependency that was tampered with where it was built; other files than the "
    "published ones under torch's version, or those of its nvidia-* and cuda-* packages."
)

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("septr_fast", "kernels", "benchmarks", "examples", "tests")
JUSTIFIED = {
    "tests/adopt/test_former_names.py": "files of an earlier version, of the project's own making",
    "tests/algebra/test_folding.py": "copies of a model by pickle, of its own making",
    "tests/network/test_ecosystem.py": "copies of a model by pickle, of its own making",
    "tests/support/runs/training_runs.py": "a state that the test itself has saved",
    "tests/trust/life/model_life.py": "copies of a model by pickle, of its own making",
    "tests/trust/mutants/planting.py": "compiles functions of the project with a fault in them",
    "tests/trust/wrong/files.py": "writes an array of objects that must be refused",
    "tests/trust/supply/offline.py": "shows that a pickle would be seen",
}
"""Test files that break a rule, and why; no file that is shipped, and none of the benchmarks or examples, may."""

AUDIT_SECONDS = 120
"""After which pip-audit is ended; the services that it asks may not answer."""

MODES = {0o700: True, 0o755: True, 0o711: True, 0o777: False, 0o707: False, 0o702: False, 0o1777: False}
"""Permissions of a folder, and whether they keep others out."""


def run(full: bool, progress: Progress) -> Outcome:
    """All of it; pip-audit, which needs the network, in the full form alone."""
    files = list(source_rules.sources(ROOT, SOURCES))
    wrong, excused = rules(files)
    progress(len(files))
    wrong += pins.wrong(ROOT)
    pinned = pins.read((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    progress(len(pinned))
    with tempfile.TemporaryDirectory() as folder:
        found = permissions(Path(folder) / "permissions")
        wrong += found
        progress(2 * len(MODES))
        in_wheel, in_sdist = packages.build(ROOT, Path(folder))
        wrong += packages.unlisted(in_wheel, in_sdist)
        wrong += alone(Path(folder))
        progress(len(in_wheel) + len(in_sdist) + 1)
    said, vulnerable = audit() if full else ("not in the short form", [])
    wrong += vulnerable
    figures = {
        "source files without a call that is barred": len(files) - len(excused),
        "test files with one, for the reason given": excused,
        "folders of other permissions": 2 * len(MODES),
        "files in the wheel": len(in_wheel),
        "files in the source distribution": len(in_sdist),
        "events barred while the package is used": len(offline.BARRED | offline.BARRED_LATER),
        "packages for development, pinned by hash": len(pinned),
        "hashes of their files": sum(len(hashes) for versions in pinned.values() for hashes in versions.values()),
        "pip-audit": said,
    }
    tried = len(files) + len(pinned) + 2 * len(MODES) + len(in_wheel) + len(in_sdist) + 1
    return Outcome(tried, wrong, figures)


def rules(files: list[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
    """Breaches in sources `(name, text)`, and the files excused; an excuse that nobody needs is a breach."""
    wrong, excused = [], {}
    for name, text in files:
        found = list(source_rules.breaches(text, name))
        if found and name in JUSTIFIED:
            excused[name] = JUSTIFIED[name]
        else:
            wrong += found
    names = {name for name, _ in files}
    wrong += [f"{name}: excused for nothing" for name in JUSTIFIED if name in names and name not in excused]
    return wrong, excused


def permissions(folder: Path) -> list[str]:
    """Make folders and files of every mode; those that were judged wrongly."""
    folder.mkdir(mode=0o700)
    wrong = []
    for mode, private in MODES.items():
        place = folder / f"{mode:o}"
        place.mkdir()
        (place / "inner").mkdir()
        os.chmod(place / "inner", 0o700)
        os.chmod(place, mode)
        sticky_above = bool(mode & 0o1000)
        for path, expected in ((place, private), (place / "inner", private or sticky_above)):
            reason = why_not_private(path)
            if (reason is None) != expected:
                wrong.append(f"mode {mode:o}, {path.relative_to(folder)}: {reason}")
    return wrong


def alone(folder: Path, *attempt: str) -> list[str]:
    """Run `offline` in a process of its own; what it tried to do, or nothing."""
    command = [sys.executable, "-m", "trust.supply.offline", str(folder), *attempt]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return [] if done.returncode == 0 else [f"offline: {last[:300]}"]


def audit() -> tuple[str, list[str]]:
    """What pip-audit says of the packages that are installed here, or why it did not run, and what is vulnerable."""
    if importlib.util.find_spec("pip_audit") is None:
        return "not run: pip-audit is not installed", []
    command = [sys.executable, "-m", "pip_audit", "--local", "--timeout", "5", "--format", "json"]
    command += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=AUDIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not run: no answer in {AUDIT_SECONDS} seconds", []
    return audited(done.stdout, done.stderr)


def audited(answer: str, errors: str) -> tuple[str, list[str]]:
    """pip-audit's answer in one line, and the vulnerable packages; those that it knows nothing of are not audited.

    Args:
        answer: JSON, or nothing where it failed.
        errors: what it wrote beside.
    """
    try:
        packages = json.loads(answer)["dependencies"]
    except ValueError:
        return f"not run: {(errors.strip().splitlines() or ['no answer'])[-1]}", []
    unknown = [package["skip_reason"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return f"not run: no advisories to be had for any of {len(packages)} packages ({(unknown or ['none'])[0]})", []
    vulnerable = [
        f"{package['name']} {package['version']}: {', '.join(one['id'] for one in package['vulns'])}"
        for package in packages
        if package.get("vulns")
    ]
    known = f"{len(packages) - len(unknown)} packages, {len(unknown)} without advisories"
    return f"{known}; vulnerable: {len(vulnerable)}", vulnerable
