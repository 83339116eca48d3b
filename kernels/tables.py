"""Launch configurations that are shipped: data, found from the top, the first row that serves.

Until a GPU has been measured the rows are chosen by what compiles without spilling within an
architecture's shared memory; `python -m septr_fast tune` measures others on a user's GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

ALL = (80, 86, 89, 90, 100, 120)
EARLY = (80, 86, 89, 120)
"""Architectures whose tensor cores multiply values in registers alone."""
LARGE = (80, 90, 100)
"""Architectures with more than 160 KB of shared memory for a block."""


SWITCHES = ("FUSED", "TOGETHER", "RELOAD")
"""Tiles that are 0 or 1."""


class Row(NamedTuple):
    """A configuration and what it serves.

    Attributes:
        kernel: name of the kernel.
        archs: compute capabilities.
        itemsize: largest size of a value in bytes.
        width: largest number of features of a tile.
        tiles: sizes by the names of the kernel's compile-time arguments.
        warps: warps per program.
        stages: depth of the software pipeline of loops.
    """

    kernel: str
    archs: tuple[int, ...]
    itemsize: int
    width: int
    tiles: Mapping[str, int]
    warps: int
    stages: int


ATTENTION: tuple[Row, ...] = (
    Row("axis_attention_fwd", (90, 100), 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 4, 1),
    Row("axis_attention_fwd", EARLY, 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 64}, 4, 1),
    Row("axis_attention_fwd", (90,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 256, "TOGETHER": 1}, 4, 1),
    Row("axis_attention_fwd", (80,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 256}, 4, 1),
    Row("axis_attention_fwd", (100,), 2, 256, {"BLOCK_Q": 128, "BLOCK_K": 128, "BLOCK_C": 256, "TOGETHER": 1}, 8, 1),
    Row("axis_attention_fwd", (86, 89, 120), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 256}, 4, 1),
    Row("axis_attention_fwd", ALL, 4, 256, {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 32}, 8, 1),
    Row("axis_attention_fwd_direct", (80,), 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 64}, 4, 1),
    Row("axis_attention_fwd_direct", ALL, 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 4, 1),
    Row("axis_attention_fwd_direct", (80, 90), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_fwd_direct", (100,), 2, 256, {"BLOCK_Q": 128, "BLOCK_K": 128, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_fwd_direct", (86, 89, 120), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 256}, 4, 1),
    Row("axis_attention_fwd_direct", ALL, 4, 256, {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 32}, 8, 1),
    Row("axis_attention_bwd_query", (90, 100), 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_query", EARLY, 2, 64, {"BLOCK_Q": 32, "BLOCK_K": 128, "BLOCK_C": 64}, 4, 1),
    Row(
        "axis_attention_bwd_query", (90,), 2, 256, {"BLOCK_Q": 128, "BLOCK_K": 128, "BLOCK_C": 256, "TOGETHER": 1}, 8, 1
    ),
    Row("axis_attention_bwd_query", (100,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_bwd_query", (80,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_bwd_query", (86, 89, 120), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 128}, 8, 1),
    Row("axis_attention_bwd_query", (80,), 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_query", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 32}, 8, 1),
    Row("axis_attention_bwd_query_direct", (90,), 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_query_direct", (100,), 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_query_direct", EARLY, 2, 64, {"BLOCK_Q": 32, "BLOCK_K": 128, "BLOCK_C": 64}, 4, 1),
    Row("axis_attention_bwd_query_direct", (90,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_query_direct", (100,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 128}, 8, 1),
    Row("axis_attention_bwd_query_direct", EARLY, 2, 256, {"BLOCK_Q": 32, "BLOCK_K": 128, "BLOCK_C": 128}, 8, 1),
    Row("axis_attention_bwd_query_direct", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_key", ALL, 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_key", (80,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_bwd_key", EARLY, 2, 256, {"BLOCK_Q": 32, "BLOCK_K": 64, "BLOCK_C": 128}, 8, 1),
    Row("axis_attention_bwd_key", (90,), 2, 256, {"BLOCK_Q": 32, "BLOCK_K": 128, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_bwd_key", (100,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_bwd_key", ALL, 4, 256, {"BLOCK_Q": 32, "BLOCK_K": 32, "BLOCK_C": 32}, 8, 1),
    Row("axis_attention_bwd_key_direct", (90, 100), 2, 64, {"BLOCK_Q": 64, "BLOCK_K": 128, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_key_direct", EARLY, 2, 64, {"BLOCK_Q": 32, "BLOCK_K": 64, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_key_direct", EARLY, 2, 256, {"BLOCK_Q": 32, "BLOCK_K": 32, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_key_direct", (90,), 2, 256, {"BLOCK_Q": 64, "BLOCK_K": 64, "BLOCK_C": 64}, 8, 1),
    Row("axis_attention_bwd_key_direct", (100,), 2, 256, {"BLOCK_Q": 32, "BLOCK_K": 64, "BLOCK_C": 256}, 8, 1),
    Row("axis_attention_bwd_key_direct", ALL, 4, 256, {"BLOCK_Q": 32, "BLOCK_K": 32, "BLOCK_C": 32}, 8, 1),
    Row("class_query_fwd", ALL, 2, 256, {"BLOCK_Q": 16, "BLOCK_K": 64, "BLOCK_C": 256}, 4, 1),
    Row("class_query_fwd", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 32}, 4, 1),
    Row("class_query_bwd", ALL, 2, 256, {"BLOCK_Q": 16, "BLOCK_K": 64, "BLOCK_C": 256}, 4, 1),
    Row("class_query_bwd", (86, 89, 90, 100), 4, 64, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 64}, 4, 1),
    Row("class_query_bwd", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 32}, 4, 1),
    Row("class_query_fwd_direct", ALL, 2, 256, {"BLOCK_Q": 16, "BLOCK_K": 64, "BLOCK_C": 256}, 4, 1),
    Row("class_query_fwd_direct", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 32}, 4, 1),
    Row("class_query_bwd_direct", ALL, 2, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 256}, 4, 1),
    Row("class_query_bwd_direct", (86, 89, 100), 4, 64, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 64}, 4, 1),
    Row("class_query_bwd_direct", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "BLOCK_C": 32}, 4, 1),
    Row("fused_attention_fwd", ALL, 2, 64, {"BLOCK_Q": 64, "BLOCK_C": 32}, 8, 2),
    Row("fused_attention_fwd", EARLY, 2, 256, {"BLOCK_Q": 64, "BLOCK_C": 64}, 8, 2),
    Row("fused_attention_fwd", (90,), 2, 256, {"BLOCK_Q": 64, "BLOCK_C": 32}, 8, 2),
    Row("fused_attention_fwd", (100,), 2, 256, {"BLOCK_Q": 64, "BLOCK_C": 64}, 8, 1),
    Row("attention_form", (86, 89, 120), 2, 256, {"FUSED": 1}, 1, 1),
    Row("attention_form", ALL, 4, 256, {"FUSED": 0}, 1, 1),
)

NORMALIZATION: tuple[Row, ...] = (
    Row("normalize", ALL, 4, 64, {"BLOCK_M": 64}, 4, 1),
    Row("normalize", ALL, 4, 256, {"BLOCK_M": 8}, 4, 1),
    Row("normalize_bwd", LARGE, 4, 64, {"BLOCK_L": 32, "SEQUENCES": 16}, 4, 1),
    Row("normalize_bwd", ALL, 4, 64, {"BLOCK_L": 32, "SEQUENCES": 16}, 8, 1),
    Row("normalize_bwd", ALL, 4, 256, {"BLOCK_L": 8, "SEQUENCES": 16}, 4, 1),
)

MLP: tuple[Row, ...] = (
    Row("mlp_fwd", ALL, 2, 64, {"BLOCK_M": 64, "BLOCK_H": 64}, 4, 2),
    Row("mlp_fwd", (90,), 2, 256, {"BLOCK_M": 128, "BLOCK_H": 32}, 8, 2),
    Row("mlp_fwd", (80,), 2, 256, {"BLOCK_M": 128, "BLOCK_H": 64}, 8, 2),
    Row("mlp_fwd", (100,), 2, 256, {"BLOCK_M": 128, "BLOCK_H": 64}, 8, 2),
    Row("mlp_fwd", (86, 89, 120), 2, 256, {"BLOCK_M": 64, "BLOCK_H": 32}, 8, 2),
    Row("mlp_fwd", ALL, 4, 64, {"BLOCK_M": 32, "BLOCK_H": 16}, 4, 1),
    Row("mlp_fwd", ALL, 4, 256, {"BLOCK_M": 32, "BLOCK_H": 16}, 8, 2),
    Row("mlp_fwd_wide", ALL, 2, 64, {"BLOCK_M": 64, "BLOCK_H": 64}, 8, 2),
    Row("mlp_fwd_wide", (90,), 2, 256, {"BLOCK_M": 64, "BLOCK_H": 64}, 8, 2),
    Row("mlp_fwd_wide", (100,), 2, 256, {"BLOCK_M": 64, "BLOCK_H": 16}, 8, 2),
    Row("mlp_fwd_wide", EARLY, 2, 256, {"BLOCK_M": 64, "BLOCK_H": 32}, 8, 2),
    Row("mlp_bwd", ALL, 2, 64, {"BLOCK_M": 64, "BLOCK_H": 64}, 4, 2),
    Row("mlp_bwd", (90,), 2, 256, {"BLOCK_M": 128, "BLOCK_H": 16, "RELOAD": 1}, 8, 2),
    Row("mlp_bwd", (100,), 2, 256, {"BLOCK_M": 128, "BLOCK_H": 32}, 8, 2),
    Row("mlp_bwd", (80,), 2, 256, {"BLOCK_M": 64, "BLOCK_H": 64}, 8, 2),
    Row("mlp_bwd", (86, 89, 120), 2, 256, {"BLOCK_M": 32, "BLOCK_H": 32}, 4, 2),
    Row("mlp_bwd", LARGE, 4, 256, {"BLOCK_M": 32, "BLOCK_H": 16}, 8, 2),
    Row("mlp_bwd", (86, 89, 120), 4, 256, {"BLOCK_M": 16, "BLOCK_H": 16}, 8, 2),
)

CHUNK: tuple[Row, ...] = (
    Row("chunk", (86,), 4, 256, {"MIB": 32, "MOST": 16}, 1, 1),
    Row("chunk", ALL, 4, 256, {"MIB": 128, "MOST": 8}, 1, 1),
)
"""How much of the projected tokens a pass makes at a time, and into how many parts it cuts them at most."""

CLASS_ATTENTION: tuple[Row, ...] = (
    Row("class_attention_fwd", ALL, 2, 256, {"BLOCK_K": 32}, 4, 2),
    Row("class_attention_fwd", ALL, 4, 64, {"BLOCK_K": 32}, 4, 1),
    Row("class_attention_fwd", ALL, 4, 1024, {"BLOCK_K": 16}, 8, 1),
    Row("class_key_bwd", (100,), 4, 1024, {}, 8, 1),
    Row("class_key_bwd", ALL, 4, 1024, {}, 4, 1),
    Row("class_attention_bwd", ALL, 2, 64, {"BLOCK_K": 16, "ROWS": 16}, 4, 1),
    Row("class_attention_bwd", ALL, 4, 1024, {"BLOCK_K": 16, "ROWS": 16}, 8, 1),
)

LOW_RANK: tuple[Row, ...] = (
    Row("low_rank_fwd", ALL, 2, 4, {"BLOCK_Q": 32, "BLOCK_K": 128, "PARTS": 64}, 4, 1),
    Row("low_rank_fwd", ALL, 4, 4, {"BLOCK_Q": 32, "BLOCK_K": 128, "PARTS": 32}, 8, 1),
    Row("low_rank_fwd", (120,), 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 32, "PARTS": 32}, 4, 1),
    Row("low_rank_fwd", ALL, 4, 256, {"BLOCK_Q": 16, "BLOCK_K": 64, "PARTS": 32}, 4, 1),
    Row("low_rank_bwd", (90,), 4, 4, {"BLOCK_Q": 16, "BLOCK_K": 128, "PARTS": 16}, 4, 1),
    Row("low_rank_bwd", (100,), 4, 4, {"BLOCK_Q": 16, "BLOCK_K": 128, "PARTS": 16}, 8, 1),
    Row("low_rank_bwd", ALL, 4, 4, {"BLOCK_Q": 8, "BLOCK_K": 128, "PARTS": 16}, 4, 1),
    Row("low_rank_bwd", (120,), 4, 256, {"BLOCK_Q": 4, "BLOCK_K": 16, "PARTS": 16}, 4, 1),
    Row("low_rank_bwd", ALL, 4, 256, {"BLOCK_Q": 8, "BLOCK_K": 16, "PARTS": 16}, 4, 1),
)

TABLES: tuple[Row, ...] = CHUNK + ATTENTION + NORMALIZATION + MLP + CLASS_ATTENTION + LOW_RANK
