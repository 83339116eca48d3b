"""Sizes that tests and benchmarks share: constructor arguments of `SepTr` under readable names."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

DEFAULT: Config = {}
"""The constructor's defaults: one channel, 128 x 128, depth 3, five heads of 256."""

SMALL: dict[str, Config] = {
    "square": {"input_size": (8, 8), "depth": 2, "heads": 2, "dim_head": 8, "mlp_dim": 24, "dim": 16},
    "tall": {"input_size": (13, 7), "depth": 1, "heads": 3, "dim_head": 16, "mlp_dim": 8, "dim": 8},
    "wide": {"input_size": (5, 31), "depth": 2, "heads": 2, "dim_head": 4, "mlp_dim": 12, "dim": 12},
    "one row": {"input_size": (1, 17), "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16, "dim": 16},
    "one column": {"input_size": (16, 1), "depth": 2, "heads": 1, "dim_head": 8, "mlp_dim": 16, "dim": 16},
    "one pixel": {"input_size": 1, "depth": 1, "heads": 2, "dim_head": 8, "mlp_dim": 16, "dim": 16},
    "many channels": {"channels": 9, "input_size": (6, 10), "depth": 2, "heads": 2, "dim_head": 8, "dim": 16},
    "single full head": {"input_size": (9, 6), "depth": 2, "heads": 1, "dim_head": 16, "mlp_dim": 8, "dim": 16},
    "uneven pooling": {
        "channels": 3,
        "input_size": (17, 11),
        "depth": 2,
        "heads": 2,
        "dim_head": 8,
        "mlp_dim": 16,
        "down_sample_input": (3, 2),
        "dim": 16,
    },
    "wide heads": {"input_size": (6, 9), "depth": 2, "heads": 3, "dim_head": 32, "mlp_dim": 16, "dim": 16},
    "benchmark": {"input_size": (16, 20), "depth": 2, "heads": 2, "mlp_dim": 16, "dim_head": 16, "dim": 16},
}
"""Small models that reach every branch: lengths of 1, primes, height below and above the width."""

IN_USE: dict[str, Config] = {
    "default": DEFAULT,
    "default, 64x64": {"input_size": (64, 64)},
    "default, pooled 2x2": {"down_sample_input": (2, 2)},
    "default, pooled 4x4": {"down_sample_input": (4, 4)},
    "ten seconds, 128x1024": {"input_size": (128, 1024)},
    "ESC-50, narrow": {
        "input_size": (128, 216),
        "num_classes": 50,
        "depth": 1,
        "heads": 4,
        "mlp_dim": 64,
        "dim_head": 64,
        "dim": 64,
    },
    "deepfake, 499x161 pooled 4x4": {
        "channels": 3,
        "input_size": (499, 161),
        "num_classes": 2,
        "down_sample_input": (4, 4),
    },
    "fMRI, 8x48": {"channels": 70, "input_size": (8, 48), "num_classes": 5, "depth": 2, "heads": 2, "dim": 128},
}
"""Models as published code builds them."""

FEW_TOKENS: Config = {"input_size": (2, 2), "depth": 1, "heads": 2, "dim_head": 8, "dim": 16, "mlp_dim": 16}
"""What a rehearsal in the interpreter runs."""

AUDIO_SECONDS = {
    "default": 1.0,
    "default, 64x64": 1.0,
    "default, 32x32": 1.0,
    "default, pooled 2x2": 1.0,
    "default, pooled 4x4": 1.0,
    "ten seconds, 128x1024": 10.0,
    "ESC-50, narrow": 5.0,
    "deepfake, 499x161 pooled 4x4": 5.0,
    "tiny": 1.0,
}
"""Seconds of audio that a spectrogram of a shape shows in its use; what is missing shows something else."""
