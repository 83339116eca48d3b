"""Launch configurations to try: those one step away from a configuration in one respect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from septr_fast.kernels.launch import Config
from septr_fast.kernels.tables import SWITCHES

LEAST_TILE = 8
LARGEST_TILE = 512
WARPS = (2, 4, 8, 16)
STAGES = (1, 2, 3, 4)
LEAST_CHUNK, LARGEST_CHUNK = 4, 1024
"""Megabytes."""

ACCUMULATED = ("BLOCK_M", "BLOCK_Q")
"""Tiles that are the rows of sums in registers."""
MOST_ACCUMULATED = 128
"""Registers of a thread that such sums may fill."""

OF_PASSES = ("chunk", "attention_form")
"""Choices that are no kernel's: they have tiles alone, and are measured on whole passes."""


def neighbours(config: Config, width: int = 1, stages: Sequence[int] = STAGES) -> Iterator[Config]:
    """Configurations with one tile, the warps or the stages of `config` one step up or down.

    Args:
        config: where to start.
        width: features of a tile; where so many rows of them fill the registers, compiling takes minutes.
        stages: that may be tried.
    """
    return (one for one in _beside_each(config, stages) if _fits(one, width))


def _fits(config: Config, width: int) -> bool:
    rows = max(config.tiles.get(name, 0) for name in ACCUMULATED)
    return rows * width <= MOST_ACCUMULATED * 32 * config.warps


def _beside_each(config: Config, stages: Sequence[int]) -> Iterator[Config]:
    for tiles in _tiles(config.tiles):
        yield replace(config, tiles=tiles)
    if config.tiles.keys() & {"MIB", "FUSED"}:
        return
    for warps in _beside(config.warps, WARPS):
        yield replace(config, warps=warps)
    for count in _beside(config.stages, stages):
        yield replace(config, stages=count)


def _tiles(tiles: Mapping[str, int]) -> Iterator[dict[str, int]]:
    for name, size in tiles.items():
        if name in SWITCHES:
            yield {**tiles, name: 1 - size}
            continue
        least, largest = (LEAST_CHUNK, LARGEST_CHUNK) if name == "MIB" else (LEAST_TILE, LARGEST_TILE)
        for other in (2 * size, size // 2):
            if least <= other <= largest:
                yield {**tiles, name: other}


def _beside(value: int, values: Sequence[int]) -> list[int]:
    """The next value above and below `value`."""
    above, below = ([other for other in values if other > value], [other for other in values if other < value])
    return above[:1] + below[-1:]
