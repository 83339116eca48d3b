"""`septr-fast predict`: the classes of audio files from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from septr_fast.adopt import checkpoints
from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio.clips import import_soundfile
from septr_fast.commands.options import count, duration, shown, usable_device
from septr_fast.inference.prediction import Prediction, Skipped, classify

HELP = "the classes of audio files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what septr_fast.checkpoints.save wrote")
    parser.add_argument("--top", type=count, default=5, help="classes to show of each file (default: %(default)s)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one object for machines in place of text")
    parser.add_argument("--batch", type=count, default=16, help="windows classified at a time (default: %(default)s)")
    parser.add_argument(
        "--hop", type=duration, metavar="SECONDS", help="between the windows of a long file (default: half a window)"
    )
    parser.add_argument("--device", help="default: the current CUDA device, or the processor where there is none")


def run(
    files: Sequence[Path], checkpoint: Path, top: int, as_json: bool, batch: int, hop: float | None, device: str | None
) -> int:
    """Classify, print and return the exit status: 1 where a file was skipped, 2 where nothing can be classified.

    Args:
        files: audio files.
        checkpoint: what `checkpoints.save` wrote.
        top: classes to show of each file.
        as_json: whether to print one object in place of text.
        batch: most windows in one call of the model.
        hop: seconds from one window of a long file to the next; None for half a window.
        device: a name that PyTorch knows; None for CUDA where it is available.
    """
    found: list[Prediction] = []
    skipped: list[Skipped] = []
    try:
        import_soundfile()
        bundle = checkpoints.load(checkpoint, usable_device(device))
        for result in classify(bundle, files, batch=batch, hop=hop):
            if isinstance(result, Skipped):
                skipped.append(result)
                sys.stderr.write(f"septr-fast predict: skipped {shown(result.path)}: {result.reason}\n")
                continue
            found.append(result)
            if not as_json:
                sys.stdout.write(answer(result, bundle.classes, top))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"septr-fast predict: {error}\n")
        return 2
    if as_json:
        sys.stdout.write(f"{json.dumps(_report(found, skipped, bundle, top), indent=1)}\n")
    if skipped:
        sys.stderr.write(f"septr-fast predict: skipped {len(skipped)} of {len(files)} files\n")
    return 1 if skipped else 0


def _report(found: Sequence[Prediction], skipped: Sequence[Skipped], bundle: Bundle, top: int) -> dict[str, Any]:
    """Everything as one object for JSON."""
    files = [
        {
            "file": str(prediction.path),
            "seconds": prediction.seconds,
            "windows": prediction.windows,
            "classes": [{"name": name, "probability": value} for name, value in _best(prediction, bundle.classes, top)],
        }
        for prediction in found
    ]
    entries = [{"file": str(skip.path), "reason": skip.reason} for skip in skipped]
    return {"activation": bundle.activation, "files": files, "skipped": entries}


def answer(prediction: Prediction, classes: Sequence[str], top: int) -> str:
    """The file's name and below it a line for each of its most probable classes."""
    best = [(shown(name), value) for name, value in _best(prediction, classes, top)]
    width = max(len(name) for name, _ in best)
    lines = [f"  {name:{width}}  {value:6.1%}\n" for name, value in best]
    return f"{shown(prediction.path)}\n{''.join(lines)}"


def _best(prediction: Prediction, classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    """Names and probabilities of the `top` most probable classes, or of all if there are fewer."""
    values, indices = prediction.probabilities.sort(descending=True, stable=True)
    return [(classes[index], value) for index, value in zip(indices[:top].tolist(), values[:top].tolist(), strict=True)]
