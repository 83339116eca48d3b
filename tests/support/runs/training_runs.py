"""Runs of the training script for the tests: tones to learn, runs in processes of their own, and their deaths."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import sys
import wave
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RATE = 4000
SAMPLES = 1000
HERTZ = {"low": 300, "middle": 700, "high": 1400}
CLIPS = {"train": 16, "validation": 4, "test": 4}
STEPS = 6
"""Steps of an epoch of these clips with the options below."""

_PATIENCE = 120
_context = multiprocessing.get_context("forkserver")
# What takes seconds to import is imported once.
_context.set_forkserver_preload(
    [
        "accelerate",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "matplotlib.figure",
        "soundfile",
        "septr_fast",
        "training.command",
        "training.learning.learner",
        "training.results",
    ]
)


def write_tones(folder: Path) -> Path:
    """Sine tones of three classes, one of them for each pitch, in folders by split and class; and a broken file."""
    numbers = np.random.default_rng(0)
    for split, clips in CLIPS.items():
        for name, hertz in HERTZ.items():
            (folder / split / name).mkdir(parents=True)
            for clip in range(clips):
                times = np.arange(SAMPLES) / RATE
                pitch, phase = hertz * numbers.uniform(0.9, 1.1), numbers.uniform(0, math.tau)
                samples = 8000 * np.sin(math.tau * pitch * times + phase) + numbers.normal(0, 100, SAMPLES)
                with wave.open(str(folder / split / name / f"{clip}.wav"), "wb") as file:
                    file.setparams((1, 2, RATE, SAMPLES, "NONE", "not compressed"))
                    file.writeframes(samples.astype("<i2").tobytes())
    (folder / "train" / "low" / "broken.wav").write_bytes(b"RIFF")
    return folder


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    """The command line of a tiny run."""
    values = {
        "data": data,
        "out": out,
        "rate": RATE,
        "seconds": SAMPLES / RATE,
        "mels": 8,
        "frames": 8,
        "depth": 1,
        "dim": 32,
        "heads": 2,
        "dim-head": 8,
        "mlp-dim": 16,
        "batch": 8,
        "epochs": 4,
        "learning-rate": 1e-2,
        "dropout": 0.1,
        "time-shift": 0.01,
        "mixup": 0.2,
        "frequency-width": 1,
        "time-width": 2,
        "ema": 0.9,
        "save-every": 4,
    }
    listed = [str(part) for name, value in values.items() for part in (f"--{name}", value)]
    return [*listed, "--pool", "1", "2", "--cpu", *map(str, more)]


def run(command: Sequence[str], fault: tuple[str, int] | None = None, processes: int = 1, draws: bool = False) -> int:
    """Run the training script in as many processes; returns the exit status of the first.

    Args:
        command: its command line.
        fault: what befalls it, see `_befall`.
        processes: that share the work.
        draws: whether figures are drawn, which takes longer than all the rest.
    """
    return call(_train, processes, list(command), fault, draws)[0]


def call(function: Any, processes: int, *parameters: Any) -> list[int]:
    """Call `function(*parameters)` in processes of a common group; returns their exit statuses."""
    port = _free_port()
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        place = place if processes > 1 else {}
        process = _context.Process(target=_in_place, args=(place, function, parameters))
        process.start()
        started.append(process)
    return [_status(process) for process in started]


def weights(out: Path) -> dict[str, Tensor]:
    """Everything that is a tensor in the newest state of a run, by its name; as saved, whatever the processes."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    (state,) = states(out)
    dcp_to_torch_save(state, out / "state.pt")
    return _tensors(torch.load(out / "state.pt", weights_only=False))


def states(out: Path) -> list[Path]:
    return sorted(out.glob("state-0*"))


def _tensors(content: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= _tensors(value, f"{prefix}{name}/")
        elif isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
    return found


def _in_place(place: dict[str, int], function: Any, parameters: Sequence[Any]) -> None:
    os.environ.update({name: str(value) for name, value in place.items()})
    if place:
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    # As in a process that was started by hand, for the readers of its data.
    multiprocessing.set_start_method("fork", force=True)
    sys.exit(function(*parameters))


def _train(command: list[str], fault: tuple[str, int] | None, draws: bool) -> int:
    if not draws:
        from training import results

        results._draw = lambda *_: None  # type: ignore[assignment]
    if fault is not None:
        _befall(*fault)
    from training.command import main

    return main(command)


def _befall(what: str, when: int) -> None:
    """Let something happen to the run of this process.

    "kill", "terminate", "interrupt" or "raise" in the step `when` of this process, counted from 1; "kill writing",
    "kill renaming" or "kill deleting" while the state number `when` is written, between the parts of which it
    consists, before the old one is deleted, or in the midst of deleting it.
    """
    from training import state
    from training.learning import learner

    steps, writes = 0, 0

    def counted_step(self: Any, *values: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == when and what == "raise":
            raise RuntimeError("what befalls the test's run")
        if steps == when and what in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[what])
        step(self, *values)

    def half_written(*values: Any, **options: Any) -> Any:
        nonlocal writes
        writes += 1
        result = save(*values, **options)
        if writes == when and what == "kill writing":
            (Path(options["checkpoint_id"]) / ".metadata").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def half_deleted(path: Path, *values: Any, **options: Any) -> None:
        if writes == when and what == "kill deleting" and Path(path).name.endswith("-deleted"):
            next(Path(path).glob("*.distcp")).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        delete(path, *values, **options)

    def half_renamed(self: Path, target: Path) -> Path:
        if writes == when and what == "kill renaming" and target.name.endswith("-deleted"):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    step, save, delete, rename = learner.Learner.step, state.state_dict_saver.save, state.shutil.rmtree, Path.rename
    learner.Learner.step = counted_step  # type: ignore[method-assign]
    state.state_dict_saver.save = half_written
    state.shutil.rmtree = half_deleted  # type: ignore[assignment]
    Path.rename = half_renamed  # type: ignore[method-assign,assignment]


_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}


def _status(process: BaseProcess) -> int:
    process.join(_PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"a run did not end within {_PATIENCE} seconds")
    return process.exitcode


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
