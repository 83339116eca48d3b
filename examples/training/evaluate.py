"""A model's loss, accuracy and confusion matrix over a split, each clip counted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from septr_fast.audio.channel_statistics import in_float64
from training.data.batches import EvaluationBatches
from training.data.samples import Samples
from training.stopping import leave_signals_to_the_main_process


@dataclass(frozen=True)
class Evaluation:
    """What a model made of a split.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of right answers.
        clips: number of clips that were classified.
        confusion: clips by true class (rows) and answer (columns).
    """

    loss: float
    accuracy: float
    clips: int
    confusion: tuple[tuple[int, ...], ...]


@torch.no_grad()
def evaluate(
    logits_of: Callable[[Tensor], Tensor],
    samples: Samples,
    front_end: nn.Module,
    accelerator: Accelerator,
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
    device, classes = accelerator.device, samples.classes
    loss = in_float64(torch.zeros((), device=device))
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    for items, real in zip(loader, batches.real(), strict=True):
        logits = logits_of(front_end(items["waveform"].to(device)))
        weights = (items["weight"] * real).to(device)
        labels = items["target"].to(device).argmax(dim=1)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss += in_float64(torch.where(weights > 0, losses, 0)).sum()
        confusion += torch.bincount((labels * classes + logits.argmax(dim=1))[weights > 0], minlength=len(confusion))
    loss, confusion = accelerator.reduce(loss), accelerator.reduce(confusion).view(classes, classes)
    clips = int(confusion.sum())
    if not clips:
        raise RuntimeError(f"samples: expected clips that can be read, got none of {len(samples)}")
    if not bool(loss.isfinite()):
        raise RuntimeError(f"loss: expected a finite number in evaluation, got {loss.item()}; lower --learning-rate")
    rows = tuple(tuple(row) for row in confusion.tolist())
    return Evaluation(loss.item() / clips, int(confusion.diagonal().sum()) / clips, clips, rows)
