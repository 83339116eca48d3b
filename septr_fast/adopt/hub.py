"""`SepTr` with `from_pretrained`, `save_pretrained` and `push_to_hub`; needs the extra `hub`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from septr_fast import model
from septr_fast.adopt.description import check_alike, read_arguments
from septr_fast.reference import check_classes, size_pair

try:
    from huggingface_hub import PyTorchModelHubMixin
    from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
    from safetensors import SafetensorError
    from safetensors.torch import save_file
except ImportError as error:
    raise ImportError(
        "septr_fast.hub needs the packages huggingface_hub and safetensors: pip install 'septr_fast[hub]'"
    ) from error

_logger = logging.getLogger(__name__)

_RECONFIGURED: dict[str, Callable[[Any], Any]] = {
    "input_size": lambda size: size_pair(size, "input_size"),
    "num_classes": check_classes,
}
"""Arguments that a model may be given anew once its weights are loaded, and how they are read."""


class SepTr(
    model.SepTr,
    PyTorchModelHubMixin,
    library_name="septr_fast",
    pipeline_tag="audio-classification",
    paper_url="https://arxiv.org/abs/2203.09581",
):
    """`septr_fast.SepTr` as a model of the Hugging Face Hub: a folder of config.json and model.safetensors.

    The config describes the model as it is when it is saved, whatever it was built as: the constructor's arguments.
    `save_pretrained` and `push_to_hub` raise a `ValueError` for a model that they cannot describe, naming the part of
    it that was changed, and write nothing; of hooks, which are not saved, they warn. Of a class of your own the config
    holds the arguments of its constructor.

    Weights are loaded strictly. An `input_size` or `num_classes` given to `from_pretrained` that is not the config's
    resizes the positions or gives a new head, once the weights are loaded; a line of the log says so. Weights that
    cannot be read are a `ValueError`.

    Example:
        >>> import tempfile
        >>> model = SepTr(input_size=(16, 24), num_classes=10, depth=1, heads=2, dim_head=8, dim=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     same = SepTr.from_pretrained(folder)
        ...     tuned = SepTr.from_pretrained(folder, num_classes=7)
        >>> tuned.fc
        Linear(in_features=16, out_features=7, bias=True)
    """

    def save_pretrained(self, *arguments: Any, **options: Any) -> str | None:
        """See `huggingface_hub.PyTorchModelHubMixin.save_pretrained`; the config is that of the model as it is."""
        self._hub_mixin_config = self._described()
        saved: str | None = super().save_pretrained(*arguments, **options)
        return saved

    def _described(self) -> dict[str, Any]:
        """The arguments that the constructor of this class takes, as the model is now."""
        config = dict(cast(dict[str, Any], self._hub_mixin_config or {}))
        forced = config.get("formulation")
        if isinstance(forced, list | tuple) and list(forced) != [
            name for block in self.transformer for name in getattr(block, "formulation", ())
        ]:
            config["formulation"] = None  # Blocks were taken out or put in.
        now = read_arguments(self)
        built = read_arguments(self._built_by(config))
        taken = {*config, *self._hub_mixin_init_parameters}
        config |= {name: value for name, value in now.items() if name in taken and value != built[name]}
        check_alike(self._built_by(config), self)
        return config

    def _built_by(self, config: dict[str, Any]) -> SepTr:
        """What `from_pretrained` makes of `config`, without memory."""
        known = self._hub_mixin_init_parameters
        rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        arguments: dict[str, Any] = {
            name: self._decode_arg(known[name].annotation, value) if name in known else value
            for name, value in config.items()
            if name in known or rest
        }
        try:
            with torch.device("meta"):
                return type(self)(**arguments)
        except (TypeError, ValueError) as error:
            name = type(self).__name__
            raise ValueError(f"model: expected a {name} that its configuration makes again: {error}") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        """Every tensor by its own name, shared ones again."""
        state = {key: value.detach().cpu().clone().contiguous() for key, value in self.state_dict().items()}
        save_file(state, save_directory / SAFETENSORS_SINGLE_FILE, {"format": "pt"})

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, config: dict[str, Any] | None = None, **arguments: Any) -> SepTr:
        own = config or {}
        changed = {
            name: arguments[name]
            for name, read in _RECONFIGURED.items()
            if name in own and name in arguments and read(arguments[name]) != read(own[name])
        }
        arguments |= {name: own[name] for name in changed}
        try:
            loaded: SepTr = super()._from_pretrained(strict=strict, **arguments)
        except SafetensorError as error:
            where = arguments.get("model_id")
            raise ValueError(f"pretrained model: expected readable weights, got {where}: {error}") from error
        if "input_size" in changed:
            loaded.resize_positions(changed["input_size"])
            _logger.warning("positions are interpolated to the input size %s", loaded.blocks[0].input_size)
        if "num_classes" in changed:
            loaded.reset_classifier(changed["num_classes"])
            _logger.warning("fc is new, for %d classes; all other weights are loaded", int(changed["num_classes"]))
        return loaded
