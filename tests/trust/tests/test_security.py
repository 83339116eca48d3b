"""The rules hold, and each check finds what was planted for it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch
from trust.outcome import silent
from trust.parts import security
from trust.supply import packages, pins, source_rules

from septr_fast.passes import backend
from septr_fast.passes.folders import why_not_private
from septr_fast.passes.triton import tuned

CUDA = torch.device("cuda", 0)


def test_security() -> None:
    outcome = security.run(full=False, progress=silent)
    assert outcome.wrong == []
    assert outcome.tried >= 200


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec('x = 1')",
        "import os; os.system('ls')",
        "from os import popen as p; p('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "from subprocess import run; run('ls', shell=SHELL)",
        "import pickle; pickle.load(file)",
        "from pickle import loads; loads(b'')",
        "import torch; torch.load(file)",
        "import torch as t; t.load(file, weights_only=False)",
        "dcp.load(file, weights_only=flag)",
        "import numpy as np; np.load(file, allow_pickle=True)",
        "import urllib.request; urllib.request.urlopen(address)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "session.get(address, verify=False)",
    ],
)
def test_barred_calls_are_found(line: str) -> None:
    assert len(list(source_rules.breaches(f"x = 1\nif x:\n    {line}", "file.py"))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "import torch; torch.load(file, weights_only=True)",
        "import subprocess; subprocess.run(['ls'], shell=False)",
        "import numpy as np; np.load(file)",
        "re.compile(text)",
    ],
)
def test_harmless_calls_are_left_alone(line: str) -> None:
    assert list(source_rules.breaches(line, "file.py")) == []


def test_excuses_are_for_named_files_that_need_them() -> None:
    name = next(iter(security.JUSTIFIED))
    bad = "import pickle; pickle.loads(b'')"
    assert security.rules([(name, bad)]) == ([], {name: security.JUSTIFIED[name]})
    assert security.rules([(name, "x = 1")])[0] == [f"{name}: excused for nothing"]
    assert len(security.rules([("septr_fast/model.py", bad)])[0]) == 1


def test_unlisted_files_are_found() -> None:
    wheel, sdist = ["septr_fast/model.py"], ["setup.py"]
    wrong = packages.unlisted([*wheel, "septr_fast/weights.pt", "tests/test_x.py"], [*sdist, ".env", "kernels/x.key"])
    for name in ("wheel: septr_fast/weights.pt", "wheel: tests/test_x.py", "sdist: .env", "sdist: kernels/x.key"):
        assert name in wrong
    assert "wheel: no septr_fast/py.typed" in wrong


@pytest.mark.parametrize("attempt", ["connect", "pickle"])
def test_what_is_barred_ends_the_program(attempt: str, tmp_path: Path) -> None:
    (found,) = security.alone(tmp_path, attempt)
    assert "BarredError" in found
    assert {"connect": "socket.getaddrinfo", "pickle": "pickle.find_class"}[attempt] in found


posix = pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX's")


@posix
def test_folders_above_count_too(tmp_path: Path) -> None:
    inner = tmp_path / "open" / "inner" / "not there yet"
    inner.parent.mkdir(parents=True)
    assert why_not_private(inner) is None
    (tmp_path / "open").chmod(0o777)
    assert str(why_not_private(inner)) == f"others can write to {tmp_path / 'open'}; take that from them by chmod go-w"


@posix
def test_folders_of_other_users_are_not_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:
        pytest.skip("what belongs to root is trusted")
    assert "belongs to another user" in str(why_not_private(tmp_path))


@posix
@pytest.mark.parametrize("alone", [True, False], ids=["a group of one", "a group of several"])
def test_groups(alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    user = pwd.getpwuid(os.geteuid()).pw_name
    group = grp.struct_group((user, "x", os.getgid(), [user] if alone else [user, "somebody"]))
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    tmp_path.chmod(0o770)
    assert (why_not_private(tmp_path) is None) == alone


@posix
def test_an_open_cache_of_triton_is_refused_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(backend, "_why_no_triton", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    backend._why_not_cache.cache_clear()
    assert backend.why_not_triton("axis_pass", CUDA) is None
    tmp_path.chmod(0o777)
    backend._why_not_cache.cache_clear()
    with caplog.at_level(logging.WARNING, logger="septr_fast"):
        for _ in range(3):
            assert backend.choose("auto", "axis_pass", CUDA) == "torch"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text
    with pytest.raises(RuntimeError, match="may hold others' code: others can write to"):
        backend.choose("triton", "axis_pass", CUDA)
    backend._why_not_cache.cache_clear()


def test_where_triton_keeps_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert backend.triton_cache_folder() == Path.home() / ".triton" / "cache"
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert backend.triton_cache_folder() == tmp_path / ".triton" / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "own"))
    assert backend.triton_cache_folder() == tmp_path / "own"
    knobs = pytest.importorskip("triton").knobs
    assert Path(knobs.cache.dir) == backend.triton_cache_folder()


@posix
def test_open_tables_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend, "device_name", lambda _: "a GPU")
    monkeypatch.setattr(backend, "capability", lambda _: 90)
    row = {"kernel": "mlp_fwd", "itemsize": 2, "width": 256, "tiles": {"BLOCK_M": 32, "BLOCK_H": 128}}
    about = {**tuned.made_for("a GPU", 90), "interpreted": False}
    tuned.write(tuned.path("a GPU"), [{**row, "warps": 8, "stages": 1}], about)
    assert len(tuned.rows(CUDA)) == 1
    for place in (tuned.path("a GPU"), tuned.path("a GPU").parent):
        before = place.stat().st_mode
        place.chmod(before | 0o002)
        with caplog.at_level(logging.WARNING, logger="septr_fast"):
            assert tuned.rows(CUDA) == ()
        assert f"others can write to {place}" in caplog.text
        caplog.clear()
        place.chmod(before)


@pytest.mark.parametrize(
    ("answer", "errors", "said", "vulnerable"),
    [
        ("", "ERROR: no route to host\n", "not run: ERROR: no route to host", []),
        ("", "", "not run: no answer", []),
        ('{"dependencies": []}', "", "not run: no advisories to be had for any of 0 packages (none)", []),
        (
            '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}',
            "",
            "not run: no advisories to be had for any of 1 packages (not found)",
            [],
        ),
        (
            '{"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "local"}]}',
            "",
            "1 packages, 1 without advisories; vulnerable: 0",
            [],
        ),
        (
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}, {"id": "CVE-2"}]}]}',
            "",
            "1 packages, 0 without advisories; vulnerable: 1",
            ["a 1: CVE-1, CVE-2"],
        ),
    ],
    ids=["failed", "silent", "no packages", "nothing known", "sound", "vulnerable"],
)
def test_what_pip_audit_says(answer: str, errors: str, said: str, vulnerable: list[str]) -> None:
    assert security.audited(answer, errors) == (said, vulnerable)


def test_vulnerable_packages_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "audit", lambda: ("2 packages", ["a 1: CVE-1"]))
    for name in ("alone", "permissions"):
        monkeypatch.setattr(security, name, lambda *_: [])
    monkeypatch.setattr(packages, "build", lambda *_: ([], []))
    monkeypatch.setattr(packages, "unlisted", lambda *_: [])
    outcome = security.run(full=True, progress=silent)
    assert outcome.wrong == ["a 1: CVE-1"]
    assert outcome.figures["pip-audit"] == "2 packages"


@pytest.mark.parametrize("installed", [True, False])
def test_pip_audit_that_does_not_answer(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, security.AUDIT_SECONDS)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: installed or None)
    monkeypatch.setattr(subprocess, "run", never)
    said = "no answer in 120 seconds" if installed else "pip-audit is not installed"
    assert security.audit() == (f"not run: {said}", [])


def test_pip_audit_is_pinned() -> None:
    pinned = pins.read((security.ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert "pip-audit" in pinned
