"""`SepTr` with `from_pretrained`, `save_pretrained` and `push_to_hub`; needs the extra `hub`."""

from __future__ import annotations

from typing import Any

from septr_fast import model

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise ImportError("septr_fast.hub needs the package huggingface_hub: pip install 'septr_fast[hub]'") from error


class SepTr(
    model.SepTr,
    PyTorchModelHubMixin,
    library_name="septr_fast",
    pipeline_tag="audio-classification",
    paper_url="https://arxiv.org/abs/2203.09581",
):
    """`septr_fast.SepTr` as a model of the Hugging Face Hub: a folder of config.json and model.safetensors.

    The config holds the constructor's arguments as they were passed; weights are loaded strictly.

    Example:
        >>> import tempfile
        >>> model = SepTr(input_size=(16, 24), num_classes=10, depth=1, heads=2, dim_head=8, dim=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     same = SepTr.from_pretrained(folder, strict=True)
    """

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **arguments: Any) -> SepTr:
        return super()._from_pretrained(strict=strict, **arguments)
