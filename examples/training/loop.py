"""The epochs of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader

from septr_fast import progress
from septr_fast.adopt import checkpoints
from septr_fast.audio import front_ends
from training import state
from training.data.augmentation import apply_masks
from training.data.batches import TrainingBatches, derived_seed
from training.data.preparation import Preparation
from training.data.samples import Sample, Samples
from training.evaluate import Evaluation, evaluate
from training.learning.learner import Learner, Share, build
from training.learning.objective import Objective
from training.learning.schedule import learning_rate
from training.options import Options
from training.stopping import Stop, leave_signals_to_the_main_process

_STEPS_PER_REPORT = 10

_logger = logging.getLogger(__name__)


class Run:
    """Everything of a run in one process.

    Args:
        options: of the run.
        preparation: its data and statistics.
        accelerator: its processes and device.

    Raises:
        ValueError: for a batch that the clips do not fill.
    """

    def __init__(self, options: Options, preparation: Preparation, accelerator: Accelerator) -> None:
        self.options, self.accelerator = options, accelerator
        self.classes, self.arguments = preparation.data.classes, preparation.model
        self.objective = Objective(preparation.activation, options.label_smoothing)
        self.front_end = front_ends.build(preparation.front_end).to(accelerator.device)
        self.samples = {
            split: Samples(
                clips,
                len(self.classes),
                options.rate,
                options.seconds,
                options.augmentation() if split == "train" else None,
                options.seed,
            )
            for split, clips in preparation.data.splits.items()
            if clips
        }
        process, processes = accelerator.process_index, accelerator.num_processes
        clips = len(self.samples["train"])
        self.batches = TrainingBatches(clips, options.batch, options.seed, process, processes)
        self.loader: DataLoader[Sample] = DataLoader(
            self.samples["train"],
            batch_sampler=self.batches,
            num_workers=options.workers,
            worker_init_fn=leave_signals_to_the_main_process,
            persistent_workers=options.workers > 0,
            pin_memory=accelerator.device.type == "cuda",
        )
        starts = not state.exists(options.out)
        self.learners = [
            Learner(name, options, self.arguments, self.classes, self.objective, accelerator, starts)
            for name in options.models
        ]
        self.progress = state.load(options.out, self.learners, accelerator)
        self._began = time.perf_counter() - self.progress.seconds

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left, or no learner's patience."""
        exhausted = all(learner.is_exhausted for learner in self.learners)
        return self.progress.epoch >= self.options.epochs or exhausted

    def train(self, stop: Stop) -> bool:
        """Train until the end or until `stop` asks for it; then the state is saved. Returns whether it is the end."""
        if self.progress.epoch or self.progress.step:
            _logger.info("going on in epoch %d behind step %d", self.progress.epoch + 1, self.progress.step)
        while not self.is_done:
            if self._steps(stop):
                self.save()
                return False
            self._end_epoch()
            self.save()
        return True

    def save(self) -> None:
        """Write the state of the run."""
        self.progress.seconds = time.perf_counter() - self._began
        state.save(self.options.out, self.progress, self.learners, self.accelerator)

    def test(self, learner: Learner) -> Evaluation | None:
        """How the best weights of `learner` do on the test split; None where there is none."""
        if "test" not in self.samples:
            return None
        best = checkpoints.load(self.options.out / f"{learner.name}.safetensors")
        model = build(learner.name, self.arguments, self.options.seed)
        model.load_state_dict(best.model.state_dict())
        model.to(self.accelerator.device).eval()

        def logits_of(spectrograms: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                logits: torch.Tensor = model(spectrograms)
            return logits.float()

        return self._evaluation("test", logits_of)

    def _steps(self, stop: Stop) -> bool:
        """The rest of an epoch's steps; returns whether it was asked to stop before the end of the run."""
        progress, options = self.progress, self.options
        self.samples["train"].set_epoch(progress.epoch)
        self.batches.go_to(progress.epoch, progress.step)
        with self._bar() as bar:
            began = time.perf_counter()
            for items in self.loader:
                share, asked = self._share(items, stop)
                self._step(share)
                progress.step += 1
                ended = time.perf_counter()
                progress.epoch_seconds += ended - began
                began = ended
                self._report(bar)
                if asked:
                    return True
                between = options.save_every and progress.step % options.save_every == 0
                if between and progress.step < self.batches.steps:
                    self.save()
                    began = time.perf_counter()
        return False

    def _share(self, items: Sample, stop: Stop) -> tuple[Share, bool]:
        """What this process has of a batch, on its device, and whether any process was asked to stop."""
        device = self.accelerator.device
        weights = items["weight"].to(device, non_blocking=True)
        asked = weights.new_tensor(float(stop.signal is not None))
        total, stops = self.accelerator.reduce(torch.stack([weights.sum(), asked]))
        waveforms = items["waveform"].to(device, non_blocking=True)
        spectrograms = apply_masks(self.front_end(waveforms), items["masks"].to(device, non_blocking=True))
        share = Share(spectrograms, items["target"].to(device, non_blocking=True), weights, total)
        return share, bool(stops)

    def _step(self, share: Share) -> None:
        """The same step of every learner, one after the other; timed where there are several."""
        options = self.options
        steps = self.batches.steps * options.epochs
        step = self.progress.epoch * self.batches.steps + self.progress.step
        rate = learning_rate(step, steps, options.learning_rate, options.warm_up)
        for learner in self.learners:
            torch.manual_seed(derived_seed("step", options.seed, step, self.accelerator.process_index))
            began = self._clock()
            learner.step(share, step, rate)
            if options.compare:
                learner.step_seconds.append(self._clock() - began)

    def _clock(self) -> float:
        """Seconds, with all work done that was given to a device if steps are timed."""
        if self.options.compare and self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _end_epoch(self) -> None:
        """Evaluate, keep what is best, and go to the next epoch."""
        for learner in self.learners:
            entry = self._entry(learner)
            with learner.evaluated():
                if "validation" in self.samples:
                    found = self._evaluation("validation", learner.logits)
                    entry |= {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
                    if found.mean_average_precision is not None:
                        entry["validation_mean_average_precision"] = found.mean_average_precision
                self._keep_best(learner, entry)
            learner.sums.zero_()
            shown = ", ".join(f"{name} {value:.4g}" for name, value in entry.items() if name != "epoch")
            _logger.info("%s, epoch %d: %s", learner.name, entry["epoch"], shown)
        self.progress.epoch += 1
        self.progress.step, self.progress.epoch_seconds = 0, 0.0

    def _entry(self, learner: Learner) -> dict[str, Any]:
        """What the history says of an epoch's training."""
        loss, right, clips = self.accelerator.reduce(learner.sums).tolist()
        seconds = self.progress.epoch_seconds
        if self.options.compare:
            # Those of this model alone, without reading.
            seconds = sum(learner.step_seconds[-self.batches.steps :])
        if not abs(loss) < float("inf"):
            raise RuntimeError(
                f"loss: expected a finite number in epoch {self.progress.epoch + 1} of {learner.name}, got {loss}; "
                f"lower --learning-rate, now {self.options.learning_rate}"
            )
        return {
            "epoch": self.progress.epoch + 1,
            "train_loss": loss / max(clips, 1),
            "train_accuracy": right / max(clips, 1),
            "learning_rate": learner.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "samples_per_second": clips / max(seconds, 1e-9),
        }

    def _keep_best(self, learner: Learner, entry: dict[str, Any]) -> None:
        """Add `entry` to the history; if it is the best, write the weights that were evaluated as a checkpoint."""
        learner.history.append(entry)
        learner.stale += 1
        if learner.best is not None and _merit(entry) <= _merit(learner.best):
            return
        learner.best, learner.stale = entry, 0
        # Sharded weights are put together, which takes all processes.
        weights = get_model_state_dict(learner.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.accelerator.is_main_process:
            model = build(learner.name, self.arguments, self.options.seed)
            model.load_state_dict(weights)
            path = self.options.out / f"{learner.name}.safetensors"
            checkpoints.save(path, model, self.classes, self.front_end.settings, self.objective.activation)

    def _evaluation(self, split: str, logits_of: Any) -> Evaluation:
        return evaluate(
            logits_of,
            self.samples[split],
            self.front_end,
            self.accelerator,
            Objective(self.objective.activation),
            batch=self.options.batch,
            workers=self.options.workers,
        )

    def _bar(self) -> progress.Progress:
        """What shows how far an epoch is, in clips."""
        batch = self.options.batch
        return progress.start(
            self.batches.steps * batch,
            "clips",
            f"epoch {self.progress.epoch + 1}/{self.options.epochs}",
            done=self.progress.step * batch,
            shown=self.accelerator.is_main_process,
        )

    def _report(self, bar: progress.Progress) -> None:
        """Loss and accuracy of the epoch so far, now and then, since a device has to be waited for."""
        due = not self.progress.step % _STEPS_PER_REPORT or self.progress.step >= self.batches.steps
        if bar.shown and due:
            bar.say(", ".join(f"{name} {value}" for name, value in _shown(self.learners).items()))
        bar.advance(self.options.batch)


def _shown(learners: Sequence[Learner]) -> dict[str, str]:
    shown = {}
    for learner in learners:
        loss, right, clips = learner.sums.tolist()
        name = f"{learner.name} " if len(learners) > 1 else ""
        shown[f"{name}loss"] = f"{loss / max(clips, 1):.3f}"
        shown[f"{name}accuracy"] = f"{right / max(clips, 1):.1%}"
    return shown


def _merit(entry: dict[str, Any]) -> float:
    """What makes an epoch better: average precision or a lower loss in validation; without, that it is later."""
    if "validation_mean_average_precision" in entry:
        return float(entry["validation_mean_average_precision"])
    return -entry["validation_loss"] if "validation_loss" in entry else float(entry["epoch"])
