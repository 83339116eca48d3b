"""A model's loss, accuracy, confusion matrix or average precision over a split, each clip counted once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from septr_fast.audio.channel_statistics import in_float64
from training.data.batches import EvaluationBatches
from training.data.samples import Samples
from training.learning.objective import Objective
from training.stopping import leave_signals_to_the_main_process


@dataclass(frozen=True)
class Evaluation:
    """What a model made of a split.

    Attributes:
        loss: mean over the clips.
        accuracy: share of clips with the right class; of several labels, with exactly the right ones.
        clips: number of clips that were classified.
        confusion: clips by true class (rows) and answer (columns); None of several labels.
        average_precision: of each class by scikit-learn, None for one without a clip; None where each clip has one.
        mean_average_precision: of the classes that have clips; None where there are none.
    """

    loss: float
    accuracy: float
    clips: int
    confusion: tuple[tuple[int, ...], ...] | None
    average_precision: tuple[float | None, ...] | None = None
    mean_average_precision: float | None = None


@torch.no_grad()
def evaluate(
    logits_of: Callable[[Tensor], Tensor],
    samples: Samples,
    front_end: nn.Module,
    accelerator: Accelerator,
    objective: Objective,
    *,
    batch: int,
    workers: int = 0,
) -> Evaluation:
    """Classify every clip of a split in one of the processes, and add up over them.

    Args:
        logits_of: spectrograms to logits `(clips, classes)`; all processes call it equally often.
        samples: of the split, without augmentation.
        front_end: waveforms to spectrograms.
        accelerator: of the run.
        objective: of the run, without smoothing.
        batch: most clips at a time in one process.
        workers: processes that read.

    Raises:
        RuntimeError: if no clip of the split can be read any more, or logits are not finite.
    """
    batches = EvaluationBatches(len(samples), batch, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    device, found = accelerator.device, []
    for items, real in zip(loader, batches.real(), strict=True):
        logits = logits_of(front_end(items["waveform"].to(device)))
        weights = (items["weight"] * real).to(device)
        found.append(torch.cat([logits, items["target"].to(logits), weights[:, None].to(logits)], dim=1))
    logits, targets, weights = accelerator.gather(torch.cat(found)).split([samples.classes, samples.classes, 1], dim=1)
    read = weights[:, 0] > 0
    clips = int(read.sum())
    if not clips:
        raise RuntimeError(f"samples: expected clips that can be read, got none of {len(samples)}")
    logits, targets = logits[read], targets[read]
    loss = in_float64(objective.losses(logits, targets)).mean().item()
    if not math.isfinite(loss):
        raise RuntimeError(f"loss: expected a finite number in evaluation, got {loss}; lower --learning-rate")
    accuracy = int(objective.right(logits, targets).sum()) / clips
    if objective.activation == "softmax":
        return Evaluation(loss, accuracy, clips, _confusion(logits, targets))
    return Evaluation(loss, accuracy, clips, None, *_precision(logits, targets))


def _confusion(logits: Tensor, targets: Tensor) -> tuple[tuple[int, ...], ...]:
    """How many clips of each class were taken for each."""
    classes = targets.shape[1]
    places = targets.argmax(dim=1) * classes + logits.argmax(dim=1)
    return tuple(map(tuple, torch.bincount(places, minlength=classes * classes).view(classes, classes).tolist()))


def _precision(logits: Tensor, targets: Tensor) -> tuple[tuple[float | None, ...], float | None]:
    """Average precision of each class, and its mean over those with clips."""
    from sklearn.metrics import average_precision_score

    each = tuple(
        float(average_precision_score(present, scores)) if present.any() else None
        for scores, present in zip(logits.T.cpu().numpy(), targets.T.cpu().numpy(), strict=True)
    )
    found = [value for value in each if value is not None]
    return each, sum(found) / len(found) if found else None
