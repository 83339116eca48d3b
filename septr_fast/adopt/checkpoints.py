"""A trained model in one file: weights, constructor arguments, class names and front-end.

The file is a safetensors file (no code in it, nothing is unpickled): the tensors are the model's state dict under
its own keys, and the metadata has the entry "septr_fast", a JSON object:

    version     1, or 2 with an activation that is not that of version 1, softmax
    model       arguments of `SepTr`
    classes     names, one for each logit
    activation  "softmax" for one class of a recording, "sigmoid" for any number; in version 2
    front_end   "name" and arguments of the front-end, `Spectrogram.settings`

It needs the package safetensors, the extra `predict`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from septr_fast import reference
from septr_fast.adopt.description import constructor_arguments
from septr_fast.audio import front_ends
from septr_fast.audio.spectrogram import Spectrogram
from septr_fast.model import SepTr, Size

VERSION = 1
VERSION_WITH_ACTIVATION = 2
ACTIVATIONS = ("softmax", "sigmoid")
ENTRY = "septr_fast"
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SHOWN = 3
"""Most keys of a kind that an error lists."""


@dataclass(frozen=True)
class Bundle:
    """What it takes to classify a recording.

    Attributes:
        model: in evaluation mode.
        front_end: from waveforms `(batch, samples)` to the model's input.
        classes: names, one for each logit.
        activation: "softmax" or "sigmoid", from logits to probabilities.
    """

    model: SepTr
    front_end: Spectrogram
    classes: tuple[str, ...]
    activation: str = "softmax"

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of `logits` `(..., classes)`: of one class out of all, or with "sigmoid" of each for itself."""
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(dim=-1)


def save(
    path: str | os.PathLike[str],
    model: reference.SepTr,
    classes: Sequence[str],
    front_end_settings: Mapping[str, Any],
    activation: str | None = None,
) -> None:
    """Write a checkpoint, whole or not at all: a file of that name stays as it was until the new one is complete.

    Args:
        path: the file; by custom it ends in ".safetensors".
        model: a `SepTr`, on any device; without wrappers like DistributedDataParallel.
        classes: distinct names, one for each logit, in their order.
        front_end_settings: `settings` of the front-end whose spectrograms the model takes.
        activation: from logits to probabilities: "softmax" where a recording has one class, "sigmoid" where it has
            any number. None for softmax, but for a single logit, which is a sigmoid's.

    Raises:
        TypeError: for a model that is no `SepTr`.
        ValueError: for classes, an activation or a front-end that do not fit the model, for a model that its arguments
            cannot describe (see `constructor_arguments`), or a path without a folder.
        ImportError: where safetensors is missing.
    """
    safetensors = _safetensors()
    if not isinstance(model, reference.SepTr):
        raise TypeError(f"model: expected a SepTr, got {type(model).__name__}")
    chosen = _activation({"classes": classes, **({} if activation is None else {"activation": activation})})
    about = {
        "version": VERSION if chosen == "softmax" else VERSION_WITH_ACTIVATION,
        "model": constructor_arguments(model),
        "classes": list(classes),
        "front_end": reference.as_python(front_end_settings),
        **({} if chosen == "softmax" else {"activation": chosen}),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    _assemble(about, state)
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"path: expected a file in an existing folder, got {target}")
    _replace(target, safetensors.save(state, metadata={"format": "pt", ENTRY: json.dumps(about)}))


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu", *, input_size: Size | None = None) -> Bundle:
    """Read what `save` wrote; the dtype of the weights is kept.

    Args:
        path: the file.
        device: where model and front-end go.
        input_size: `(height, width)` of spectrograms, or one int for both, where model and front-end shall be of
            another size than in the file: see `SepTr.resize_positions` and `front_ends.resized`. None for that of
            the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is broken or no checkpoint, or whose parts do not fit together; it names the
            file. And for an `input_size` that model or front-end cannot have.
        ImportError: where safetensors is missing.
    """
    file = Path(path)
    metadata, state = contents(file)
    try:
        bundle = _assemble(_about(metadata), state)
    except ValueError as error:
        raise ValueError(f"path: expected a checkpoint of septr_fast, got {file}: {error}") from error
    if input_size is not None:
        bundle = _resized(bundle, reference.size_pair(input_size, "input_size"))
    return replace(bundle, model=bundle.model.to(device).eval(), front_end=bundle.front_end.to(device))


def _assemble(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> Bundle:
    """Model, front-end and classes from their descriptions; the model's parameters are the tensors of `state`."""
    try:
        with torch.device("meta"):
            model = SepTr(**about["model"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model: {error}") from error
    _check_state(model.state_dict(), state)
    model.load_state_dict(state, assign=True)
    _check_classes(about["classes"], model.fc.out_features if isinstance(model.fc, nn.Linear) else model.blocks[0].dim)
    front_end = front_ends.build(about["front_end"])
    first = model.blocks[0]
    if front_end.size != (first.channels, *first.input_size):
        raise ValueError(
            f"front_end: expected spectrograms (channels, height, width) {(first.channels, *first.input_size)}, "
            f"the model's input, got {front_end.size}"
        )
    return Bundle(model, front_end, tuple(about["classes"]), _activation(about))


def _resized(bundle: Bundle, input_size: tuple[int, int]) -> Bundle:
    """`bundle` with model and front-end for spectrograms `(height, width)`."""
    front_end = front_ends.build(front_ends.resized(bundle.front_end.settings, input_size))
    bundle.model.resize_positions(input_size)
    return replace(bundle, front_end=front_end)


def contents(file: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; that of a checkpoint has the entry `ENTRY`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no safetensors file.
        ImportError: where safetensors is missing.
    """
    _safetensors()
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        raise FileNotFoundError(f"path: expected a checkpoint, there is no {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            # Copies: the tensors would otherwise be the file itself, whatever happens to it.
            state = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
            return opened.metadata() or {}, state
    except (SafetensorError, OSError) as error:
        raise ValueError(f"path: expected a readable safetensors file, got {file}: {error}") from error


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description in the metadata, checked for its entries and their kinds."""
    if ENTRY not in metadata:
        raise ValueError(f"it has no entry {ENTRY!r} in its metadata")
    try:
        about = json.loads(metadata[ENTRY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its entry {ENTRY!r} is not JSON: {error}") from error
    version = about.get("version") if isinstance(about, dict) else None
    if version not in (VERSION, VERSION_WITH_ACTIVATION):
        raise ValueError(f"version: expected {VERSION} or {VERSION_WITH_ACTIVATION}, got {version!r}")
    for name, kind in (("model", dict), ("classes", list), ("front_end", dict)):
        if not isinstance(about.get(name), kind):
            raise ValueError(f"{name}: expected a JSON {kind.__name__}, got {about.get(name)!r}")
    return about


def _default_activation(classes: Sequence[Any]) -> str:
    """Of a checkpoint that names none: a softmax over one logit would always be sure."""
    return "sigmoid" if len(classes) == 1 else "softmax"


def _activation(about: Mapping[str, Any]) -> str:
    named = about.get("activation", _default_activation(about["classes"]))
    if named not in ACTIVATIONS or (named == "softmax" and len(about["classes"]) == 1):
        raise ValueError(f"activation: expected sigmoid, or softmax of several classes, got {named!r}")
    return str(named)


def _check_classes(classes: Sequence[Any], logits: int) -> None:
    for name in classes:
        if not isinstance(name, str):
            raise ValueError(f"classes: expected names, got {name!r}")
    if len(classes) != logits or len(set(classes)) != logits:
        raise ValueError(
            f"classes: expected {logits} distinct names, got {len(classes)}, of which {len(set(classes))} distinct"
        )


def _check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` listing keys that are missing, too many or of another shape, or dtypes that differ."""
    shared = [key for key in expected if key in found]
    faults = {
        "keys that are missing": [key for key in expected if key not in found],
        "keys that SepTr has not": [key for key in found if key not in expected],
        "shapes that differ": [
            f"{key} (expected {tuple(expected[key].shape)}, got {tuple(found[key].shape)})"
            for key in shared
            if expected[key].shape != found[key].shape
        ],
    }
    texts = [f"{name}: {_listed(keys)}" for name, keys in faults.items() if keys]
    dtypes = {tensor.dtype for tensor in found.values()}
    if not texts and (len(dtypes) != 1 or not dtypes <= set(_DTYPES)):
        texts = [f"dtypes: expected one floating dtype, got {', '.join(sorted(map(str, dtypes)))}"]
    if texts:
        raise ValueError("; ".join(texts))


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _replace(target: Path, content: bytes) -> None:
    """Write `content` beside `target` and put it in its place in one step."""
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints need the package safetensors: pip install 'septr_fast[predict]'") from error
    return safetensors.torch
