"""The configuration of a SepTr for Transformers."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig

from septr_fast.model import Size
from septr_fast.reference import as_python, size_pair


class SepTrConfig(PretrainedConfig):  # type: ignore[misc]
    """Arguments of `septr_fast.SepTr`, and how spectrograms of varying length come.

    Labels are those of every configuration: `num_labels`, `id2label`, `label2id`, `problem_type`.

    Args:
        channels: of a spectrogram.
        input_size: `(height, width)` of a spectrogram, or one int for both.
        depth: number of blocks, each of two transformers.
        heads: number of heads.
        mlp_dim: width of the MLP's hidden layer.
        dim_head: width of a head.
        down_sample_input: pooling `(height, width)`, one int for both, or None.
        dim: width of a token.
        dropout_tr: probability of dropping outputs of the attention and of both layers of the MLP.
        first_axis: the axis of the first transformer, "height" or "width".
        lengths_axis: the axis of time, along which an attention mask tells what is padding: "width" or "height".
    """

    model_type = "septr"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_attention_heads": "heads",
        "num_hidden_layers": "depth",
        "intermediate_size": "mlp_dim",
    }

    def __init__(
        self,
        channels: int = 1,
        input_size: Size = (128, 128),
        depth: int = 3,
        heads: int = 5,
        mlp_dim: int = 256,
        dim_head: int = 256,
        down_sample_input: Size | None = None,
        dim: int = 256,
        dropout_tr: float = 0.0,
        first_axis: str = "height",
        lengths_axis: str = "width",
        **others: Any,
    ) -> None:
        sizes = as_python((channels, depth, heads, mlp_dim, dim_head, dim, dropout_tr))
        self.channels, self.depth, self.heads, self.mlp_dim, self.dim_head, self.dim, self.dropout_tr = sizes
        self.first_axis, self.lengths_axis = first_axis, lengths_axis
        self.input_size = list(size_pair(input_size, "input_size"))
        pool = down_sample_input
        self.down_sample_input = None if pool is None else list(size_pair(pool, "down_sample_input"))
        super().__init__(**others)

    def arguments(self) -> dict[str, Any]:
        """Those of `septr_fast.SepTr`, but for the number of classes."""
        names = ("channels", "input_size", "depth", "heads", "mlp_dim", "dim_head", "down_sample_input", "dim")
        return {name: getattr(self, name) for name in (*names, "dropout_tr", "first_axis")}
