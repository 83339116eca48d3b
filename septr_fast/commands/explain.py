"""`septr-fast explain`: what a model looks at in an audio file, as a PNG file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from septr_fast.adopt import checkpoints
from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio.clips import import_soundfile, load_clip
from septr_fast.commands.options import count, moment, shown, usable_device
from septr_fast.commands.predict import answer
from septr_fast.inference.explain import Explanation, explain
from septr_fast.inference.explain_figure import draw
from septr_fast.inference.prediction import Prediction, Skipped, classify
from septr_fast.report.charts import figures

HELP = "what a model looks at in an audio file, drawn"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("clip", type=Path, metavar="CLIP", help="a WAV file")
    parser.add_argument("--checkpoint", type=Path, required=True, help="what septr_fast.checkpoints.save wrote")
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: CLIP-attention.png in the current folder")
    parser.add_argument(
        "--start",
        type=moment,
        default=0.0,
        metavar="SECONDS",
        help="where in a long file the window begins that is drawn (default: at the file's start)",
    )
    parser.add_argument("--top", type=count, default=5, help="classes to print (default: %(default)s)")
    parser.add_argument("--device", help="default: the current CUDA device, or the processor where there is none")


def run(clip: Path, checkpoint: Path, out: Path | None, start: float, top: int, device: str | None) -> int:
    """Classify as `predict` does, draw one window, print classes and the PNG file's path; return the exit status.

    It is 1 where the clip cannot be classified, 2 where nothing could.

    Args:
        clip: an audio file.
        checkpoint: what `checkpoints.save` wrote.
        out: the PNG file; None for one named after the clip in the current folder.
        start: seconds after the clip's start where the drawn window begins; it is shifted back to the clip's end.
        top: classes to print.
        device: a name that PyTorch knows; None for CUDA where it is available.
    """
    target = Path(f"{clip.stem}-attention.png") if out is None else out
    try:
        _check(target)
        import_soundfile()
        bundle = checkpoints.load(checkpoint, usable_device(device))
        (result,) = classify(bundle, [clip])
        if isinstance(result, Skipped):
            sys.stderr.write(f"septr-fast explain: skipped {shown(result.path)}: {shown(result.reason)}\n")
            return 1
        explanation, begin = _window(bundle, clip, start)
        draw(explanation, *_words(bundle, result, explanation, begin), target)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"septr-fast explain: {shown(str(error))}\n")
        return 2
    sys.stdout.write(f"{answer(result, bundle.classes, top)}{shown(target)}\n")
    return 0


def _check(target: Path) -> None:
    """Raise an error where no figure can be drawn or written to `target`."""
    if not figures.available():
        raise ImportError(figures.NO_CHARTS)
    if target.suffix.lower() != ".png" or not target.parent.is_dir():
        raise ValueError(f"out: expected a file ending in .png in an existing folder, got {target}")


def _window(bundle: Bundle, clip: Path, start: float) -> tuple[Explanation, float]:
    """What is seen in the window that begins `start` seconds after the clip's start, and where it begins indeed."""
    rate, span = bundle.front_end.sample_rate, bundle.front_end.span
    waveform = load_clip(clip, rate)
    first = round(start * rate)
    if first >= len(waveform):
        raise ValueError(f"start: expected less than the clip's {len(waveform) / rate:g} seconds, got {start:g}")
    first = min(first, max(len(waveform) - span, 0))
    window = waveform[first : first + span]
    padded = torch.nn.functional.pad(window, (0, span - len(window)))
    return explain(bundle, padded, first / rate), first / rate


def _words(bundle: Bundle, result: Prediction, explanation: Explanation, begin: float) -> tuple[str, str]:
    """The figure's title and the line below it: class and probability, and which part of a long clip is drawn."""
    best = int(result.probabilities.argmax())
    name, probability = shown(bundle.classes[best]), float(result.probabilities[best])
    title = f"{shown(Path(result.path.name))}: {name}, {probability:.1%}"
    if result.windows == 1:
        return title, ""
    end = begin + bundle.front_end.span / bundle.front_end.sample_rate
    own = float(explanation.probabilities[best])
    return title, (
        f"mean of {result.windows} windows over {result.seconds:.2f} seconds; "
        f"drawn: {begin:.2f} to {end:.2f} seconds, alone {name}, {own:.1%}"
    )
