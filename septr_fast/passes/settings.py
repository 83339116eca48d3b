"""How a pass runs: what travels through the seam beside tokens and weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from septr_fast.algebra.folded import NO_DROPOUT, Dropout
from septr_fast.passes.lengths import Lengths


@dataclass(frozen=True)
class Settings:
    """What decides how one transformer runs along one axis.

    Attributes:
        axis: "height" or "width", the axis that a sequence runs along: each column is one, or each row.
        dropout: probabilities of dropping an output of the attention and of the layers of the MLP; None for none.
        recompute: keep only the input of each sublayer for the backward pass, or of the pass as a whole.
        lengths: valid tokens of each sample; None for all. Padding in the grid has to be finite.
        dtype: of the grid that a low-rank pass makes; None for that of its pixels.
        in_place: whether, without gradients, the result may be written over the grid.
        backend: "auto", "torch" or "triton".
    """

    axis: str
    dropout: Dropout | None = None
    recompute: bool = False
    lengths: Lengths | None = None
    dtype: torch.dtype | None = None
    in_place: bool = False
    backend: str = "auto"

    @property
    def dropped(self) -> Dropout:
        """The probabilities; a default of that type could not be traced by PyTorch 2.6 and before."""
        return NO_DROPOUT if self.dropout is None else self.dropout

    @property
    def drops(self) -> bool:
        """Whether anything is dropped. A compiler may see symbols in place of numbers, which it compares one by one."""
        dropped = self.dropped
        return dropped.attention > 0 or dropped.hidden > 0 or dropped.out > 0
