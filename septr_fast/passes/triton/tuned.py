"""Launch configurations that were measured on a user's GPU: a file for each device in his cache folder.

A file is data, and is taken whole or not at all: it must name the device, the kernels and the Triton that it
was measured with, and hold nothing but configurations that the kernels know.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import septr_fast.kernels as kernels
from septr_fast.kernels.tables import SWITCHES, TABLES, Row
from septr_fast.passes import backend
from septr_fast.passes.folders import why_not_private

FORMAT = 1
LARGEST_TILE = 4096
MOST_WARPS = 32
MOST_STAGES = 8

_logger = logging.getLogger("septr_fast")


def path(device_name: str) -> Path:
    """Where the configurations for devices of this name are kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return backend.cache_folder() / "tuned" / f"{slug or 'unnamed'}.json"


def rows(device: torch.device) -> Sequence[Row]:
    """The rows for a CUDA device; none, and a warning, where its file does not serve."""
    name = backend.device_name(device)
    file = path(name)
    if not file.exists():
        return ()
    try:
        reason = why_not_private(file)
        if reason is not None:
            raise ValueError(reason)
        return read(file, name, backend.capability(device))
    except (OSError, ValueError) as error:
        _logger.warning("%s is not used: %s", file, error)
        return ()


def read(file: Path, device_name: str, capability: int | None) -> tuple[Row, ...]:
    """The rows of `file` for devices of this name.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it is no table for this device and these kernels, with the reason.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it is not a table of format {FORMAT}")
    if content.get("interpreted") is not False:
        raise ValueError("its times are the interpreter's, which say nothing of a GPU")
    for key, value in made_for(device_name, capability).items():
        if content.get(key) != value:
            raise ValueError(
                f"it was measured with {key} {content.get(key)!r}, this is {value!r}: run python -m septr_fast tune"
            )
    entries = content.get("rows")
    if not isinstance(entries, list):
        raise ValueError("it has no rows")
    return tuple(_row(entry, capability) for entry in entries)


def write(file: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write a table that `read` takes, if `about` says of `interpreted` that it is False.

    Args:
        file: its folder is made where there is none.
        rows: kernel, itemsize, width, tiles, warps, stages, and whatever else is worth knowing.
        about: `made_for`, `interpreted`, and whatever else is worth knowing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **about, "rows": [dict(row) for row in rows]}
    beside = file.with_suffix(".partial")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def made_for(device_name: str, capability: int | None) -> dict[str, Any]:
    """What must be the same where a table is used as where it was measured."""
    triton = ".".join(importlib.metadata.version("triton").split(".")[:2])
    return {"device": device_name, "capability": capability, "triton": triton, "kernels": kernels_digest()}


@functools.cache
def kernels_digest() -> str:
    """A hash of the kernels' sources, the shipped tables left out."""
    files = sorted(Path(str(kernels.__file__)).parent.glob("*.py"))
    sources = [(file.name, file.read_text(encoding="utf-8")) for file in files if file.name != "tables.py"]
    return hashlib.sha256(repr(sources).encode()).hexdigest()[:16]


def _row(entry: Any, capability: int | None) -> Row:
    """One entry of a file, checked; raises `ValueError`."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected a row, got {entry!r}")
    known = [row for row in TABLES if row.kernel == entry.get("kernel")]
    if not known:
        raise ValueError(f"there is no kernel {entry.get('kernel')!r}")
    tiles = entry.get("tiles")
    if not isinstance(tiles, dict) or all(tiles.keys() != row.tiles.keys() for row in known):
        raise ValueError(f"{known[0].kernel}: expected tiles {sorted(known[0].tiles)}, got {tiles!r}")
    limits = {"warps": MOST_WARPS, **dict.fromkeys(tiles, LARGEST_TILE)}
    for name, limit in limits.items():
        value = {**tiles, "warps": entry.get("warps")}[name]
        least = 0 if name in SWITCHES else 1
        if type(value) is not int or not least <= value <= limit or value & (value - 1):
            raise ValueError(f"{known[0].kernel}: expected a power of two up to {limit} for {name}, got {value!r}")
    ranges = {"stages": (1, MOST_STAGES), "itemsize": (2, 4), "width": (1, LARGEST_TILE)}
    for name, (least, most) in ranges.items():
        if type(entry.get(name)) is not int or not least <= entry[name] <= most:
            raise ValueError(f"{known[0].kernel}: expected {name} from {least} to {most}, got {entry.get(name)!r}")
    archs = () if capability is None else (capability,)
    return Row(known[0].kernel, archs, entry["itemsize"], entry["width"], tiles, entry["warps"], entry["stages"])
