"""SepTr as models of Transformers."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from septr_fast import reference
from septr_fast.adopt.description import constructor_arguments
from septr_fast.algebra.reading import why_not_linear
from septr_fast.model import SepTr
from septr_fast.transformers.configuration import SepTrConfig


class SepTrPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What both models share: initialization, loading, recomputation in the backward pass."""

    config_class = SepTrConfig
    base_model_prefix = "septr"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the constructors of `septr_fast.SepTr` draw."""
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, reference.SepTrBlock):
            nn.init.normal_(module.pos_embedding_h)
            nn.init.normal_(module.pos_embedding_w)
        elif isinstance(module, reference.SepTr):
            nn.init.normal_(module.cls_token)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """As that of Transformers, the configuration made to say what the model is by now.

        Where weights are given, or a quantizer made the layers, model and configuration are saved as they are.

        Raises:
            ValueError: for a model that its configuration cannot describe, naming the part.
        """
        if options.get("state_dict") is None and getattr(self, "hf_quantizer", None) is None:
            self.describe()
        super().save_pretrained(save_directory, *args, **options)

    def describe(self) -> None:
        """Have the configuration say what the model is, whatever was changed since it was made.

        Raises:
            ValueError: where no configuration says that, naming the part of the model.
        """
        described = constructor_arguments(self.base_model.model)
        for name in self.config.arguments():
            setattr(self.config, name, described[name])

    def _set_gradient_checkpointing(self, enable: bool = True, *_: Any, **__: Any) -> None:
        """Recompute every sublayer, which this package does by itself; how Transformers would is left aside."""
        for module in self.modules():
            if isinstance(module, SepTr):
                module.set_grad_checkpointing(enable)

    def _asked(self, given: bool | None, name: str) -> bool:
        """Whether a kind of output is asked for: as `given`, or as the configuration says where that is None."""
        return bool(getattr(self.config, name, name == "return_dict") if given is None else given)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass recomputes, as Transformers 4 asks."""
        return self.is_activation_checkpointing

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the backward pass recomputes, as Transformers 5 asks."""
        return any(block.recompute for module in self.modules() if isinstance(module, SepTr) for block in module.blocks)


class SepTrModel(SepTrPreTrainedModel):
    """The blocks without a head.

    Args:
        config: see `SepTrConfig`.
    """

    def __init__(self, config: SepTrConfig) -> None:
        super().__init__(config)
        self.model = SepTr(num_classes=0, **config.arguments())
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Run the blocks.

        Args:
            input_values: spectrograms `(batch, channels, height, width)`; with one channel also
                `(batch, height, width)`.
            attention_mask: `(batch, frames)`, 1 in front for the real frames of each, 0 for padding behind; see
                `SepTrConfig.lengths_axis`. None where there is no padding.
            output_hidden_states: whether also the tokens after every block.
            output_attentions: whether also the probabilities of every transformer; see `attentions` below.
            return_dict: False for a tuple.

        Returns:
            `last_hidden_state` `(batch, 1 + tokens, dim)`, the class token first, then the grid row by row, zeros in
            padding; `pooler_output`, the class token `(batch, dim)`; `hidden_states`, the tokens after each block;
            `attentions`, for each block those along the height `(batch, width, heads, 1 + height, 1 + height)`, then
            those along the width `(batch, height, heads, 1 + width, 1 + width)`, in tokens.
        """
        x, given = self._inputs(input_values, attention_mask)
        features = self.model.forward_features(x, *given)
        tokens = tuple(self._tokens(grid, cls_token) for grid, cls_token in features)
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=tokens[-1],
            pooler_output=features[-1].cls_token,
            hidden_states=tokens if self._asked(output_hidden_states, "output_hidden_states") else None,
            attentions=self._attentions(x, given) if self._asked(output_attentions, "output_attentions") else None,
        )
        return outputs if self._asked(return_dict, "return_dict") else outputs.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        """The layer that makes tokens of pixels."""
        return self.model.blocks[0].projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another in its place."""
        self.model.blocks[0].projection = value  # type: ignore[assignment]

    def pooled(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The class token `(batch, dim)` alone, for which the last transformer computes no grid."""
        x, given = self._inputs(input_values, attention_mask)
        cls_token: Tensor = self.model(x, *given)
        return cls_token

    def _inputs(self, input_values: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, tuple[Any, ...]]:
        """Spectrograms, and the further arguments of `SepTr.forward`."""
        x = input_values.unsqueeze(1) if input_values.dim() == 3 else input_values
        if attention_mask is None:
            return x, ()
        return x, (attention_mask.sum(-1), self.config.lengths_axis)

    def _tokens(self, grid: Tensor, cls_token: Tensor) -> Tensor:
        """`(batch, 1 + tokens, dim)` from a feature map, upsampled again where it was pooled, and the class token."""
        height, width = self.model.blocks[0].pooling
        tokens = grid[:, :, ::height, ::width].flatten(2).transpose(1, 2)
        return torch.cat([cls_token.unsqueeze(1), tokens], dim=1)

    def _attentions(self, x: Tensor, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        lengths, axis = given or (None, "width")
        maps = self.model.attention_maps(x, lengths, lengths_axis=axis, queries="all")
        return tuple(found for both in maps for found in (both.height, both.width))


class SepTrForAudioClassification(SepTrPreTrainedModel):
    """SepTr with a linear head on the class token: one label, several labels, or numbers, by `config.problem_type`.

    Args:
        config: see `SepTrConfig`.
    """

    def __init__(self, config: SepTrConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.septr = SepTrModel(config)
        self.classifier = nn.Linear(config.dim, config.num_labels)
        self.post_init()

    def describe(self) -> None:
        """As that of `SepTrModel`, for as many labels as there are outputs."""
        super().describe()
        reason = why_not_linear("classifier", self.classifier)
        if reason is None and self.classifier.in_features != self.config.dim:
            reason = f"classifier takes {self.classifier.in_features} values, not {self.config.dim}"
        if reason is not None:
            raise ValueError(f"model: expected a linear classifier, got one in which {reason}; keep its state dict")
        if self.classifier.out_features != self.config.num_labels:
            self.num_labels = self.config.num_labels = self.classifier.out_features

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify spectrograms.

        Args:
            input_values: as for `SepTrModel`.
            attention_mask: as for `SepTrModel`.
            labels: `(batch,)` integers for one label of many; `(batch, num_labels)` of 0 and 1 for several labels;
                numbers for regression, `(batch,)` with one output.
            output_hidden_states: as for `SepTrModel`.
            output_attentions: as for `SepTrModel`.
            return_dict: False for a tuple.

        Returns:
            `loss`, where there are labels, `logits` `(batch, num_labels)`, and what was asked for besides.
        """
        hidden, attentions = None, None
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if any(self._asked(given, name) for name, given in asked.items()):
            outputs = self.septr(input_values, attention_mask, return_dict=True, **asked)
            pooled, hidden, attentions = outputs.pooler_output, outputs.hidden_states, outputs.attentions
        else:
            pooled = self.septr.pooled(input_values, attention_mask)
        logits = self.classifier(pooled)
        loss = None if labels is None else self._loss(logits, labels)
        found = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden, attentions=attentions)
        return found if self._asked(return_dict, "return_dict") else found.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """By the kind of problem, which the first labels tell where the configuration does not."""
        if self.config.problem_type is None:
            whole = not labels.is_floating_point()
            several = "single_label_classification" if whole else "multi_label_classification"
            self.config.problem_type = "regression" if self.num_labels == 1 else several
        if self.config.problem_type == "regression":
            return F.mse_loss(logits.squeeze(-1) if self.num_labels == 1 else logits, labels.to(logits.dtype))
        if self.config.problem_type == "single_label_classification":
            return F.cross_entropy(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
