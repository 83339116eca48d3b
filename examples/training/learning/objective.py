"""What a model is asked for: one class of a clip, or any number of them; the loss of it, and what counts as right."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """The loss that goes with an activation.

    Attributes:
        activation: "softmax" for one class of each clip, by cross-entropy; "sigmoid" for any number, by the binary
            cross-entropy of each class, whose mean is the loss of a clip.
        smoothing: share of a target that is spread over all classes, or of each class over both answers.
    """

    activation: str
    smoothing: float = 0.0

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each clip, `(clips,)`, from `(clips, classes)`."""
        targets = targets.to(logits.dtype)
        if self.activation == "softmax":
            return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)
        smooth = targets * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Which clips have the right class, or exactly the right ones at a probability of one half; `(clips,)`."""
        if self.activation == "softmax":
            return logits.argmax(dim=1) == targets.argmax(dim=1)
        return ((logits > 0) == (targets > 0.5)).all(dim=1)
