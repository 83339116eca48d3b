"""The saved state of a run: whole or not at all, and readable by any number of processes.

A state is a folder named by its place in the run, `state-<epoch>-<step>`. It is written under another name, brought to
the disk and then renamed, and only then is the one before it deleted; whenever a run is killed, a complete state
stays. Tensors are in the format of `torch.distributed.checkpoint`, everything else in `progress.json`. Processes on
several machines need a common file system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from training.learning.learner import Learner

_NAME = re.compile(r"state-(\d{6})-(\d{8})")
_UNFINISHED = "state-unfinished"
_DOOMED = "-deleted"
_PROGRESS = "progress.json"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: that it is in, counted from 0.
        step: steps done in this epoch.
        epoch_seconds: that the steps of this epoch took, reading included.
        seconds: of training, evaluation and saving since the run began, stops left out.
    """

    epoch: int = 0
    step: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0


def save(folder: Path, progress: Progress, learners: Sequence[Learner], accelerator: Accelerator) -> None:
    """Write the state into `folder`, in the place of the one before; all processes call it at the same step."""
    target = folder / f"state-{progress.epoch:06}-{progress.step:08}"
    unfinished = folder / _UNFINISHED
    sums = [accelerator.reduce(learner.sums).tolist() for learner in learners]
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _quiet():
        state_dict_saver.save(_tensors(learners), checkpoint_id=unfinished, no_dist=accelerator.num_processes == 1)
    if accelerator.is_main_process:
        content = {
            "progress": vars(progress),
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
            "learners": {
                learner.name: {
                    "history": learner.history,
                    "best": learner.best,
                    "stale": learner.stale,
                    "sums": own,
                    "step_seconds": learner.step_seconds,
                }
                for learner, own in zip(learners, sums, strict=True)
            },
        }
        (unfinished / _PROGRESS).write_text(json.dumps(content), encoding="utf-8")
        for path in (*unfinished.iterdir(), unfinished):
            _to_disk(path)
        _take_the_place(unfinished, target)
    accelerator.wait_for_everyone()


def load(folder: Path, learners: Sequence[Learner], accelerator: Accelerator) -> Progress:
    """Read the newest state in `folder` into the learners; the start of the run where there is none."""
    newest = max(_states(folder), default=None)
    if newest is None:
        return Progress()
    content = json.loads((newest / _PROGRESS).read_text(encoding="utf-8"))
    tensors = _tensors(learners)
    with _quiet():
        state_dict_loader.load(tensors, checkpoint_id=newest, no_dist=accelerator.num_processes == 1)
    for learner in learners:
        read = tensors[learner.name]
        set_state_dict(
            learner.module,
            learner.optimizer.optimizer,
            model_state_dict=read["model"],
            optim_state_dict=read["optimizer"],
        )
        about = content["learners"][learner.name]
        learner.history, learner.best, learner.stale = about["history"], about["best"], about["stale"]
        learner.step_seconds = about["step_seconds"]
        # The sum over the processes, in one of them.
        learner.sums.copy_(torch.tensor(about["sums"], dtype=torch.float64) * accelerator.is_main_process)
    if accelerator.scaler is not None and content["scaler"] is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    return Progress(**content["progress"])


def exists(folder: Path) -> bool:
    """Whether a state is saved in `folder`, which `load` would read."""
    return bool(_states(folder))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, whole or not at all."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")
    _to_disk(beside)
    beside.replace(path)
    _to_disk(path.parent)


def _tensors(learners: Sequence[Learner]) -> dict[str, dict[str, Any]]:
    """The present state of every learner by its name; of sharded ones the part of this process."""
    content = {}
    for learner in learners:
        model, optimizer = get_state_dict(learner.module, learner.optimizer.optimizer)
        average = {} if learner.average is None else learner.average.values
        content[learner.name] = {"model": model, "optimizer": optimizer, "average": average}
    return content


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("state-*") if _NAME.fullmatch(path.name))


def _take_the_place(unfinished: Path, target: Path) -> None:
    """Rename the complete `unfinished` to `target`, then delete the other states."""
    before = [state for state in _states(target.parent) if state != target]
    if target.exists():
        # The same place of the same run has the same content.
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(target)
    _to_disk(target.parent)
    for state in before:
        # Out of the list first, since deleting a folder is not one step.
        state.rename(state.with_name(f"{state.name}{_DOOMED}"))
    for doomed in target.parent.glob(f"state-*{_DOOMED}"):
        shutil.rmtree(doomed)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder, is on the disk; Windows has no such wait for folders."""
    if os.name == "nt" and path.is_dir():
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _quiet() -> warnings.catch_warnings:
    """Without the remark that a single process saves and loads alone, which is meant."""
    caught = warnings.catch_warnings()
    warnings.filterwarnings("ignore", message=".*single process.*")
    return caught
