"""The weights that a run starts from, what is known of their model, and a word on what of them was taken."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from septr_fast import reference
from septr_fast.adopt import checkpoints
from septr_fast.adopt.description import constructor_arguments
from septr_fast.audio import front_ends
from septr_fast.reference import size_pair
from septr_fast.resizing import resize_state

_PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""How what `torch.save` wrote begins, now and in former years."""
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_HOW = ("formulation", "backend")
"""What of a configuration says how a model is computed."""
_FREE = ("dropout", "frames", "mels", "seconds")
"""What a run may have otherwise than the checkpoint: it is resized, or no weight depends on it."""
DEFAULT_OUT, RUN = Path("examples/out/run"), "run.json"
"""Where a run is by default, and what in its folder it begins with."""
_DECIDED = ("depth", "dim", "heads", "dim_head", "mlp_dim", "pool", "dropout", "mels", "frames", "rate", "seconds")
"""Options that the file of the weights may say."""


@dataclass(frozen=True)
class Start:
    """Weights, and what their file says of them.

    Attributes:
        path: of the file or folder.
        state: the state dict.
        arguments: of the model's constructor; None where the file does not say.
        front_end: settings of the front-end; None where the file does not say.
        classes: names; None where the file does not say.
    """

    path: Path
    state: Mapping[str, Tensor]
    arguments: dict[str, Any] | None = None
    front_end: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None


def read(path: Path) -> Start:
    """Weights in a checkpoint of this package, a folder of the Hub, or a plain state dict. No code in them is run.

    Raises:
        ValueError: for what is none of them, with the path.
        FileNotFoundError: if there is no such file.
        ImportError: where safetensors is missing for one of its files.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FileNotFoundError(f"from: expected weights, there is no {path}")
    with path.open("rb") as file:
        if file.read(4) in _PICKLED:
            return Start(path, _plain(path, _unpickled(path)))
    try:
        metadata, state = checkpoints.contents(path)
    except ValueError as error:
        raise ValueError(f"from: expected a checkpoint, safetensors or what torch.save wrote: {error}") from error
    if checkpoints.ENTRY not in metadata:
        return Start(path, _plain(path, state))
    bundle = checkpoints.load(path)
    return Start(
        path, bundle.model.state_dict(), constructor_arguments(bundle.model), bundle.front_end.settings, bundle.classes
    )


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options `given` on the command line, with those that the weights to start from decide.

    A run that has begun holds them itself: its weights are not read again.

    Raises:
        ValueError: for an option that the weights contradict, naming it; and as `read` does.
        OSError, ImportError: as `read` does.
    """
    begun = given.get("out", DEFAULT_OUT) / RUN
    if begun.exists():
        stored = json.loads(begun.read_text(encoding="utf-8")).get("options", {})
        return {**{name: _tupled(stored[name]) for name in _DECIDED if name in stored}, **given}
    start = read(given["from_"])
    described = _options(start, given)
    for name, value in described.items():
        if name in given and name not in _FREE and given[name] != value:
            raise ValueError(f"{name}: expected {value}, that of {start.path}, got {given[name]}")
    return {**described, **given}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def front_end(start: Start, input_size: tuple[int, int]) -> dict[str, Any] | None:
    """The settings of the start's front-end for spectrograms `(height, width)`; None where it has none."""
    return None if start.front_end is None else front_ends.resized(start.front_end, input_size)


def load(start: Start, model: reference.SepTr, classes: tuple[str, ...]) -> str:
    """Give `model` the weights of `start`, positions interpolated and a head for other classes left out.

    The head is taken over where the classes are the same, in their order; where the file has no names, where there are
    as many.

    Returns:
        A line that says what was loaded and what is new.

    Raises:
        ValueError: for weights that do not fit, naming them.
    """
    own = model.state_dict()
    state = resize_state(dict(start.state), model)
    heads = [own[key].shape == state[key].shape if key in state else False for key in ("fc.weight", "fc.bias")]
    kept = all(heads) and start.classes in (None, classes)
    wanted = own if kept else {key: value for key, value in own.items() if not key.startswith("fc.")}
    taken = {key: value for key, value in state.items() if kept or not key.startswith("fc.")}
    faults = {
        "missing": [key for key in wanted if key not in taken],
        "too many": [key for key in taken if key not in wanted],
        "of another shape": [key for key in wanted if key in taken and wanted[key].shape != taken[key].shape],
    }
    texts = [f"{len(keys)} {fault}, like {keys[0]}" for fault, keys in faults.items() if keys]
    if texts:
        hint = "" if start.arguments else "; its sizes are given as options, like --depth and --dim"
        raise ValueError(f"from: expected the weights of this model in {start.path}, got {'; '.join(texts)}{hint}")
    for key, value in taken.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"from: expected finite weights in {start.path}, got NaN or infinity in {key}")
    model.load_state_dict({**own, **taken})
    resized = sum(state[key] is not start.state[key] for key in taken)
    head = "the head too" if kept else f"the head is new, for {len(classes)} classes"
    names = " (the file has no names of classes, as many as these)" if kept and start.classes is None else ""
    more = f", positions interpolated in {resized} of them" if resized else ""
    more += "" if start.arguments else ", heads and axes by the options"
    return f"{len(taken)} tensors of {start.path} are loaded{more}; {head}{names}"


def _options(start: Start, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options by name, as the file of the weights has them."""
    if start.arguments is None:
        return {}
    arguments = start.arguments
    pool = arguments["down_sample_input"]
    height, width = size_pair(arguments["input_size"], "input_size")
    described = {
        **{name: arguments[name] for name in ("depth", "dim", "heads", "dim_head", "mlp_dim")},
        "pool": (1, 1) if pool is None else size_pair(pool, "down_sample_input"),
        "dropout": arguments["dropout_tr"],
        "mels": height,
        "frames": width,
    }
    if start.front_end is not None:
        described |= _sound(start, described, given)
    elif arguments["channels"] != 1:
        raise ValueError(f"from: expected a model of 1 channel in {start.path}, got {arguments['channels']}")
    return described


def _sound(start: Start, described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Rate, length of a clip and frames of the start's front-end, or what `given` makes of them."""
    sound = front_ends.build(start.front_end or {})
    if sound.time_first:
        raise ValueError(f"from: expected a front-end with its frames along the width in {start.path}")
    found = {"rate": sound.sample_rate}
    if "seconds" in given and "frames" not in given and 0 < given["seconds"] < math.inf:
        found["frames"] = max(round(given["seconds"] * sound.sample_rate / sound.hop), 1)
    size = (given.get("mels", described["mels"]), given.get("frames", found.get("frames", described["frames"])))
    seconds = front_ends.build(front_ends.resized(start.front_end or {}, size)).span / sound.sample_rate
    if {"seconds", "frames"} <= given.keys() and abs(given["seconds"] - seconds) > sound.hop / sound.sample_rate:
        raise ValueError(
            f"seconds: expected {seconds:g} for {size[1]} frames of the front-end of {start.path}, "
            f"got {given['seconds']}"
        )
    return {**found, "seconds": seconds}


def _folder(path: Path) -> Start:
    file, weights = path / "config.json", path / "model.safetensors"
    if not (file.is_file() and weights.is_file()):
        found = ", ".join(sorted(str(each) for each in path.glob("*.safetensors")))
        hint = f"; the folder of a run holds {found}" if found else ""
        raise ValueError(f"from: expected config.json and model.safetensors, as of the Hub, in the folder {path}{hint}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        with torch.device("meta"):
            model = reference.SepTr(**{name: value for name, value in config.items() if name not in _HOW})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"from: expected the arguments of a SepTr in {file}, got {error}") from error
    return Start(path, _plain(weights, checkpoints.contents(weights)[1]), constructor_arguments(model))


def _unpickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"from: expected model.state_dict() saved in {path}: {reason}") from error


def _plain(path: Path, content: object) -> dict[str, Tensor]:
    """A state dict without what wrappers and training scripts put around it."""
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"from: expected a state dict, names and tensors, in {path}, got {found}")
    state = {str(key): value.float() for key, value in content.items()}
    while prefix := next((mark for mark in _PREFIXES if state and all(key.startswith(mark) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
