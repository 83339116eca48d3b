"""SepTr in Transformers: the Auto classes, saving and loading, `Trainer`, `pipeline`, checkpoints both ways."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.compare import relative_error

if not transformers.utils.is_torch_available():
    pytest.skip("PyTorch 2.6: Transformers 5", allow_module_level=True)

from septr_fast import LogMel, SepTr, checkpoints, reference
from septr_fast.transformers import (
    SepTrConfig,
    SepTrFeatureExtractor,
    SepTrForAudioClassification,
    SepTrModel,
    from_checkpoint,
    from_original,
    to_checkpoint,
)

TINY: dict[str, Any] = {
    "input_size": (8, 12), "depth": 2, "heads": 2, "mlp_dim": 16, "dim_head": 8, "dim": 16,
}  # fmt: skip
FRONT_END = LogMel(1000, 8, fft_size=64, hop=16, frames=12).settings
LABELS = {0: "low", 1: "high", 2: "noise"}
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def config(**changes: Any) -> SepTrConfig:
    labels = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    return SepTrConfig(**{**TINY, **labels, **changes})


def plain(model: SepTrForAudioClassification) -> reference.SepTr:
    """The reference with the weights of a model."""
    found = reference.SepTr(num_classes=model.num_labels, **model.config.arguments())
    state = {
        name.removeprefix("septr.model.").replace("classifier.", "fc."): x for name, x in model.state_dict().items()
    }
    found.load_state_dict(state)
    return found


def clips(count: int, seconds: float = 0.2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, int(1000 * seconds)).astype(np.float32) for _ in range(count)]


def test_logits_and_gradients_are_those_of_the_reference() -> None:
    model = SepTrForAudioClassification(config()).double()
    expected, x = plain(model).double(), torch.randn(2, 1, 8, 12, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    found = model(input_values=x, labels=labels)
    wanted = expected(x)
    assert relative_error(found.logits, wanted) < 1e-10
    assert relative_error(found.loss, torch.nn.functional.cross_entropy(wanted, labels)) < 1e-10
    found.loss.backward()
    torch.nn.functional.cross_entropy(wanted, labels).backward()
    assert relative_error(model.classifier.weight.grad, expected.fc.weight.grad) < 1e-10


def test_saved_and_loaded_by_the_auto_classes(tmp_path: Path) -> None:
    model, extractor = SepTrForAudioClassification(config()).eval(), SepTrFeatureExtractor(FRONT_END)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    program = f"""
import json, torch
import septr_fast.transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
folder = {str(tmp_path)!r}
model = AutoModelForAudioClassification.from_pretrained(folder).eval()
extractor, torch_seed = AutoFeatureExtractor.from_pretrained(folder), torch.manual_seed(3)
print(json.dumps([
    type(AutoConfig.from_pretrained(folder)).__name__, type(extractor).__name__, extractor.sampling_rate,
    type(AutoModel.from_pretrained(folder)).__name__, model(torch.ones(1, 1, 8, 12)).logits.tolist(),
    model.config.id2label["0" if "0" in model.config.id2label else 0],
]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *names, logits, label = json.loads(done.stdout.splitlines()[-1])
    assert names == ["SepTrConfig", "SepTrFeatureExtractor", 1000, "SepTrModel"]
    assert label == "low"
    assert relative_error(torch.tensor(logits), model(torch.ones(1, 1, 8, 12)).logits) < 1e-5


def test_the_base_model_takes_the_weights_of_a_classifier(tmp_path: Path) -> None:
    model = SepTrForAudioClassification(config()).eval()
    model.save_pretrained(tmp_path)
    base = SepTrModel.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 1, 8, 12)
    torch.testing.assert_close(base(x).pooler_output, model.septr.pooled(x))
    base.save_pretrained(tmp_path / "base")
    again = SepTrForAudioClassification.from_pretrained(tmp_path / "base").eval()
    torch.testing.assert_close(again.septr.pooled(x), model.septr.pooled(x))


def test_a_new_head_for_other_labels(tmp_path: Path) -> None:
    model = SepTrForAudioClassification(config()).eval()
    model.save_pretrained(tmp_path)
    other = SepTrForAudioClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True).eval()
    x = torch.randn(2, 1, 8, 12)
    assert other(x).logits.shape == (2, 7)
    assert torch.isfinite(other(x).logits).all()
    torch.testing.assert_close(other.septr.pooled(x), model.septr.pooled(x))


def test_defaults_are_those_of_the_model() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(SepTr).parameters.items()}
    found = SepTrConfig().arguments()
    found["input_size"] = tuple(found["input_size"])
    assert found == {name: defaults[name] for name in found}


def test_initialization_is_that_of_the_constructor() -> None:
    model = SepTrForAudioClassification(config(dim=64))
    fresh = SepTr(num_classes=3, **config(dim=64).arguments())
    for own, wanted in zip(model.septr.model.parameters(), fresh.parameters(), strict=False):
        assert own.shape == wanted.shape
        if own.numel() > 500:
            assert 0.8 < float(own.std() / wanted.std()) < 1.25


PROBLEMS: dict[str, tuple[dict[str, Any], torch.Tensor, str]] = {
    "one label": ({}, torch.tensor([0, 2]), "single_label_classification"),
    "several labels": ({}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), "multi_label_classification"),
    "a number": (
        {"num_labels": 1, "id2label": {0: "age"}, "label2id": {"age": 0}},
        torch.tensor([0.3, 2.0]),
        "regression",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_losses(problem: str) -> None:
    changes, labels, kind = PROBLEMS[problem]
    model = SepTrForAudioClassification(config(**changes))
    found = model(torch.randn(2, 1, 8, 12), labels=labels)
    logits = found.logits.squeeze(-1)
    wanted = {
        "single_label_classification": lambda: torch.nn.functional.cross_entropy(logits, labels),
        "multi_label_classification": lambda: torch.nn.functional.binary_cross_entropy_with_logits(logits, labels),
        "regression": lambda: torch.nn.functional.mse_loss(logits, labels),
    }[kind]()
    torch.testing.assert_close(found.loss, wanted)
    assert model.config.problem_type == kind


@pytest.mark.parametrize("pool", [None, (2, 3)])
def test_hidden_states_and_attentions(pool: tuple[int, int] | None) -> None:
    model = SepTrForAudioClassification(config(down_sample_input=pool)).eval()
    height, width = (8, 12) if pool is None else (4, 4)
    x = torch.randn(2, 1, 8, 12)
    found = model(x, output_hidden_states=True, output_attentions=True)
    assert [tuple(one.shape) for one in found.hidden_states] == 2 * [(2, 1 + height * width, 16)]
    assert [tuple(one.shape) for one in found.attentions] == 2 * [
        (2, width, 2, 1 + height, 1 + height), (2, height, 2, 1 + width, 1 + width),
    ]  # fmt: skip
    assert all(torch.allclose(one.sum(-1), torch.ones(())) for one in found.attentions)
    torch.testing.assert_close(found.logits, model(x).logits)
    features = model.septr.model.forward_features(x)
    torch.testing.assert_close(found.hidden_states[0][:, 0], features[0].cls_token)
    assert model(x, return_dict=False)[0].shape == (2, 3)
    assert model.septr(x[:, 0]).last_hidden_state.shape == (2, 1 + height * width, 16)


def test_padded_recordings_are_as_alone() -> None:
    model, extractor = SepTrForAudioClassification(config()).eval(), SepTrFeatureExtractor(FRONT_END)
    short, long = clips(1, 0.1)[0], clips(1, 0.2)[0]
    both = extractor([short, long], sampling_rate=1000, return_tensors="pt")
    assert both["input_values"].shape == (2, 1, 8, 12)
    assert both["attention_mask"].sum(-1).tolist() == [7, 12]
    alone = extractor(short, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**both).logits[:1], model(**alone).logits)


def test_what_is_no_recording_is_refused() -> None:
    extractor = SepTrFeatureExtractor(FRONT_END)
    with pytest.raises(ValueError, match="sampling_rate: expected 1000, got 16000"):
        extractor(clips(1)[0], sampling_rate=16000)
    with pytest.raises(ValueError, match="raw_speech: expected mono"):
        extractor([np.zeros((2, 100))])
    assert set(extractor(clips(2), return_attention_mask=False)) == {"input_values"}


def test_gradient_checkpointing() -> None:
    model, x = SepTrForAudioClassification(config()), torch.randn(2, 1, 8, 12)
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert all(block.recompute for block in model.septr.model.blocks)
    model(x, labels=torch.tensor([0, 1])).loss.backward()
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_checkpoints_both_ways(activation: str, tmp_path: Path) -> None:
    model = SepTr(num_classes=3, **TINY).eval()
    checkpoints.save(tmp_path / "first.safetensors", model, list("abc"), FRONT_END, activation)
    found, extractor = from_checkpoint(tmp_path / "first.safetensors")
    x = extractor(clips(2), return_tensors="pt")["input_values"]
    torch.testing.assert_close(found(x).logits, model(x))
    assert [found.config.id2label[number] for number in range(3)] == list("abc")
    to_checkpoint(tmp_path / "second.safetensors", found, extractor)
    bundle = checkpoints.load(tmp_path / "second.safetensors")
    assert bundle.classes == ("a", "b", "c")
    assert bundle.activation == activation
    assert bundle.front_end.settings == checkpoints.load(tmp_path / "first.safetensors").front_end.settings
    torch.testing.assert_close(bundle.model(x), model(x))


def test_the_original_s_weights() -> None:
    original, x = reference.SepTr(num_classes=3, **TINY).eval(), torch.randn(2, 1, 8, 12)
    torch.testing.assert_close(from_original(original.state_dict(), **TINY)(x).logits, original(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        from_original(original.state_dict(), **{**TINY, "depth": 3})


class Clips(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Tones of two pitches and noise."""

    def __init__(self, extractor: SepTrFeatureExtractor, count: int) -> None:
        rng, times = np.random.default_rng(1), np.arange(200) / 1000
        self.items = []
        for number in range(count):
            label = number % 3
            wave = rng.normal(0, 0.3, 200) if label == 2 else np.sin(2 * np.pi * (60, 300)[label] * times + number)
            [values] = extractor(wave, return_attention_mask=False)["input_values"]
            self.items.append({"input_values": values, "labels": label})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def arguments(folder: Path, **changes: Any) -> Any:
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder), "num_train_epochs": 4, "per_device_train_batch_size": 6, "learning_rate": 3e-3,
            "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "report_to": [],
            "metric_for_best_model": "accuracy", "use_cpu": True, "disable_tqdm": True, "seed": 3, **changes,
        }
    )  # fmt: skip


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def test_trainer_trains_saves_resumes_and_loads_the_best(tmp_path: Path) -> None:
    extractor = SepTrFeatureExtractor(FRONT_END)
    train, test = Clips(extractor, 48), Clips(extractor, 12)
    given = {"train_dataset": train, "eval_dataset": test, "compute_metrics": accuracy}
    torch.manual_seed(0)
    start = SepTrForAudioClassification(config())
    start.save_pretrained(tmp_path / "start")
    trainer = transformers.Trainer(start, arguments(tmp_path / "whole"), **given)
    trainer.train()
    whole = trainer.evaluate()["eval_accuracy"]
    assert whole > 0.6
    again = SepTrForAudioClassification.from_pretrained(tmp_path / "start")
    half = transformers.Trainer(again, arguments(tmp_path / "parts", num_train_epochs=4, max_steps=16), **given)
    half.train()
    resumed = transformers.Trainer(
        SepTrForAudioClassification.from_pretrained(tmp_path / "start"), arguments(tmp_path / "parts"), **given
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == trainer.state.global_step == 32
    trainer.save_model(tmp_path / "best")
    best = SepTrForAudioClassification.from_pretrained(tmp_path / "best")
    kept = dict(trainer.model.state_dict())
    assert all(torch.equal(x, kept[name]) for name, x in best.state_dict().items())


def test_pipeline(tmp_path: Path) -> None:
    model, extractor = SepTrForAudioClassification(config()).eval(), SepTrFeatureExtractor(FRONT_END)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    ask = transformers.pipeline("audio-classification", model=str(tmp_path), device="cpu")
    clip = clips(1)[0]
    answers = ask({"raw": clip, "sampling_rate": 1000}, top_k=3)
    wanted = model(**extractor(clip, return_tensors="pt")).logits.softmax(-1)[0]
    assert {one["label"] for one in answers} == set(LABELS.values())
    for one in answers:
        assert one["score"] == pytest.approx(float(wanted[model.config.label2id[one["label"]]]), rel=1e-4)


def set_in(model: SepTrForAudioClassification, name: str, value: Any) -> None:
    """Of every attention or norm, whichever has an attribute of this name."""
    for module in model.septr.model.transformer.modules():
        if hasattr(module, name):
            setattr(module, name, value)


class Otherwise(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def first(model: SepTrForAudioClassification) -> Any:
    return model.septr.model.transformer[0].transformer_h


DESCRIBED: dict[str, Any] = {
    "a block less": lambda m: m.septr.model.transformer.__delitem__(1),
    "another axis": lambda m: set_in(m, "first_axis", "width"),
    "other heads": lambda m: (set_in(m, "heads", 4), set_in(m, "dim_head", 4)),
    "another size": lambda m: m.septr.model.resize_positions((8, 20)),
    "other labels": lambda m: setattr(m, "classifier", torch.nn.Linear(16, 5)),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "activation": (lambda m: first(m).layers[0][1].fn.net.__setitem__(1, torch.nn.ReLU()), "is ReLU, not GELU"),
    "eps": (lambda m: set_in(m, "eps", 1.0), "eps of .*norm is 1.0"),
    "bias": (lambda m: setattr(first(m).layers[0][0].fn, "to_qkv", torch.nn.Linear(16, 48)), "to_qkv has a bias"),
    "classifier": (lambda m: setattr(m, "classifier", Otherwise(16, 3)), "classifier is Otherwise"),
    "layers": (
        lambda m: setattr(m, "classifier", torch.nn.Sequential(torch.nn.Linear(16, 3))),
        "classifier is Sequential",
    ),
    "width": (lambda m: setattr(m, "classifier", torch.nn.Linear(8, 3)), "classifier takes 8 values, not 16"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_model_is_saved_as_it_is_by_now(name: str, tmp_path: Path) -> None:
    """In a folder of Transformers and in a checkpoint of this package."""
    model = SepTrForAudioClassification(config()).eval()
    DESCRIBED[name](model)
    frames = 20 if name == "another size" else 12
    x = torch.randn(2, 1, 8, frames)
    model.save_pretrained(tmp_path / "folder")
    found = SepTrForAudioClassification.from_pretrained(tmp_path / "folder")
    front_end = {**FRONT_END, "frames": frames}
    to_checkpoint(tmp_path / "one.safetensors", model, SepTrFeatureExtractor(front_end))
    loaded = checkpoints.load(tmp_path / "one.safetensors").model
    with torch.no_grad():
        expected = model(x).logits
        assert torch.equal(found(x).logits, expected)
        assert relative_error(loaded(x), expected) < 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_configuration_cannot_say_is_not_saved(name: str, tmp_path: Path) -> None:
    change, reason = REFUSED[name]
    model = SepTrForAudioClassification(config())
    change(model)
    with pytest.raises(ValueError, match=reason):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match=reason):
        to_checkpoint(tmp_path / "one.safetensors", model, SepTrFeatureExtractor(FRONT_END))
    assert not list(tmp_path.iterdir())
    # Weights that are given are somebody's who knows.
    model.save_pretrained(tmp_path / "folder", state_dict=model.state_dict())


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    sizes = {name: np.int64(value) for name, value in TINY.items() if name != "input_size"}
    model = SepTrForAudioClassification(config(**sizes, dropout_tr=np.float32(0.5)))
    model.save_pretrained(tmp_path)
    extractor = SepTrFeatureExtractor({**FRONT_END, "hop": np.int64(16), "floor": np.float32(0.5)})
    extractor.save_pretrained(tmp_path)
    assert SepTrConfig.from_pretrained(tmp_path).dropout_tr == 0.5
    assert SepTrFeatureExtractor.from_pretrained(tmp_path).front_end["floor"] == 0.5
