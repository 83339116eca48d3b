"""How kernels are started: configurations as data, one function that launches, one that records.

A configuration is chosen from the kernel's name, the architecture, the size of a value and the width of
its tiles: a pure function of tables (`kernels.tables`). Nothing is tuned while a model runs. Launchers
never call a kernel themselves but `launch`, so that `record` can collect what would be launched for
tensors without data, on a machine without a GPU, `capture` what is launched, and `override` can try other
configurations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .tables import TABLES, Row

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities with tables of their own."""

SERVED_BY = {103: 100, 121: 120}
"""Whose tables serve those without: the same tensor cores, and as much shared memory."""

UNCHAINED = (100,)
"""Where no loop adds two products to one accumulator: Triton 3.6 to 3.8 may compile that wrongly for tcgen05."""

UNPIPELINED = (100,)
"""Where no loop of products on tensor cores is pipelined: others' change from run to run (triton#9871, #10590)."""

UNKNOWN = 86
"""Whose tables serve every other architecture: they need the least shared memory."""

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 103: 232448, 120: 101376, 121: 101376}
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


@dataclass(frozen=True)
class Choice:
    """What a configuration is chosen by: the kernel's name, bytes per value, and the features of a tile."""

    name: str
    itemsize: int
    width: int


@dataclass(eq=False)
class Capture:
    """What was chosen, and the launches of the kernels called `names`, in order."""

    names: tuple[str, ...]
    choices: list[Choice] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)


@dataclass
class _Recording:
    arch: int
    launches: list[Launch] = field(default_factory=list)


_recording: list[_Recording] = []
_captures: list[Capture] = []
_overrides: list[Mapping[str, Config]] = []
_untuned: list[None] = []
_sources: list[Callable[[torch.device], Sequence[Row]]] = []
_tuned: dict[torch.device, Sequence[Row]] = {}


def architecture(device: torch.device) -> int:
    """The architecture whose tables serve `device`, or what is recorded: its own, one like it, or `UNKNOWN`."""
    if _recording:
        capability = _recording[-1].arch
    elif device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    else:
        return UNKNOWN
    return capability if capability in ARCHITECTURES else SERVED_BY.get(capability, UNKNOWN)


def choose(name: str, device: torch.device, dtype: torch.dtype, width: int) -> Config:
    """The configuration of kernel `name` for values of `dtype` in tiles of `width` features on `device`."""
    choice = Choice(name, dtype.itemsize, width)
    for capturing in _captures:
        capturing.choices.append(choice)
    for configs in reversed(_overrides):
        if name in configs:
            return configs[name]
    return _lookup_tuned(choice, device) or lookup(name, architecture(device), dtype.itemsize, width)


@functools.cache
def lookup(name: str, arch: int, itemsize: int, width: int) -> Config:
    """The first row of the shipped tables that serves.

    Raises:
        LookupError: for an unknown kernel, or features too wide for it.
    """
    for row in TABLES:
        if row.kernel == name and arch in row.archs and itemsize <= row.itemsize and width <= row.width:
            return _config(row, arch, itemsize)
    raise LookupError(f"no launch configuration of {name} for sm_{arch}, {itemsize} bytes per value, {width} features")


def _lookup_tuned(choice: Choice, device: torch.device) -> Config | None:
    """The row measured on `device` for values and tiles of just these sizes, if there is one."""
    if not _sources or device.type != "cuda" or _recording or _untuned:
        return None
    if device not in _tuned:
        _tuned[device] = _sources[-1](device)
    for row in _tuned[device]:
        if (row.kernel, row.itemsize) == (choice.name, choice.itemsize) and _tile(row.width) == _tile(choice.width):
            return _config(row, architecture(device), choice.itemsize)
    return None


def _config(row: Row, arch: int, itemsize: int) -> Config:
    on_tensor_cores = itemsize < 4
    return Config(row.tiles, row.warps, 1 if arch in UNPIPELINED and on_tensor_cores else row.stages)


def fit(config: Config, **sizes: int) -> Config:
    """`config` with the tiles named in `sizes` no larger than what it takes to cover these sizes."""
    tiles = {name: min(tile, feature_block(sizes.get(name, tile))) for name, tile in config.tiles.items()}
    return Config(tiles, config.warps, config.stages)


def use_tuned(source: Callable[[torch.device], Sequence[Row]]) -> None:
    """Let what was measured on a GPU come before the shipped tables on that GPU.

    Args:
        source: the rows for a CUDA device; asked once for each, when a configuration is first chosen for it.
    """
    _sources[:] = [source]
    _tuned.clear()


@contextmanager
def untuned() -> Iterator[None]:
    """Leave what was measured on a GPU aside."""
    _untuned.append(None)
    try:
        yield
    finally:
        _untuned.pop()


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
    executed = flops if executed_flops is None else executed_flops
    described = Launch(name, kernel, programs, arguments, config, flops, executed)
    for capturing in _captures:
        if name in capturing.names:
            capturing.launches.append(described)
    if _recording:
        _recording[-1].launches.append(described)
    elif programs > 0:
        run(described, device)


def run(described: Launch, device: torch.device) -> None:
    """Run a launch on the current stream of `device`; again, where it was captured."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        described.kernel[(described.programs,)](**described.arguments, **_options(described.config))


def compile_only(described: Launch) -> Any:
    """Compile a launch for the current CUDA device as if it ran; the compiled kernel."""
    return described.kernel.warmup(**described.arguments, **_options(described.config), grid=(1,))


def _options(config: Config) -> dict[str, Any]:
    """What a configuration gives to a kernel's call."""
    return {**config.tiles, "num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


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
def capture(*names: str) -> Iterator[Capture]:
    """Collect what is chosen, and the launches of the kernels called `names`; they run all the same."""
    capturing = Capture(names)
    _captures.append(capturing)
    try:
        yield capturing
    finally:
        _captures.remove(capturing)


@contextmanager
def override(configs: Mapping[str, Config]) -> Iterator[None]:
    """Use `configs`, by kernel name, in place of the tables."""
    _overrides.append(configs)
    try:
        yield
    finally:
        _overrides.remove(configs)


def feature_block(width: int) -> int:
    """The tile width for `width` features: a power of two, 16 at least."""
    return max(16, 1 << (width - 1).bit_length())


def _tile(width: int) -> int:
    """Of two widths in one tile, the same number."""
    return (width - 1).bit_length()


def ceil_div(value: int, divisor: int) -> int:
    """`value / divisor`, rounded up."""
    return -(-value // divisor)
