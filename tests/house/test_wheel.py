"""The wheel, built and installed into an environment of its own, imports and runs without the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from support.folding import SHIPPED
from trust.supply import packages

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")

import soundfile

from septr_fast import LogMel, SepTr, checkpoints
from septr_fast.algebra import plan
from septr_fast.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
PLAN = ["plan", "--input-size", "16", "24"]
PREDICT = ["predict", "clip.wav", "--checkpoint", "words.safetensors", "--device", "cpu"]
USE = """
import contextlib, io, json, runpy, sys
import septr_fast
import septr_fast.kernels

def started(run, name, *arguments):
    sys.argv, out = [name, *arguments], io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            run(name, run_name="__main__")
        except SystemExit as end:
            return [end.code, out.getvalue()]

script, commands = sys.argv[1], json.loads(sys.argv[2])
found = {
    "files": [septr_fast.__file__, septr_fast.kernels.__file__],
    "script": [started(runpy.run_path, script, *command) for command in commands],
    "module": started(runpy.run_module, "septr_fast", *commands[0]),
    "modules": [module.__file__ for name, module in sys.modules.items() if name.startswith("septr_fast")],
}
print(json.dumps(found))
"""


def environment(folder: Path) -> Path:
    """Python of a new environment with the wheel in it, and behind it the packages that are installed here."""
    packages.build(ROOT, folder)
    (wheel,) = (folder / "out").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--no-compile", str(wheel)], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_the_wheel_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    python, elsewhere = environment(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    front_end = LogMel(1000, 4, fft_size=64, hop=16, frames=6)
    model = SepTr(input_size=(4, 6), num_classes=2, depth=1, heads=2, mlp_dim=4, dim_head=4, dim=4)
    checkpoints.save(elsewhere / "words.safetensors", model, ["yes", "no"], front_end.settings)
    soundfile.write(elsewhere / "clip.wav", torch.arange(1000.0).sin().numpy(), 1000)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(plan, "OVERHEAD_FLOP", SHIPPED)
    script = python.with_name("septr-fast")
    assert script.read_text(encoding="utf-8").startswith(f"#!{python}\n")
    command = [str(python), "-c", USE, str(script), json.dumps([PLAN, PREDICT])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["files"]) == 2
    for file in [*found["files"], *found["modules"]]:
        assert Path(file).is_relative_to(tmp_path / "env"), file
    shown = []
    for arguments in (PLAN, PREDICT):
        assert main(arguments) == 0
        shown.append([0, capsys.readouterr().out])
    assert found["script"] == shown
    assert found["module"] == shown[0]
    assert "clip.wav" in shown[1][1]
