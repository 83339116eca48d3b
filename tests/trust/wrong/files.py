"""Wrong files: checkpoints cut short, changed, made of pickles that run code; folders of the hub; audio; tables."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import soundfile
import torch
from torch import Tensor

from septr_fast import LogMel, SepTr
from septr_fast.adopt import checkpoints
from septr_fast.adopt.checkpoints import Bundle
from septr_fast.audio import clips
from septr_fast.passes.triton import tuned
from trust.wrong.calls import SIZES, Subject, WrongCall

MARKER = "code-ran"
"""A file that a pickle makes when it is loaded."""

CLASSES = ["no", "one", "yes"]
FRONT_END = LogMel(8000, 6, fft_size=128, frames=8)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


def calls() -> Iterator[WrongCall]:
    """All of them."""
    yield from _broken_checkpoints()
    yield from _pickles()
    yield from _descriptions()
    yield from _states()
    yield from _saving()
    yield from _hub()
    yield from _audio()
    yield from _tables()


def _good(on: Subject) -> Path:
    path = on.folder / "good.safetensors"
    checkpoints.save(path, SepTr(**SIZES), CLASSES, FRONT_END.settings)
    return path


def _load(on: Subject, content: bytes, name: str = "bad.safetensors") -> Bundle:
    path = on.folder / name
    path.write_bytes(content)
    return checkpoints.load(path)


def _broken_checkpoints() -> Iterator[WrongCall]:
    """Each must name the file."""

    def broken(name: str, change: Callable[[bytes], bytes]) -> WrongCall:
        return WrongCall(
            f"checkpoint, {name}", ValueError, "bad.safetensors", lambda on: _load(on, change(_good(on).read_bytes()))
        )

    def header(content: bytes, changed: Callable[[dict[str, Any]], object]) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        changed(entries)
        encoded = json.dumps(entries).encode()
        return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]

    yield broken("empty", lambda content: b"")
    for keep in (1, 7, 8, 100):
        yield broken(f"cut after {keep} bytes", lambda content, keep=keep: content[:keep])
    yield broken("cut in the middle", lambda content: content[: len(content) // 2])
    yield broken("the last byte missing", lambda content: content[:-1])
    yield broken("a byte too many", lambda content: content + b"\0")
    yield broken("a header of 2⁶³ bytes", lambda content: struct.pack("<Q", 1 << 63) + content[8:])
    yield broken("a header of no JSON", lambda content: content[:8] + b"#" * (len(content) - 8))
    yield broken("a header of noise", lambda content: content[:8] + bytes(reversed(content[8:])))
    yield broken("zeros", lambda content: bytes(len(content)))
    yield broken("an offset beyond the end", lambda content: header(content, _beyond))
    yield broken("tensors that overlap", lambda content: header(content, _overlap))
    yield broken("a dtype that is none", lambda content: header(content, lambda e: e["fc.bias"].update(dtype="F99")))
    yield broken("a shape of −1", lambda content: header(content, lambda e: e["fc.bias"].update(shape=[-1])))
    yield broken("a deep list", lambda content: struct.pack("<Q", 200000) + b"[" * 200000)
    yield WrongCall("checkpoint, a folder", ValueError, "good", lambda on: checkpoints.load(_folder(on, "good")))
    yield WrongCall(
        "checkpoint, none", FileNotFoundError, "none.st", lambda on: checkpoints.load(on.folder / "none.st")
    )
    yield WrongCall("checkpoint, no device", RuntimeError, "abacus", lambda on: checkpoints.load(_good(on), "abacus"))
    yield WrongCall(
        "checkpoint, no size", ValueError, "input_size", lambda on: checkpoints.load(_good(on), input_size=(6, 0))
    )


def _beyond(entries: dict[str, Any]) -> None:
    entries["fc.bias"]["data_offsets"] = [1 << 40, (1 << 40) + 12]


def _overlap(entries: dict[str, Any]) -> None:
    entries["fc.bias"]["data_offsets"] = entries["cls_token"]["data_offsets"]


def _folder(on: Subject, name: str) -> Path:
    path = on.folder / name
    path.mkdir(exist_ok=True)
    return path


def _pickles() -> Iterator[WrongCall]:
    """None may run its code: what says that it ran is an error of another class."""

    def pickled(name: str, write: Callable[[Path, Malicious], object]) -> WrongCall:
        def call(on: Subject) -> None:
            marker, path = on.folder / MARKER, on.folder / "evil.safetensors"
            write(path, Malicious(marker))
            try:
                checkpoints.load(path)
            finally:
                if marker.exists():
                    raise RuntimeError("the code in the file ran")

        return WrongCall(f"checkpoint, {name}", ValueError, "evil.safetensors", call)

    def cut(path: Path, evil: Malicious) -> None:
        torch.save({"model": evil}, path)
        path.write_bytes(path.read_bytes()[:-40])

    yield pickled("a pickle that runs code", lambda path, evil: path.write_bytes(pickle.dumps(evil)))
    yield pickled("torch.save of code", lambda path, evil: torch.save(evil, path))
    yield pickled("torch.save of a state dict with code", lambda path, evil: torch.save({"fc.bias": evil}, path))
    yield pickled(
        "an old torch.save of code", lambda path, evil: torch.save(evil, path, _use_new_zipfile_serialization=False)
    )
    yield pickled("torch.save cut short", cut)
    yield pickled("protocol 0", lambda path, evil: path.write_bytes(pickle.dumps(evil, protocol=0)))
    yield pickled(
        "an array of objects", lambda path, evil: np.save(path.open("wb"), np.array([evil]), allow_pickle=True)
    )
    yield pickled("an array file cut short", lambda path, evil: path.write_bytes(b"\x93NUMPY\x01\x00"))


def _written(on: Subject, about: object, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> Bundle:
    """Load a checkpoint with this description and these weights."""
    state = {key: x.contiguous() for key, x in change(SepTr(**SIZES).state_dict()).items()}
    text = about if isinstance(about, str) else json.dumps(about)
    return _load(on, safetensors.torch.save(state, metadata={"septr_fast": text}))


def _about(**changes: Any) -> dict[str, Any]:
    sizes = {**SIZES, "input_size": [6, 8]}
    return {"version": 1, "model": sizes, "classes": CLASSES, "front_end": FRONT_END.settings, **changes}


def _descriptions() -> Iterator[WrongCall]:
    sizes = {**SIZES, "input_size": [6, 8]}
    settings = FRONT_END.settings
    given: list[tuple[str, Any, str]] = [
        ("no JSON", "{", "not JSON"),
        ("a deep list", "[" * 100000, "not JSON"),
        ("a list", [], "version"),
        ("nothing", {}, "version"),
        ("another version", _about(version=3), "version"),
        ("no model", _about(model=None), "model"),
        ("an unknown argument", _about(model={**sizes, "colour": 1}), "colour"),
        ("a model of code", _about(model={**sizes, "formulation": "__import__('os')"}), "formulation"),
        ("a negative depth", _about(model={**sizes, "depth": -1}), "depth"),
        ("a depth of 10⁹", _about(model={**sizes, "mlp_dim": 10**18}), "model"),
        ("one class too few", _about(classes=CLASSES[:2]), "classes"),
        ("the same class twice", _about(classes=["no", "no", "yes"]), "classes"),
        ("a class that is a number", _about(classes=[1, 2, 3]), "classes"),
        ("an unknown front-end", _about(front_end={"name": "os.system"}), "front_end"),
        ("a front-end of another size", _about(front_end={**settings, "frames": 9}), "front_end"),
        ("a front-end with an unknown setting", _about(front_end={**settings, "colour": 1}), "colour"),
        ("a negative hop", _about(front_end={**settings, "hop": -1}), "hop"),
    ]
    for name, about, culprit in given:
        yield WrongCall(f"description, {name}", ValueError, culprit, lambda on, about=about: _written(on, about))


def _states() -> Iterator[WrongCall]:
    changes: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
        ("a key missing", lambda state: {key: x for key, x in state.items() if key != "fc.bias"}, "fc.bias"),
        ("a key too many", lambda state: {**state, "fc.scale": torch.ones(1)}, "fc.scale"),
        ("another shape", lambda state: {**state, "fc.bias": torch.zeros(4)}, "fc.bias (expected (3,), got (4,))"),
        ("two dtypes", lambda state: {**state, "fc.bias": torch.zeros(3).half()}, "dtypes"),
        ("integers", lambda state: {key: x.to(torch.int32) for key, x in state.items()}, "dtypes"),
        ("no tensor", lambda state: {}, "keys that are missing"),
    ]
    for name, change, culprit in changes:
        yield WrongCall(
            f"weights, {name}", ValueError, culprit, lambda on, change=change: _written(on, _about(), change)
        )


def _saving() -> Iterator[WrongCall]:
    def save(name: str, error: type[Exception], culprit: str, **changes: Any) -> WrongCall:
        def call(on: Subject) -> None:
            given = {"path": on.folder / "new.st", "model": on.model, "classes": CLASSES}
            given |= {"front_end_settings": FRONT_END.settings, **changes}
            checkpoints.save(**given)

        return WrongCall(f"saving, {name}", error, culprit, call)

    yield save("no SepTr", TypeError, "model", model=torch.nn.Linear(1, 1))
    yield save("classes too few", ValueError, "classes", classes=CLASSES[:1])
    yield save("a front-end of another size", ValueError, "front_end", front_end_settings=LogMel(frames=5).settings)
    yield save("no folder", ValueError, "path", path=Path("nowhere") / "new.st")
    for name, changed, culprit in _changed_models():
        yield save(name, ValueError, culprit, model=changed)


def _changed_models() -> Iterator[tuple[str, SepTr, str]]:
    """Models that a constructor's arguments cannot describe, and what of them."""

    def changed(change: Callable[[Any], object]) -> SepTr:
        model = SepTr(**SIZES)
        change(model)
        return model

    def set_all(kind: type[torch.nn.Module], setting: str, value: float) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            next(module for module in model.modules() if isinstance(module, kind)).__dict__[setting] = value

        return change

    yield "another head", changed(lambda model: setattr(model, "fc", torch.nn.LazyLinear(3))), "fc"
    yield "another eps", changed(set_all(torch.nn.LayerNorm, "eps", 1e-3)), "eps of transformer.0"
    yield "another dropout", changed(set_all(torch.nn.Dropout, "p", 0.5)), "transformer.0"
    yield "no block", changed(lambda model: setattr(model, "transformer", torch.nn.ModuleList())), "transformer.0"
    yield "a parameter more", changed(lambda model: model.register_parameter("scale", _scale())), "scale"
    yield "pruned", changed(lambda model: torch.nn.utils.prune.random_unstructured(model.fc, "weight", 0.5)), "fc"


def _scale() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(1))


def _hub() -> Iterator[WrongCall]:
    def folder(on: Subject, name: str) -> Path:
        from septr_fast.adopt.hub import SepTr as Hub

        path = on.folder / name
        Hub(**{**SIZES, "input_size": [6, 8]}).save_pretrained(path)
        return path

    def saved(on: Subject, index: int, changed: SepTr) -> None:
        from septr_fast.adopt.hub import SepTr as Hub

        model = Hub(**{**SIZES, "input_size": [6, 8]})
        model.__dict__["_modules"], model.__dict__["_parameters"] = changed._modules, changed._parameters
        model.save_pretrained(on.folder / f"changed{index}")

    def pretrained(path: Path, **options: Any) -> object:
        from septr_fast.adopt.hub import SepTr as Hub

        return Hub.from_pretrained(path, strict=True, local_files_only=True, **options)

    def broken(on: Subject, name: str, change: Callable[[Path], object]) -> object:
        path = folder(on, name)
        change(path)
        return pretrained(path)

    def config(path: Path, **changes: Any) -> None:
        file = path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    given: list[tuple[str, type[Exception], str, Callable[[Path], object]]] = [
        ("weights cut short", ValueError, "hub0", lambda path: _cut(path / "model.safetensors")),
        ("a negative depth", ValueError, "depth", lambda path: config(path, depth=-1)),
        ("more classes than weights", RuntimeError, "fc.", lambda path: config(path, num_classes=4)),
    ]
    for index, (name, model, culprit) in enumerate(_changed_models()):
        yield WrongCall(f"hub folder, saving {name}", ValueError, culprit, lambda on, i=index, m=model: saved(on, i, m))
    for name, options, culprit in (
        ("a negative number of classes", {"num_classes": -1}, "num_classes"),
        ("a size of nothing", {"input_size": [0, 8]}, "input_size"),
    ):
        yield WrongCall(
            f"hub folder, {name}", ValueError, culprit, lambda on, given=options: pretrained(folder(on, "hub"), **given)
        )
    for index, (name, error, culprit, change) in enumerate(given):
        yield WrongCall(
            f"hub folder, {name}", error, culprit, lambda on, i=index, change=change: broken(on, f"hub{i}", change)
        )


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _audio() -> Iterator[WrongCall]:
    def content(name: str, written: Callable[[Path], object]) -> WrongCall:
        def call(on: Subject) -> object:
            path = on.folder / "clip.wav"
            written(path)
            return clips.load_clip(path, 8000)

        return WrongCall(f"audio, {name}", ValueError, "clip.wav", call)

    def sound(path: Path, samples: list[float], **options: Any) -> None:
        soundfile.write(path, np.array(samples, np.float32), options.pop("rate", 8000), **options)

    def header(path: Path, position: int, value: bytes) -> None:
        sound(path, [0.1] * 100)
        written = path.read_bytes()
        path.write_bytes(written[:position] + value + written[position + len(value) :])

    yield content("empty", lambda path: path.write_bytes(b""))
    yield content("text", lambda path: path.write_text("no sound at all"))
    yield content("the name of a format alone", lambda path: path.write_bytes(b"RIFF"))
    yield content("a header alone", lambda path: path.write_bytes(b"RIFF\x24\0\0\0WAVE"))
    yield content("no samples", lambda path: sound(path, []))
    yield content("NaN", lambda path: sound(path, [0.0, NAN], subtype="FLOAT"))
    yield content("infinity", lambda path: sound(path, [0.0, float("inf")], subtype="FLOAT"))
    yield content("a pickle", lambda path: path.write_bytes(pickle.dumps([1, 2])))
    yield content("a rate of 1 Hz", lambda path: sound(path, [0.1] * 9, rate=1))
    yield content("a rate of 0 Hz", lambda path: header(path, 24, struct.pack("<I", 0)))
    yield content("no channels", lambda path: header(path, 22, struct.pack("<H", 0)))
    yield content("an unknown coding", lambda path: header(path, 20, struct.pack("<H", 0xABCD)))
    yield content("no bits", lambda path: header(path, 34, struct.pack("<H", 0)))
    yield WrongCall("audio, no file", ValueError, "none.wav", lambda on: clips.load_clip(on.folder / "none.wav", 8000))
    yield WrongCall("audio, a folder", ValueError, "sounds", lambda on: clips.load_clip(_folder(on, "sounds"), 8000))
    yield WrongCall("audio, a folder of none", ValueError, "folder", lambda on: clips.find_clips(_folder(on, "hollow")))
    yield WrongCall("audio, no folder", ValueError, "folder", lambda on: clips.find_clips(on.folder / "nowhere"))
    yield WrongCall("resampling to 0 Hz", ValueError, "wanted", lambda on: clips.resample(torch.zeros(9), 8000, 0))


NAN = float("nan")


def _tables() -> Iterator[WrongCall]:
    def table(name: str, content: str, culprit: str) -> WrongCall:
        def call(on: Subject) -> object:
            path = on.folder / "table.json"
            path.write_text(content)
            return tuned.read(path, "a GPU", 90)

        return WrongCall(f"tuned table, {name}", ValueError, culprit, call)

    about = {"format": 1, "interpreted": False, **tuned.made_for("a GPU", 90)}
    yield table("no JSON", "{", "JSON")
    yield table("another format", '{"format": 2}', "format")
    yield table("of the interpreter", json.dumps({**about, "interpreted": True}), "interpreter")
    yield table("of another device", json.dumps({**about, "device": "another"}), "device")
    yield table("no rows", json.dumps(about), "rows")
    yield table("an unknown kernel", json.dumps({**about, "rows": [{"kernel": "rm -rf"}]}), "kernel")
    yield table("a row that is a text", json.dumps({**about, "rows": ["normalize"]}), "row")
