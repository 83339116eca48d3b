"""Between this package's checkpoints, the original's state dicts, and models of Transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from septr_fast.adopt import checkpoints
from septr_fast.adopt.description import constructor_arguments
from septr_fast.model import SepTr
from septr_fast.transformers.configuration import SepTrConfig
from septr_fast.transformers.feature_extraction import SepTrFeatureExtractor
from septr_fast.transformers.modeling import SepTrForAudioClassification

_PROBLEMS = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification"}


def from_checkpoint(path: str | os.PathLike[str]) -> tuple[SepTrForAudioClassification, SepTrFeatureExtractor]:
    """The model and the feature extractor of a checkpoint that `septr_fast.checkpoints.save` wrote.

    Raises:
        ValueError: as `septr_fast.checkpoints.load` does.
    """
    bundle = checkpoints.load(path)
    labels = dict(enumerate(bundle.classes))
    config = SepTrConfig(
        **_arguments(bundle.model),
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type=_PROBLEMS[bundle.activation],
        lengths_axis="height" if bundle.front_end.time_first else "width",
    )
    return _filled(config, bundle.model.state_dict()), SepTrFeatureExtractor(bundle.front_end.settings)


def to_checkpoint(
    path: str | os.PathLike[str], model: SepTrForAudioClassification, feature_extractor: SepTrFeatureExtractor
) -> None:
    """Write a checkpoint of this package, which `septr-fast predict` and `septr_fast.checkpoints.load` read.

    Raises:
        ValueError: for regression, as `SepTrForAudioClassification.describe` or as `septr_fast.checkpoints.save` does.
    """
    problem = model.config.problem_type
    if problem == "regression":
        raise ValueError("model: expected one of classes, got one for regression")
    model.describe()
    plain = SepTr(num_classes=model.num_labels, **model.config.arguments())
    plain.load_state_dict({_own(name): x for name, x in model.state_dict().items()})
    names = [model.config.id2label[number] for number in range(model.num_labels)]
    activation = "sigmoid" if problem == "multi_label_classification" else "softmax" if model.num_labels > 1 else None
    checkpoints.save(path, plain, names, feature_extractor.front_end, activation)


def from_original(state_dict: Mapping[str, Tensor], **config: Any) -> SepTrForAudioClassification:
    """A model with the weights of the original, or of `septr_fast.SepTr`, whose keys are the same.

    Args:
        state_dict: of the whole model with its head.
        config: arguments of `SepTrConfig`, among them those that the original was made with.

    Raises:
        RuntimeError: where keys or shapes do not fit.
    """
    labels = state_dict["fc.weight"].shape[0]
    return _filled(SepTrConfig(**{"num_labels": labels, **config}), state_dict)


def _arguments(model: SepTr) -> dict[str, Any]:
    left_out = ("num_classes", "return_cls")
    return {name: value for name, value in constructor_arguments(model).items() if name not in left_out}


def _filled(config: SepTrConfig, state: Mapping[str, Tensor]) -> SepTrForAudioClassification:
    model = SepTrForAudioClassification(config)
    model.load_state_dict({_their(name): x for name, x in state.items()})
    return model.eval()


def _their(name: str) -> str:
    """The key in a model of Transformers of a key of `SepTr`."""
    return name.replace("fc.", "classifier.") if name.startswith("fc.") else f"septr.model.{name}"


def _own(name: str) -> str:
    """The key of `SepTr` of a key in a model of Transformers."""
    return name.replace("classifier.", "fc.") if name.startswith("classifier.") else name.removeprefix("septr.model.")
