"""`SepTr` with `from_pretrained`, `save_pretrained` and `push_to_hub`; needs the extra `hub`."""

from __future__ import annotations

from typing import Any, cast

from septr_fast import model

try:
    from huggingface_hub import PyTorchModelHubMixin
    from safetensors import SafetensorError
except ImportError as error:
    raise ImportError(
        "septr_fast.hub needs the packages huggingface_hub and safetensors: pip install 'septr_fast[hub]'"
    ) from error


class SepTr(
    model.SepTr,
    PyTorchModelHubMixin,
    library_name="septr_fast",
    pipeline_tag="audio-classification",
    paper_url="https://arxiv.org/abs/2203.09581",
):
    """`septr_fast.SepTr` as a model of the Hugging Face Hub: a folder of config.json and model.safetensors.

    The config holds the constructor's arguments as they were passed; weights are loaded strictly. An `input_size`
    given to `from_pretrained` that is not the config's resizes the positions, once the weights are loaded. Weights that
    cannot be read are a `ValueError`.

    Example:
        >>> import tempfile
        >>> model = SepTr(input_size=(16, 24), num_classes=10, depth=1, heads=2, dim_head=8, dim=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     same = SepTr.from_pretrained(folder, strict=True)
    """

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, config: dict[str, Any] | None = None, **arguments: Any) -> SepTr:
        own, wanted = (source.get("input_size") for source in (config or {}, arguments))
        if own is not None:
            arguments["input_size"] = own
        try:
            loaded: SepTr = super()._from_pretrained(strict=strict, **arguments)
        except SafetensorError as error:
            where = arguments.get("model_id")
            raise ValueError(f"pretrained model: expected readable weights, got {where}: {error}") from error
        if own is not None and wanted is not None:
            loaded.resize_positions(wanted)
        return loaded

    def resize_positions(self, input_size: model.Size) -> None:
        """See `septr_fast.SepTr.resize_positions`; the config follows."""
        super().resize_positions(input_size)
        config = cast(dict[str, Any], self._hub_mixin_config)
        self._hub_mixin_config = {**config, "input_size": list(self.blocks[0].input_size)}
