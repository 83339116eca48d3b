"""Train SepTr by PyTorch Lightning on folders of recordings, one for each class.

The best weights become a checkpoint of this package: `septr-fast predict clip.wav --checkpoint OUT/septr.safetensors`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from septr_fast import LogMel, SepTr, checkpoints
from septr_fast.audio.clips import find_clips, load_clip

FRONT_END = LogMel(16000, mels=64, hop=250, frames=64)


class Classifier(lightning.LightningModule):
    """Waveforms to classes."""

    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.front_end, self.model = (
            FRONT_END,
            SepTr(input_size=(64, 64), num_classes=len(classes), down_sample_input=4),
        )

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """The loss; it and the accuracy are logged."""
        logits = self.model(self.front_end(batch[0]))
        loss = torch.nn.functional.cross_entropy(logits, batch[1])
        accuracy = (logits.argmax(1) == batch[1]).float().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}, prog_bar=True, batch_size=len(logits))
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        return self.step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """What is logged of a batch."""
        self.step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, without decay of what is no weight of a product."""
        return torch.optim.AdamW(self.model.parameter_groups(weight_decay=0.05), lr=5e-4)


def read(file: Path, classes: list[str]) -> tuple[Tensor, int]:
    """A file's first second, and the number of its class."""
    waveform = load_clip(file, FRONT_END.sample_rate)[: FRONT_END.span]
    return torch.nn.functional.pad(waveform, (0, FRONT_END.span - len(waveform))), classes.index(file.parent.name)


def main() -> None:
    """Train on nine files of ten, test on the others after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with a folder for each class")
    parser.add_argument("--out", type=Path, default=Path("examples/out/lightning"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--precision", default="32-true", help="as Lightning calls it, such as bf16-mixed")
    given = parser.parse_args()
    files = find_clips(given.folder)
    classes = sorted({file.parent.name for file in files})
    clips = [read(file, classes) for file in files]
    train: Any = [clip for number, clip in enumerate(clips) if number % 10]
    test: Any = clips[::10]
    best = ModelCheckpoint(given.out, monitor="test_accuracy", mode="max")
    options: dict[str, Any] = {"max_epochs": given.epochs, "precision": given.precision, "default_root_dir": given.out}
    trainer = lightning.Trainer(callbacks=[best], logger=False, **options)
    trainer.fit(Classifier(classes), DataLoader(train, 32, shuffle=True), DataLoader(test, 32))
    tuned = Classifier.load_from_checkpoint(best.best_model_path, map_location="cpu", weights_only=True)
    checkpoints.save(given.out / "septr.safetensors", tuned.model, classes, FRONT_END.settings)
    sys.stdout.write(f"accuracy {best.best_model_score:.3f}\n")


if __name__ == "__main__":
    main()
