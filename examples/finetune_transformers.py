"""Fine-tune SepTr by Transformers' `Trainer` on folders of recordings; `pipeline(…, model=OUT)` answers afterwards."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from septr_fast.audio.clips import find_clips, load_clip
from septr_fast.transformers import SepTrConfig, SepTrFeatureExtractor, SepTrForAudioClassification


class Clips(torch.utils.data.Dataset[dict[str, Any]]):
    """Spectrograms and labels of files."""

    def __init__(self, files: list[Path], labels: dict[str, int], extractor: SepTrFeatureExtractor) -> None:
        self.files, self.labels, self.extractor = files, labels, extractor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        waveform = load_clip(self.files[index], self.extractor.sampling_rate).numpy()
        spectrogram = {name: x[0] for name, x in self.extractor(waveform, return_tensors="pt").items()}
        return {**spectrogram, "labels": self.labels[self.files[index].parent.name]}


def main() -> None:
    """Train on nine files of ten, and say how many of the others are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with a folder for each class")
    parser.add_argument("--model", help="folder of a trained model, whose head is replaced; a new model without")
    for option, kind, default in (("--out", str, "examples/out/tuned"), ("--epochs", float, 5)):
        parser.add_argument(option, type=kind, default=default)
    given = parser.parse_args()
    files = find_clips(given.folder)
    labels = {name: number for number, name in enumerate(sorted({file.parent.name for file in files}))}
    names: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": labels}
    if given.model:
        extractor = SepTrFeatureExtractor.from_pretrained(given.model)
        model = SepTrForAudioClassification.from_pretrained(given.model, ignore_mismatched_sizes=True, **names)
    else:
        extractor = SepTrFeatureExtractor()
        model = SepTrForAudioClassification(SepTrConfig(down_sample_input=4, **names))
    parts = ([file for n, file in enumerate(files) if (n % 10 == 0) is held] for held in (False, True))
    train, test = (Clips(part, labels, extractor) for part in parts)
    options = TrainingArguments(given.out, num_train_epochs=given.epochs, eval_strategy="epoch", report_to=[])
    trainer = Trainer(model, options, train_dataset=train, eval_dataset=test)
    trainer.compute_metrics = lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()}
    trainer.train()
    for one in (model, extractor):
        one.save_pretrained(given.out)
    sys.stdout.write(f"{trainer.evaluate()}\n")


if __name__ == "__main__":
    main()
