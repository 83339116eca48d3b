"""From recordings to what the models take: a front-end of this package as a feature extractor of Transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, SequenceFeatureExtractor

from septr_fast.audio import front_ends
from septr_fast.reference import as_python

DEFAULT = {"name": "LogMel", "sample_rate": 16000, "mels": 128, "hop": 125, "frames": 128, "standardize": True}
"""One second at 16 kHz as 128 by 128 values."""


class SepTrFeatureExtractor(SequenceFeatureExtractor):  # type: ignore[misc]
    """Spectrograms of mono recordings.

    Args:
        front_end: settings of a front-end, as `septr_fast.LogMel(…).settings` gives them. None for 128 mel filters and
            128 frames of a second at 16 kHz, each spectrogram standardized.
        sampling_rate: of recordings; None for that of the front-end.
        return_attention_mask: whether the frames of padding are told to the model, `(batch, frames)`.
    """

    model_input_names: ClassVar[list[str]] = ["input_values", "attention_mask"]

    def __init__(
        self,
        front_end: Mapping[str, Any] | None = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool = True,
        **others: Any,
    ) -> None:
        self.front_end = as_python(DEFAULT if front_end is None else front_end)
        built = self._built()
        others = {"padding_value": 0.0, **others, "feature_size": built.bins}
        rate = sampling_rate or self.front_end.get("sample_rate", 16000)
        super().__init__(sampling_rate=rate, return_attention_mask=return_attention_mask, **others)

    def __call__(
        self,
        raw_speech: ArrayLike | Sequence[ArrayLike],
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Compute spectrograms; shorter recordings of a batch are padded.

        Args:
            raw_speech: a recording `(samples,)`, or a sequence of them, between -1 and 1.
            sampling_rate: of the recordings, to be compared with the extractor's; None where it is known to be that.
            return_tensors: "pt" for tensors, "np" for arrays; None for lists of arrays.
            return_attention_mask: whether with the mask; None for what the extractor was made with.

        Returns:
            `input_values` `(batch, channels, height, width)`, and where it is asked for `attention_mask`
            `(batch, frames)`, 1 for the real frames.

        Raises:
            ValueError: for another rate, a recording of other dimensions, or one that is too short.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(f"sampling_rate: expected {self.sampling_rate}, got {sampling_rate}: resample before")
        clips = self._clips(raw_speech)
        waveform = pad_sequence(clips, batch_first=True)
        front_end = self._built()
        values, frames = front_end(waveform, [len(clip) for clip in clips])
        found: dict[str, Tensor] = {"input_values": values}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            width = values.shape[2 if front_end.time_first else 3]
            found["attention_mask"] = (torch.arange(width) < torch.as_tensor(frames)[:, None]).long()
        return BatchFeature({name: list(x.numpy()) for name, x in found.items()}, tensor_type=return_tensors)

    def _built(self) -> Any:
        return front_ends.build(self.front_end)

    def _clips(self, raw_speech: ArrayLike | Sequence[ArrayLike]) -> list[Tensor]:
        """Recordings `(samples,)` in float32."""
        several = isinstance(raw_speech, (list, tuple)) and len(raw_speech) > 0 and np.ndim(raw_speech[0]) > 0
        batch = raw_speech if several or np.ndim(raw_speech) == 2 else [raw_speech]  # type: ignore[arg-type]
        clips = [torch.from_numpy(np.array(clip, dtype=np.float32)) for clip in batch]  # type: ignore[union-attr]
        for clip in clips:
            if clip.dim() != 1:
                raise ValueError(f"raw_speech: expected mono recordings (samples,), got {tuple(clip.shape)}")
        return clips
