"""SepTr in Hugging Face Transformers: importing this lets the Auto classes, `pipeline` and `Trainer` know it.

It needs the package transformers, the extra `transformers`, and imports the model, the front-ends and checkpoints.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from septr_fast.transformers.configuration import SepTrConfig
from septr_fast.transformers.conversion import from_checkpoint, from_original, to_checkpoint
from septr_fast.transformers.feature_extraction import SepTrFeatureExtractor
from septr_fast.transformers.modeling import SepTrForAudioClassification, SepTrModel, SepTrPreTrainedModel

__all__ = [
    "SepTrConfig",
    "SepTrFeatureExtractor",
    "SepTrForAudioClassification",
    "SepTrModel",
    "SepTrPreTrainedModel",
    "from_checkpoint",
    "from_original",
    "to_checkpoint",
]

AutoConfig.register(SepTrConfig.model_type, SepTrConfig, exist_ok=True)
AutoFeatureExtractor.register(SepTrConfig, SepTrFeatureExtractor, exist_ok=True)
AutoModel.register(SepTrConfig, SepTrModel, exist_ok=True)
AutoModelForAudioClassification.register(SepTrConfig, SepTrForAudioClassification, exist_ok=True)
