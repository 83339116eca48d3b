"""`septr-fast predict`: the classes of audio files from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from septr_fast.adopt import checkpoints
from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio.clips import Unread, import_soundfile
from septr_fast.commands.options import count, duration, number, shown, usable_device
from septr_fast.inference import many
from septr_fast.inference.prediction import Prediction, Skipped, classify

HELP = "the classes of audio files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files, or folders with such below")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what septr_fast.checkpoints.save wrote")
    parser.add_argument("--top", type=count, default=5, help="classes to show of each file (default: %(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", dest="as_json", help="one object for machines in place of text")
    form.add_argument(
        "--json-lines",
        type=Path,
        metavar="OUT",
        help="a line for each file, for any number of them: goes on where it was stopped, and under torchrun or "
        "accelerate launch every process takes its share and writes OUT with its number before the suffix",
    )
    parser.add_argument("--batch", type=count, default=16, help="windows classified at a time (default: %(default)s)")
    parser.add_argument(
        "--hop", type=duration, metavar="SECONDS", help="between the windows of a long file (default: half a window)"
    )
    parser.add_argument("--readers", type=number, default=2, help="threads that read ahead (default: %(default)s)")
    parser.add_argument("--device", help="default: the current CUDA device, or the processor where there is none")


def run(
    files: Sequence[Path],
    checkpoint: Path,
    top: int,
    as_json: bool,
    json_lines: Path | None,
    batch: int,
    hop: float | None,
    readers: int,
    device: str | None,
) -> int:
    """Classify, print and return the exit status: 1 where a file was skipped, 2 where nothing can be classified.

    One of several processes returns 0 where files were skipped; its lines say which.

    Args:
        files: audio files and folders.
        checkpoint: what `checkpoints.save` wrote.
        top: classes to show of each file.
        as_json: whether to print one object in place of text.
        json_lines: file for one object a line; None to print.
        batch: most windows in one call of the model.
        hop: seconds from one window of a long file to the next; None for half a window.
        readers: threads that read the next files meanwhile.
        device: a name that PyTorch knows; None for CUDA where it is available, with several processes the one that has
            the number of this process on its machine.
    """
    found: list[Prediction] = []
    skipped: list[Skipped] = []
    unread = Unread()
    try:
        import_soundfile()
        place = many.place_of()
        if place.processes > 1 and json_lines is None:
            raise ValueError("several processes: expected --json-lines, where each writes a file of its own")
        bundle = checkpoints.load(checkpoint, usable_device(device or _own_device(place)))
        options: dict[str, Any] = {"batch": batch, "hop": hop, "readers": readers}
        if json_lines is not None:
            run = many.mark(checkpoint, hop, top)
            lines = many.Lines(json_lines, run, lambda result: _entry(result, bundle.classes, top))
            return _told(many.classify_to_lines(bundle, files, lines, place, **options), place)
        for result in classify(bundle, many.audio_files(files, unread), **options):
            if isinstance(result, Skipped):
                skipped.append(result)
                sys.stderr.write(f"septr-fast predict: skipped {shown(result.path)}: {shown(result.reason)}\n")
                continue
            found.append(result)
            if not as_json:
                sys.stdout.write(answer(result, bundle.classes, top))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"septr-fast predict: {shown(str(error))}\n")
        return 2
    if as_json:
        sys.stdout.write(f"{json.dumps(_report(found, skipped, bundle, top), indent=1)}\n")
    _tell_unread(unread)
    if skipped:
        sys.stderr.write(f"septr-fast predict: skipped {len(skipped)} of {len(skipped) + len(found)} files\n")
    return 1 if skipped else 0


def _report(found: Sequence[Prediction], skipped: Sequence[Skipped], bundle: Bundle, top: int) -> dict[str, Any]:
    """Everything as one object for JSON."""
    files, left_out = ([_entry(result, bundle.classes, top) for result in results] for results in (found, skipped))
    return {"activation": bundle.activation, "files": files, "skipped": left_out}


def _entry(result: Prediction | Skipped, classes: Sequence[str], top: int) -> dict[str, Any]:
    """What JSON says of a file."""
    if isinstance(result, Skipped):
        return {"file": str(result.path), "reason": result.reason}
    return {
        "file": str(result.path),
        "seconds": result.seconds,
        "windows": result.windows,
        "classes": [{"name": name, "probability": value} for name, value in _best(result, classes, top)],
    }


def _told(tally: many.Tally, place: many.Place) -> int:
    """Say on standard error what was done; the exit status.

    One of several processes that ended with 1 would have its launcher end all others in the middle of their shares.
    """
    _tell_unread(tally.unread)
    before = f", {tally.before} were done before" if tally.before else ""
    sys.stderr.write(f"septr-fast predict: {tally.written} files, {tally.skipped} of them skipped{before}\n")
    return 1 if tally.skipped and place.processes == 1 else 0


def _tell_unread(unread: Unread) -> None:
    """Say on standard error what audio is left out by its kind."""
    if unread.count:
        sys.stderr.write(f"septr-fast predict: left out {shown(str(unread))}\n")


def _own_device(place: many.Place) -> str | None:
    """That of one of several processes; None for the default."""
    return f"cuda:{place.local}" if place.processes > 1 and torch.cuda.is_available() else None


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
