"""Models trained side by side: every step has the same clips, augmented alike, in the same order for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from comparison.contestants import Contestant, parameter_groups
from septr_fast import progress
from septr_fast.audio import front_ends
from training.data.augmentation import apply_masks
from training.data.batches import TrainingBatches
from training.data.preparation import Preparation
from training.data.samples import Samples
from training.evaluate import evaluate
from training.learning.ema import Average
from training.learning.objective import Objective
from training.learning.schedule import learning_rate
from training.options import Options


@dataclass(frozen=True)
class Found:
    """How a trained model did.

    Attributes:
        model: its name.
        learning_rate: the highest of its schedule.
        seed: of its weights, the order of the clips and their augmentation.
        validation: share of clips with the right class.
        test: likewise, of clips that nothing was chosen by.
        validation_loss: mean over the clips.
    """

    model: str
    learning_rate: float
    seed: int
    validation: float
    test: float
    validation_loss: float


class Trainee:
    """A model, its optimizer and the average of its weights."""

    def __init__(
        self, contestant: Contestant, highest: float, seed: int, options: Options, classes: int, device: torch.device
    ) -> None:
        torch.manual_seed(seed)
        size = options.mels, options.frames
        self.name, self.highest, self.options = contestant.name, highest, options
        self.model: nn.Module = contestant.build(size, classes).to(device).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, options.weight_decay), lr=highest)
        self.average = Average(self.model, options.ema)

    def step(self, spectrograms: Tensor, targets: Tensor, step: int, steps: int) -> None:
        """One step on `(clips, 1, mels, frames)` and `(clips, classes)`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, self.highest, self.options.warm_up)
        loss = Objective("softmax", self.options.label_smoothing).losses(self.model(spectrograms), targets).mean()
        loss.backward()
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(step)


def train(
    entrants: Sequence[tuple[Contestant, float]],
    seed: int,
    options: Options,
    preparation: Preparation,
    accelerator: Accelerator,
) -> list[Found]:
    """Train contestants, each with a highest learning rate, for all epochs, and evaluate the averages of their weights.

    Args:
        entrants: the models.
        seed: of everything random.
        options: of data, front-end, augmentation and training.
        preparation: the clips by split.
        accelerator: the device; of one process.

    Raises:
        RuntimeError: for a model whose loss is not finite in the end.
    """
    device, classes = accelerator.device, len(preparation.data.classes)
    front_end = front_ends.build(preparation.front_end).to(device)
    trainees = [Trainee(one, highest, seed, options, classes, device) for one, highest in entrants]
    batches = TrainingBatches(len(preparation.data.splits["train"]), options.batch, seed)
    steps = batches.steps * options.epochs
    with progress.start(steps * options.batch, "clips", f"seed {seed}") as bar:
        for step, (spectrograms, targets) in enumerate(
            _batches(seed, options, preparation, front_end, batches, device)
        ):
            for trainee in trainees:
                trainee.step(spectrograms, targets, step, steps)
            bar.advance(options.batch)
    return [_evaluated(trainee, seed, preparation, front_end, accelerator) for trainee in trainees]


def _batches(
    seed: int,
    options: Options,
    preparation: Preparation,
    front_end: nn.Module,
    batches: TrainingBatches,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Spectrograms and targets of all steps of a run."""
    clips, classes = preparation.data.splits["train"], len(preparation.data.classes)
    samples = Samples(clips, classes, options.rate, options.seconds, options.augmentation(), seed)
    loader = DataLoader(samples, batch_sampler=batches, num_workers=options.workers)
    for epoch in range(options.epochs):
        samples.set_epoch(epoch)
        batches.go_to(epoch, 0)
        for items in loader:
            spectrograms = front_end(items["waveform"].to(device))
            yield apply_masks(spectrograms, items["masks"].to(device)), items["target"].to(device)


def _evaluated(
    trainee: Trainee, seed: int, preparation: Preparation, front_end: nn.Module, accelerator: Accelerator
) -> Found:
    options, found = trainee.options, {}
    with trainee.average.in_place(), torch.no_grad():
        trainee.model.eval()
        for split in ("validation", "test"):
            clips, classes = preparation.data.splits[split], len(preparation.data.classes)
            samples = Samples(clips, classes, options.rate, options.seconds, None, seed)
            found[split] = evaluate(
                trainee.model, samples, front_end, accelerator, Objective("softmax"), batch=options.batch
            )
    return Found(
        trainee.name,
        trainee.highest,
        seed,
        found["validation"].accuracy,
        found["test"].accuracy,
        found["validation"].loss,
    )
