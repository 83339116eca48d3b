"""Transformers' common tests of the models in `septr_fast.transformers`; see `own_tests` for where they come from.

What those tests expect otherwise of every model is overridden here, as its own models do: attention maps are exact and
without gradients, two for each block; hidden states are copies of the grid after each block, without a way from one to
the next; recomputation is this package's own, without layers of Transformers for it; what makes tokens is linear.
"""

from __future__ import annotations

import unittest
from typing import Any
from unittest import mock

import torch
from transformers_tests.test_modeling_common import ModelTesterMixin

from septr_fast.transformers import SepTrConfig, SepTrForAudioClassification, SepTrModel


class Tester:
    """Small models and their inputs."""

    batch_size, hidden_size, num_hidden_layers, num_attention_heads, is_training = 3, 16, 2, 2, True
    expected_num_hidden_layers = 2
    seq_length = 1 + 4 * 6

    def get_config(self) -> SepTrConfig:
        sizes = {"heads": self.num_attention_heads, "dim": self.hidden_size, "depth": self.num_hidden_layers}
        return SepTrConfig(input_size=(4, 6), mlp_dim=16, dim_head=8, num_labels=3, **sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[SepTrConfig, dict[str, Any]]:
        return self.get_config(), {"input_values": torch.randn(self.batch_size, 1, 4, 6)}


class SepTrModelTest(ModelTesterMixin, unittest.TestCase):
    """Those of the mixin, and what it asks of attention in another form."""

    all_model_classes = (SepTrModel, SepTrForAudioClassification)
    has_attentions = False
    test_resize_embeddings = False
    test_torch_exportable = False

    def setUp(self) -> None:
        self.model_tester = Tester()

    def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> Any:
        prepared = super()._prepare_for_class(inputs, model_class, return_labels)
        if return_labels and model_class is SepTrForAudioClassification:
            prepared["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        return prepared

    def test_training(self) -> None:
        """Of the model that has a loss."""
        with mock.patch.object(SepTrModelTest, "all_model_classes", (SepTrForAudioClassification,)):
            super().test_training()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """The same gradients as without."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        inputs = self._prepare_for_class(inputs, SepTrForAudioClassification, return_labels=True)
        model = SepTrForAudioClassification(config).train()
        found = []
        for recomputes in (False, True):
            if recomputes:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)
            assert model.is_gradient_checkpointing is recomputes
            found.append(torch.autograd.grad(model(**inputs).loss, list(model.parameters())))
        for kept, recomputed in zip(*found, strict=True):
            torch.testing.assert_close(kept, recomputed)

    def test_gradient_checkpointing_enable_disable(self) -> None:
        """Off, on and off again."""
        for model_class in self.all_model_classes:
            model, told = model_class(self.model_tester.get_config()), []
            for change in (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable):
                told.append(model.is_gradient_checkpointing)
                change()
            assert [*told, model.is_gradient_checkpointing] == [False, True, False]

    def test_model_get_set_embeddings(self) -> None:
        """The projection of pixels."""
        for model_class in self.all_model_classes:
            model, other = model_class(self.model_tester.get_config()), torch.nn.Linear(1, 16)
            assert isinstance(model.get_input_embeddings(), torch.nn.Linear)
            model.set_input_embeddings(other)
            assert model.get_input_embeddings() is other
            assert model.get_output_embeddings() is None

    @unittest.skip("hidden states are copies")
    def test_retain_grad_hidden_states_attentions(self) -> None: ...

    def test_attention_outputs(self) -> None:
        """Asked for by argument or configuration, behind the hidden states."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            asked = model(**inputs, output_attentions=True, output_hidden_states=True)
            assert list(asked)[-2:] == ["hidden_states", "attentions"]
            by_config = model_class(SepTrConfig(**{**config.to_dict(), "output_attentions": True})).eval()
            for outputs in (asked, by_config(**inputs)):
                shapes = [tuple(one.shape[1:]) for one in outputs.attentions]
                assert shapes == 2 * [(6, 2, 5, 5), (4, 2, 7, 7)]
