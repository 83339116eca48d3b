"""How kernels are started: configurations as data, one function that launches, one that records.

A configuration is chosen from the kernel's name, the architecture, the size of a value and the width of
its tiles: a pure function of tables (`kernels.tables`). Nothing is tuned while a model runs. Launchers
never call a kernel themselves but `launch`, so that `record` can collect what would be launched for
tensors without data, on a machine without a GPU, and `override` can try other configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .tables import TABLES, Row

ARCHITECTURES = (80, 86, 89, 90, 100)
"""Compute capabilities with tables of their own."""

UNKNOWN = 86
"""Whose tables serve every other architecture: they need the least shared memory."""

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
"""Bytes of shared memory that a block may take."""


@dataclass(frozen=True)
class Config:
    """A launch configuration.

    Attributes:
        tiles: sizes by the names of the kernel's compile-time arguments.
        warps: warps per program.
        stages: depth of the software pipeline of loops.
    """

    tiles: Mapping[str, int]
    warps: int = 4
    stages: int = 1


@dataclass(frozen=True)
class Launch:
    """One launch: a kernel over a grid of programs with its arguments and configuration.

    Attributes:
        name: under which the configuration is found.
        kernel: the function under `triton.jit`.
        programs: size of the grid, which has one axis.
        arguments: the kernel's arguments but for those of the configuration.
        config: tiles, warps and stages.
        flops: useful floating-point operations of matrix products, 2 per multiply-add.
        executed_flops: those operations with the padding of tiles.
    """

    name: str
    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    config: Config
    flops: int = 0
    executed_flops: int = 0


@dataclass
class _Recording:
    arch: int
    launches: list[Launch] = field(default_factory=list)


_recording: list[_Recording] = []
_overrides: list[Mapping[str, Config]] = []
_tuned: list[Row] = []


def architecture(device: torch.device) -> int:
    """The architecture whose tables serve `device`: that of a recording, of the GPU, or `UNKNOWN`."""
    if _recording:
        return _recording[-1].arch
    if device.type != "cuda":
        return UNKNOWN
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor if 10 * major + minor in ARCHITECTURES else UNKNOWN


def choose(name: str, device: torch.device, dtype: torch.dtype, width: int) -> Config:
    """The configuration of kernel `name` for values of `dtype` in tiles of `width` features on `device`."""
    for configs in reversed(_overrides):
        if name in configs:
            return configs[name]
    return lookup(name, architecture(device), dtype.itemsize, width)


def lookup(name: str, arch: int, itemsize: int, width: int) -> Config:
    """The first row of the tables that serves, the user's own tables first.

    Raises:
        LookupError: for an unknown kernel, or features too wide for it.
    """
    for row in (*_tuned, *TABLES):
        serves = row.kernel == name and arch in row.archs and itemsize <= row.itemsize and width <= row.width
        if serves:
            return Config(row.tiles, row.warps, row.stages)
    raise LookupError(f"no launch configuration of {name} for sm_{arch}, {itemsize} bytes per value, {width} features")


def fit(config: Config, **sizes: int) -> Config:
    """`config` with the tiles named in `sizes` no larger than what it takes to cover these sizes."""
    tiles = {name: min(tile, feature_block(sizes.get(name, tile))) for name, tile in config.tiles.items()}
    return Config(tiles, config.warps, config.stages)


def use_tuned(rows: list[Row]) -> None:
    """Let `rows`, measured on this machine, come before the shipped tables."""
    _tuned[:] = rows


def launch(
    name: str,
    kernel: Any,
    programs: int,
    config: Config,
    arguments: Mapping[str, Any],
    *,
    device: torch.device,
    flops: int = 0,
    executed_flops: int | None = None,
) -> None:
    """Run `kernel` on a grid of `programs` programs on the current stream of `device`, or record it."""
    if _recording:
        executed = flops if executed_flops is None else executed_flops
        _recording[-1].launches.append(Launch(name, kernel, programs, arguments, config, flops, executed))
        return
    if programs == 0:
        return
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](
            **arguments, **config.tiles, num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True
        )


@contextmanager
def record(arch: int) -> Iterator[list[Launch]]:
    """Collect launches for architecture `arch` in place of running them; tensors may be on the meta device."""
    recording = _Recording(arch)
    _recording.append(recording)
    try:
        yield recording.launches
    finally:
        _recording.remove(recording)


@contextmanager
def override(configs: Mapping[str, Config]) -> Iterator[None]:
    """Use `configs`, by kernel name, in place of the tables."""
    _overrides.append(configs)
    try:
        yield
    finally:
        _overrides.remove(configs)


def input_precision() -> str:
    """How float32 products are computed, following `torch.get_float32_matmul_precision`: "ieee" or "tf32"."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def feature_block(width: int) -> int:
    """The tile width for `width` features: a power of two, 16 at least."""
    return max(16, 1 << (width - 1).bit_length())


def ceil_div(value: int, divisor: int) -> int:
    """`value / divisor`, rounded up."""
    return -(-value // divisor)
