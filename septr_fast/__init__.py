"""Fast and exact SepTr: the Separable Transformer for audio spectrograms.

What lies directly here is the network, `model`, `block`, the plain `reference` beside it, and the public names. A
spectrogram's way leads down, never back: `model` and `block` plan with `algebra`, run `passes`, and these the kernels.
Around the network lie `audio`, `adopt`, `inference`, `tuning`, `report` and, on top, `commands`.
"""

from septr_fast import former_names
from septr_fast.adopt.accelerate import accelerate
from septr_fast.audio.channel_statistics import dataset_statistics
from septr_fast.audio.log_mel import LogMel
from septr_fast.audio.spectrogram import ComplexSpectrogram
from septr_fast.audio.windows import predict_long
from septr_fast.inference.graphs import graphed
from septr_fast.model import SeparableTr, SepTr, SepTrBlock
from septr_fast.version import VERSION

__all__ = [
    "ComplexSpectrogram",
    "LogMel",
    "SepTr",
    "SepTrBlock",
    "SeparableTr",
    "accelerate",
    "dataset_statistics",
    "graphed",
    "predict_long",
]
__version__ = VERSION

former_names.keep()
