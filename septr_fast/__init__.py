"""Fast and exact SepTr: the Separable Transformer for audio spectrograms."""

from septr_fast.accelerate import accelerate
from septr_fast.channel_statistics import dataset_statistics
from septr_fast.log_mel import LogMel
from septr_fast.model import SeparableTr, SepTr, SepTrBlock
from septr_fast.spectrogram import ComplexSpectrogram
from septr_fast.windows import predict_long

__all__ = [
    "ComplexSpectrogram",
    "LogMel",
    "SepTr",
    "SepTrBlock",
    "SeparableTr",
    "accelerate",
    "dataset_statistics",
    "predict_long",
]
__version__ = "0.1.0"
