"""Training that starts from weights: what is taken, what is new, what is frozen, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import training_runs
from support.runs.training_runs import HERTZ, arguments, write_tones

from septr_fast import ComplexSpectrogram, LogMel, SepTr, hub, reference
from septr_fast.adopt import checkpoints
from training.data import preparation
from training.learning import start
from training.options import Options, parse

SIZES: dict[str, Any] = {"depth": 1, "heads": 2, "mlp_dim": 16, "dim_head": 8, "dim": 32, "down_sample_input": (1, 2)}
CLASSES = tuple(sorted(HERTZ))
FRONT_END = LogMel(4000, 8, fft_size=256, hop=125, frames=8, mean=-5.0, deviation=3.0)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones"))


def model(classes: int = 3, **more: Any) -> SepTr:
    torch.manual_seed(1)
    return SepTr(**{**SIZES, "input_size": (8, 8), "num_classes": classes, **more})


def checkpoint(path: Path, classes: tuple[str, ...] = CLASSES, front_end: Any = FRONT_END, **more: Any) -> Path:
    channels, *size = front_end.size
    checkpoints.save(
        path, model(len(classes), channels=channels, input_size=tuple(size), **more), classes, front_end.settings
    )
    return path


def options(path: Path, *more: object) -> Options:
    return parse(["--from", str(path), *map(str, more)])


def loaded(path: Path, classes: tuple[str, ...] = CLASSES, **more: Any) -> tuple[reference.SepTr, str]:
    torch.manual_seed(2)
    into = reference.SepTr(**{**SIZES, "input_size": (8, 8), "num_classes": len(classes), **more})
    return into, start.load(start.read(path), into, classes)


def is_as_saved(found: reference.SepTr, saved: reference.SepTr, head: bool) -> bool:
    state = saved.state_dict()
    return all(
        torch.equal(value, state[key]) for key, value in found.state_dict().items() if head or not key.startswith("fc.")
    )


def test_a_checkpoint_decides_model_and_front_end(tmp_path: Path) -> None:
    found = options(checkpoint(tmp_path / "c.safetensors", dropout_tr=0.2))
    assert (found.depth, found.dim, found.heads, found.dim_head, found.mlp_dim) == (1, 32, 2, 8, 16)
    assert (found.pool, found.mels, found.frames, found.rate, found.seconds) == ((1, 2), 8, 8, 4000, 0.25)
    assert found.dropout == 0.2
    assert options(tmp_path / "c.safetensors", "--dropout", 0, "--dim", 32).dropout == 0


def test_clips_may_be_longer(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c.safetensors")
    by_time, by_frames = options(path, "--seconds", 0.5), options(path, "--frames", 16)
    assert (by_time.frames, by_time.seconds) == (by_frames.frames, by_frames.seconds) == (16, 0.5)
    settings = start.front_end(start.read(path), (8, 16))
    assert settings == {**FRONT_END.settings, "frames": 16}
    found, said = loaded(path, input_size=(8, 16))
    wanted = model()
    wanted.resize_positions((8, 16))
    assert is_as_saved(found, wanted, head=True)
    assert "positions interpolated in 1 of them" in said


CONTRADICTIONS = [
    (["--depth", 2], "depth: expected 1, that of .*, got 2"),
    (["--rate", 8000], "rate: expected 4000"),
    (["--pool", 2, 2], r"pool: expected \(1, 2\)"),
    (["--frames", 16, "--seconds", 0.25], "seconds: expected 0.5 for 16 frames of the front-end of .*, got 0.25"),
]


@pytest.mark.parametrize(("more", "message"), CONTRADICTIONS, ids=[case[1].split(":")[0] for case in CONTRADICTIONS])
def test_what_contradicts_a_checkpoint_is_named(
    more: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        start.completed({**_given(more), "from_": checkpoint(tmp_path / "c.safetensors")})
    with pytest.raises(SystemExit):
        options(tmp_path / "c.safetensors", *more)
    assert ": expected" in capsys.readouterr().err


def _given(more: list[object]) -> dict[str, Any]:
    if len(more) == 4:
        return {**_given(more[:2]), **_given(more[2:])}
    name, *values = more
    return {str(name).strip("-"): tuple(values) if len(values) > 1 else values[0]}


@pytest.mark.parametrize(
    ("classes", "head"),
    [(CLASSES, True), (("low", "high", "middle"), False), (("cat", "dog", "rat"), False), (("high", "low"), False)],
    ids=["the same", "in another order", "others", "fewer"],
)
def test_the_head_is_taken_where_the_classes_are_the_same(classes: tuple[str, ...], head: bool, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "c.safetensors")
    found, said = loaded(path, classes)
    assert is_as_saved(found, model(), head)
    assert not torch.equal(found.fc.weight[:2], model().fc.weight[:2]) or head  # type: ignore[index]
    assert ("the head too" in said) == head
    assert (f"the head is new, for {len(classes)} classes" in said) != head


WRAPPED = {
    "plain": lambda state: state,
    "of DistributedDataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "of Lightning": lambda state: {"epoch": 3, "state_dict": {f"model.{key}": value for key, value in state.items()}},
    "compiled": lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
    "compiled around DistributedDataParallel": lambda state: {f"_orig_mod.module.{k}": x for k, x in state.items()},
    "in half": lambda state: {key: value.half().float().half() for key, value in state.items()},
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED.keys())
def test_state_dicts_of_the_original(wrapped: Any, tmp_path: Path) -> None:
    saved = model().half().float() if wrapped is WRAPPED["in half"] else model()
    torch.save(wrapped(saved.state_dict()), tmp_path / "original.pt")
    found, said = loaded(tmp_path / "original.pt")
    assert is_as_saved(found, saved, head=True)
    assert "no names of classes, as many as these" in said
    other, said = loaded(tmp_path / "original.pt", ("a", "b"))
    assert is_as_saved(other, saved, head=False)
    assert "the head is new, for 2 classes" in said
    assert options(tmp_path / "original.pt", "--dim", 48).dim == 48


def test_safetensors_and_folders_of_the_hub(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved = model()
    save_file(saved.state_dict(), tmp_path / "plain.safetensors")
    assert is_as_saved(loaded(tmp_path / "plain.safetensors")[0], saved, head=True)
    hub.SepTr(**{**SIZES, "input_size": (8, 8), "num_classes": 3, "first_axis": "width"}).save_pretrained(
        tmp_path / "hub"
    )
    found = options(tmp_path / "hub", "--rate", 4000)
    assert (found.depth, found.mels, found.frames, found.pool, found.rate) == (1, 8, 8, (1, 2), 4000)
    assert (start.read(tmp_path / "hub").arguments or {})["first_axis"] == "width"


def _pickled_code(path: Path) -> None:
    torch.save({"weights": Path("x")}, path)


WRONG: dict[str, tuple[str, Any, str]] = {
    "no file": ("gone.pt", lambda path: None, "there is no"),
    "a pickle with code": ("c.pt", _pickled_code, r"from: expected model.state_dict\(\) saved"),
    "no tensors": (
        "c.pt",
        lambda path: torch.save({"a": 1}, path),
        "expected a state dict, names and tensors, in .*, got a",
    ),
    "broken": ("c.pt", lambda path: path.write_bytes(b"PK\x03\x04"), r"expected model.state_dict\(\) saved"),
    "none of both": ("c.pt", lambda path: path.write_bytes(b"PK"), "from: expected a checkpoint, safetensors or what"),
    "broken safetensors": ("c.safetensors", lambda path: path.write_bytes(b"PK"), "readable safetensors file"),
    "an empty folder": ("c", lambda path: path.mkdir(), "expected config.json and model.safetensors"),
}


@pytest.mark.parametrize(("name", "make", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_weights_is_named(name: str, make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        start.read(tmp_path / name)


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "c.pt")
    for more, message in (
        ({"depth": 2}, "missing, like transformer.1"),
        ({"dim": 16}, "of another shape, like cls_token"),
    ):
        with pytest.raises(ValueError, match=f"from: expected the weights of this model in .*{message}"):
            loaded(tmp_path / "c.pt", **more)
    torch.save(model(depth=2).state_dict(), tmp_path / "d.pt")
    with pytest.raises(ValueError, match=r"too many, like transformer\.1"):
        loaded(tmp_path / "d.pt")


def test_front_ends_that_do_not_fit(tmp_path: Path) -> None:
    turned = ComplexSpectrogram(4000, fft_size=32, hop=125, frames=8, time_first=True)
    path = checkpoint(tmp_path / "turned", front_end=turned)
    with pytest.raises(ValueError, match="frames along the width"):
        start.completed({"from_": path})
    path = checkpoint(tmp_path / "complex", front_end=ComplexSpectrogram(4000, fft_size=32, hop=125, frames=8))
    with pytest.raises(ValueError, match="input_size: expected 17 along the height"):
        start.completed({"from_": path, "mels": 16})


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = model().state_dict()
    state["transformer.0.pos_embedding_h"][0, 0, 1, 2] = float("nan")
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"from: expected finite weights in .*transformer\.0\.pos_embedding_h"):
        loaded(tmp_path / "c.pt")


def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(checkpoint(tmp_path / "septr.safetensors"), "--out", tmp_path)
    assert "out: expected another folder than that of the weights" in capsys.readouterr().err


def test_a_start_that_fails_begins_no_run(tones: Path, tmp_path: Path) -> None:
    """The folder may be given again once the options are right."""
    torch.save(model().state_dict(), tmp_path / "c.pt")
    for more, message in (
        ((), "its sizes are given as options"),
        (("--frequency-width", 12), "frequency_width: expected 1 up to bins, 8"),
    ):
        command = arguments(tones, tmp_path / "run", "--from", tmp_path / "c.pt", "--depth", 2 - len(more) // 2, *more)
        with pytest.raises(ValueError, match=message):
            preparation.begin(parse(command), torch.device("cpu"))
        assert not (tmp_path / "run").exists()


def test_freezing_needs_weights(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--freeze"])
    assert "freeze: expected weights to start from" in capsys.readouterr().err


def only(out: Path, *more: object) -> list[object]:
    """The command line of a run whose model the start decides."""
    return [
        "--out",
        out,
        "--batch",
        8,
        "--epochs",
        2,
        "--mixup",
        0,
        "--noise",
        0,
        "--frequency-masks",
        0,
        "--time-masks",
        0,
        "--cpu",
        *more,
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_head_alone_is_trained(processes: int, tones: Path, tmp_path: Path) -> None:
    """From a complex spectrogram of three channels, over a stop; all but the head keep their bits."""
    front_end = ComplexSpectrogram(4000, fft_size=32, hop=125, frames=8)
    path = checkpoint(tmp_path / "c.safetensors", ("cat", "dog"), front_end, first_axis="width", down_sample_input=None)
    command = [
        str(part) for part in only(tmp_path / "run", "--data", tones, "--from", path, "--freeze", "--parallel", "fsdp2")
    ]
    assert training_runs.run(command, ("terminate", 5), processes) == 128 + 15
    path.rename(tmp_path / "moved")  # The run holds what it needs of it.
    assert training_runs.run(command, None, processes) == 0
    (tmp_path / "moved").rename(path)
    bundle = checkpoints.load(tmp_path / "run" / "septr.safetensors")
    assert bundle.classes == CLASSES
    assert bundle.front_end.settings == front_end.settings
    saved = checkpoints.load(path).model
    assert is_as_saved(bundle.model, saved, head=False)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["options"]["freeze"] is True
    first, last = (results["models"]["septr"]["history"][place]["train_loss"] for place in (0, -1))
    assert last < first


def test_fine_tuning_begins_where_the_weights_left_off(tones: Path, tmp_path: Path) -> None:
    """A step of no size changes nothing: the results are those of the weights that were loaded."""
    assert training_runs.run(arguments(tones, tmp_path / "first", "--mixup", 0)) == 0
    first = tmp_path / "first" / "septr.safetensors"
    command = [
        str(part) for part in only(tmp_path / "second", "--data", tones, "--from", first, "--learning-rate", 1e-30)
    ]
    assert training_runs.run([*command, "--weight-decay", "0", "--compare"]) == 0
    tests = [json.loads((tmp_path / name / "results.json").read_text())["models"] for name in ("first", "second")]
    for name in ("septr", "reference"):
        assert tests[1][name]["test"]["confusion"] == tests[0]["septr"]["test"]["confusion"]
        assert tests[1][name]["test"]["loss"] == pytest.approx(tests[0]["septr"]["test"]["loss"], rel=1e-5)
    assert (
        checkpoints.load(tmp_path / "second" / "septr.safetensors").front_end.settings
        == checkpoints.load(first).front_end.settings
    )
