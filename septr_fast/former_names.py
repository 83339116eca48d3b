"""Modules under the names that they had in version 0.1.0, which pickled models and front-ends hold."""

from __future__ import annotations

import sys
from importlib import import_module

FORMER = {
    "attention_maps": "passes.attention_maps",
    "channel_statistics": "audio.channel_statistics",
    "fold_cache": "algebra.fold_cache",
    "log_mel": "audio.log_mel",
    "plan": "algebra.plan",
    "spectrogram": "audio.spectrogram",
}


def keep() -> None:
    """Let `import` and `pickle` find the modules of `FORMER` under their former names too."""
    for former, name in FORMER.items():
        sys.modules[f"septr_fast.{former}"] = import_module(f"septr_fast.{name}")
