"""The options of a training run: one dataclass, from which the command line is made."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from septr_fast.adopt.checkpoints import ACTIVATIONS
from training.data import spoken
from training.data.augmentation import Augmentation
from training.data.data_sets import LAYOUTS
from training.learning import start

MODELS = ("septr", "reference")


def _option(
    group: str,
    default: Any,
    text: str,
    *,
    parse: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    count: int | str | None = None,
    free: bool = False,
) -> Any:
    """A field with what the command line needs; `free` options may change when a run is resumed."""
    metadata = {"group": group, "help": text, "parse": parse, "choices": choices, "count": count, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """What a run does; `examples/train.py --help` describes every option.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    data: Path | None = _option(
        "data", None, "folder of a data set; without it, words are spoken by eSpeak NG", parse=Path
    )
    layout: str = _option("data", "auto", "how that folder is laid out", choices=LAYOUTS)
    labels: Path | None = _option(
        "data", None, "CSV with the columns file and labels, any number for each file of the folder", parse=Path
    )
    fold: int = _option("data", 1, "fold of ESC-50 that is tested on", parse=int)
    speech: Path = _option("data", Path("examples/out/words"), "folder where spoken words are kept", parse=Path)
    words: tuple[str, ...] = _option("data", spoken.WORDS, "words to be spoken", count="+")
    speaking_rates: tuple[int, ...] = _option(
        "data", spoken.RATES, "rates of speaking, in words per minute", parse=int, count="+"
    )
    pitches: tuple[int, ...] = _option("data", spoken.PITCHES, "pitches of the voices, 0 to 100", parse=int, count="+")

    rate: int = _option("front-end", 16000, "sampling rate in hertz; clips of another are resampled", parse=int)
    seconds: float = _option("front-end", 1.0, "length of a clip", parse=float)
    mels: int = _option("front-end", 64, "mel filters: the height of a spectrogram", parse=int)
    frames: int = _option("front-end", 64, "frames: the width of a spectrogram", parse=int)

    from_: Path | None = _option(
        "start",
        None,
        "weights to start from: a checkpoint of this package, a folder of the Hub, or a state dict as a .pt or "
        ".safetensors; model and front-end are then what it says of them",
        parse=Path,
    )
    freeze: bool = _option("start", False, "train the head alone, all else stays as it was loaded")

    model: str = _option("model", "septr", "the model: this package's or the plain reference", choices=MODELS)
    compare: bool = _option("model", False, "train both models from the same start, each step of one after the other's")
    depth: int = _option("model", 2, "blocks", parse=int)
    dim: int = _option("model", 64, "width of a token", parse=int)
    heads: int = _option("model", 5, "attention heads", parse=int)
    dim_head: int = _option("model", 256, "width of a head", parse=int)
    mlp_dim: int = _option("model", 128, "width of the MLP's hidden layer", parse=int)
    pool: tuple[int, int] = _option("model", (4, 4), "average pooling in front: mels, frames", parse=int, count=2)
    dropout: float = _option("model", 0.0, "probability of dropout in the transformers", parse=float)

    activation: str = _option(
        "training",
        "auto",
        "from logits to probabilities: softmax for one class of a clip, sigmoid for any number; auto takes what fits "
        "the labels",
        choices=("auto", *ACTIVATIONS),
    )
    epochs: int = _option("training", 10, "most epochs", parse=int)
    batch: int = _option("training", 16, "clips of one step, over all processes", parse=int)
    accumulate: int = _option("training", 1, "pieces that a process cuts its share of a batch into", parse=int)
    learning_rate: float = _option("training", 1e-3, "highest learning rate", parse=float)
    warm_up: float = _option("training", 0.1, "share of all steps in which the learning rate rises", parse=float)
    weight_decay: float = _option("training", 0.05, "of AdamW, on matrices alone", parse=float)
    label_smoothing: float = _option("training", 0.0, "share of a target spread over all classes", parse=float)
    clip: float = _option("training", 1.0, "greatest norm of the gradients; 0 for no limit", parse=float)
    ema: float = _option(
        "training", 0.99, "decay of the averaged weights that are evaluated and kept; 0 for no averaging", parse=float
    )
    patience: int = _option("training", 0, "stop after so many epochs without a better one; 0 for never", parse=int)
    seed: int = _option("training", 0, "of everything random", parse=int)

    time_shift: float = _option("augmentation", 0.1, "greatest shift of a clip in seconds", parse=float)
    noise: float = _option("augmentation", 0.5, "probability of added noise", parse=float)
    noise_db: tuple[float, float] = _option(
        "augmentation", (10.0, 40.0), "range of the ratio of signal to noise, in decibels", parse=float, count=2
    )
    mixup: float = _option("augmentation", 0.0, "alpha of mixup; 0 for none", parse=float)
    frequency_masks: int = _option("augmentation", 1, "bands masked in a spectrogram", parse=int)
    frequency_width: int = _option("augmentation", 6, "greatest width of a band, in mel filters", parse=int)
    time_masks: int = _option("augmentation", 1, "spans of time masked in a spectrogram", parse=int)
    time_width: int = _option("augmentation", 6, "greatest width of a span, in frames", parse=int)

    precision: str = _option("machine", "no", "mixed precision", choices=("no", "bf16", "fp16"))
    grad_checkpointing: bool = _option("machine", False, "recompute in the backward pass: less memory, more work")
    compile: bool = _option("machine", False, "torch.compile the model")
    parallel: str = _option(
        "machine", "ddp", "what several processes share: work, or work and weights", choices=("ddp", "fsdp2"), free=True
    )
    cpu: bool = _option("machine", False, "run on the processor even where there is a GPU", free=True)
    workers: int = _option("machine", 0, "processes that read clips, for each process", parse=int, free=True)

    out: Path = _option("output", start.DEFAULT_OUT, "folder of this run", parse=Path, free=True)
    save_every: int = _option(
        "output", 100, "steps from one saved state to the next; 0 for the ends of epochs", parse=int, free=True
    )

    def __post_init__(self) -> None:
        for name in ("rate", "mels", "frames", "epochs", "batch", "accumulate"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("patience", "workers", "save_every", "weight_decay", "clip"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("seconds", "learning_rate"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a positive number")
        for name in ("warm_up", "ema", "label_smoothing"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        frames_in_samples = round(self.rate * self.seconds)
        _check("frames", self.frames, self.frames <= frames_in_samples, f"at most one per sample, {frames_in_samples}")
        if self.grad_checkpointing and "reference" in self.models:
            raise ValueError("grad_checkpointing: expected model septr alone, got the reference, which cannot do it")
        if self.labels is not None and self.layout != "auto":
            raise ValueError(f"layout: expected none beside a table of labels, got {self.layout!r}")
        if self.labels is not None and self.data is None:
            raise ValueError("data: expected the folder of the files that the table of labels names")
        if self.from_ is not None and self.from_.resolve().is_relative_to(self.out.resolve()):
            raise ValueError(f"out: expected another folder than that of the weights to start from, got {self.out}")
        if self.freeze and self.from_ is None:
            raise ValueError("freeze: expected weights to start from, --from, got none")
        for name in ("pool", "noise_db"):
            _check(name, getattr(self, name), len(getattr(self, name)) == 2, "two numbers")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are trained."""
        return MODELS if self.compare else (self.model,)

    @property
    def hop(self) -> int:
        """From one frame of a spectrogram to the next, in samples."""
        return max(round(self.rate * self.seconds / self.frames), 1)

    def model_arguments(self, classes: int) -> dict[str, Any]:
        """The constructor's arguments of either model."""
        return {
            "input_size": (self.mels, self.frames),
            "num_classes": classes,
            "depth": self.depth,
            "heads": self.heads,
            "mlp_dim": self.mlp_dim,
            "dim_head": self.dim_head,
            "down_sample_input": self.pool,
            "dim": self.dim,
            "dropout_tr": self.dropout,
        }

    def augmentation(self) -> Augmentation:
        """What happens to the clips in training."""
        return Augmentation(
            time_shift=self.time_shift,
            mixup=self.mixup,
            noise=self.noise,
            noise_db=self.noise_db,
            frequency_masks=self.frequency_masks,
            frequency_width=self.frequency_width,
            time_masks=self.time_masks,
            time_width=self.time_width,
            bins=self.mels,
            frames=self.frames,
        )

    def as_json(self) -> dict[str, Any]:
        """The options as JSON holds them; folders as absolute paths."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def parse(
    arguments: Sequence[str] | None = None, completed: Callable[[dict[str, Any]], dict[str, Any]] = start.completed
) -> Options:
    """Read the command line. Faults end the process with a message.

    Args:
        arguments: None for those of the process.
        completed: adds what the weights to start from decide to the options that were given, where there are any.
    """
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train SepTr on a folder of audio. Stopped at any moment, the same command goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        about = field.metadata
        group = groups.setdefault(about["group"], parser.add_argument_group(about["group"]))
        settings: dict[str, Any] = {
            "dest": field.name,
            "default": field.default,
            "help": about["help"].replace("%", "%%"),
        }
        if isinstance(field.default, bool):
            settings["action"] = "store_true"
        else:
            settings |= {"type": about["parse"], "choices": about["choices"], "nargs": about["count"]}
        group.add_argument(f"--{field.name.strip('_').replace('_', '-')}", **settings)
    absent = argparse.Namespace(**{field.name: None for field in dataclasses.fields(Options)})
    values = {name: value for name, value in vars(parser.parse_args(arguments, absent)).items() if value is not None}
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return Options(**given) if given.get("from_") is None else Options(**completed(given))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def check_unchanged(began: Mapping[str, Any], options: Options) -> None:
    """Refuse options that would make another run of the one that began with `began`, what `as_json` returned then.

    Raises:
        ValueError: naming every such option, its value then and now.
    """
    now = options.as_json()
    free = {field.name for field in dataclasses.fields(Options) if field.metadata["free"]}
    names = [name for name in now if name not in free and began.get(name) != now[name]]
    if names:
        changes = "; ".join(f"{name}: expected {began.get(name)!r}, got {now[name]!r}" for name in names)
        raise ValueError(f"{changes}: the run in {options.out} began otherwise; give another --out for a new one")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
