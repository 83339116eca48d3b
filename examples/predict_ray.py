"""Classify any number of audio files on a cluster by Ray Data, and write lines of JSON.

On one machine, or several GPUs of one, `septr-fast predict FOLDER --json-lines OUT` needs nothing besides.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from septr_fast import checkpoints
from septr_fast.inference.many import audio_files
from septr_fast.inference.prediction import Prediction, classify


class Classifier:
    """A checkpoint, loaded once by each worker."""

    def __init__(self, checkpoint: str) -> None:
        self.bundle = checkpoints.load(Path(checkpoint), "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The best class of each file, its probability, and why a file was skipped."""
        results = {str(one.path): one for one in classify(self.bundle, map(Path, rows["file"]), batch=64)}
        best = [self._best(results[name]) for name in rows["file"]]
        return {"file": rows["file"], **{name: np.array([one[name] for one in best]) for name in best[0]}}

    def _best(self, result: Any) -> dict[str, Any]:
        if not isinstance(result, Prediction):
            return {"class": "", "probability": 0.0, "skipped": result.reason}
        number = int(result.probabilities.argmax())
        probability = float(result.probabilities[number])
        return {"class": self.bundle.classes[number], "probability": probability, "skipped": ""}


def main() -> None:
    """Every worker takes batches of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="on a file system that all workers see")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of a worker")
    given = parser.parse_args()
    files = ray.data.from_items([{"file": str(path.absolute())} for path in audio_files(given.folders)])
    options: dict[str, Any] = {"concurrency": given.workers, "num_gpus": given.gpus, "batch_size": 256}
    found = files.map_batches(Classifier, fn_constructor_args=(str(given.checkpoint.absolute()),), **options)
    found.write_json(str(given.out.absolute()))


if __name__ == "__main__":
    main()
