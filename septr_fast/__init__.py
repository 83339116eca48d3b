"""Fast and exact SepTr: the Separable Transformer for audio spectrograms."""

from septr_fast.model import SeparableTr, SepTr, SepTrBlock

__all__ = ["SepTr", "SepTrBlock", "SeparableTr"]
__version__ = "0.1.0"
