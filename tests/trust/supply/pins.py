"""Packages for development: every one that is installed has a version and hashes in requirements.txt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BY_PLATFORM = re.compile(r"torch|(nvidia|cuda)-.*")
"""Packages whose files differ by platform and source of torch: their versions are pinned, or follow from torch's."""

EXTRAS = ("dev", "speech")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
Pins = Mapping[str, Mapping[str, frozenset[str]]]


def read(text: str) -> Pins:
    """The hashes of every version of every package in a file of requirements.

    Raises:
        ValueError: for a line that is no package with one version and hashes of 256 bits alone.
    """
    pins: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line or line.lstrip().startswith("#"):
            continue
        pinned, *options = line.split(" --")
        requirement, hashes = Requirement(pinned), [HASH.fullmatch(f"--{option.strip()}") for option in options]
        versions = list(requirement.specifier)
        if len(versions) != 1 or versions[0].operator != "==" or not hashes or not all(hashes):
            raise ValueError(f"requirements: expected name==version and hashes by SHA-256, got {line!r}")
        found = frozenset(one[1] for one in hashes if one)
        pins[canonicalize_name(requirement.name)][versions[0].version] = found
    return pins


def wrong(root: Path) -> list[str]:
    """Constraints that requirements.txt does not keep, and packages that are needed here and not in it."""
    pins = read((root / "requirements.txt").read_text(encoding="utf-8"))
    found = list(unkept((root / "constraints.txt").read_text(encoding="utf-8"), pins))
    missing = sorted(name for name in needed("septr_fast", EXTRAS) if name not in pins and not by_platform(name))
    return [*found, *(f"{name}: needed here, not in requirements.txt" for name in missing)]


def unkept(constraints: str, pins: Pins) -> Iterator[str]:
    """Lines of constraints.txt without the same version, alone, among `pins`."""
    for line in constraints.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        name, version = canonicalize_name(requirement.name), next(iter(requirement.specifier)).version
        if not by_platform(name) and set(pins.get(name, {})) != {version}:
            yield f"{name}: expected {version} in requirements.txt, got {', '.join(pins.get(name, {})) or 'nothing'}"


def by_platform(name: str) -> bool:
    """Whether a package is installed with torch, from where torch comes."""
    return BY_PLATFORM.fullmatch(name) is not None


def needed(package: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Names of the packages that `package` needs on this machine, with those that they need in turn."""
    seen: set[tuple[str, str]] = set()
    waiting = [(package, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in _requirements(name):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]
    return {name for name, _ in seen} - {package}


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(name) or []]
    except PackageNotFoundError:
        return []
