"""Which clips to train on, validate and test: by a hash of their names, and so that every class has some of each."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from training.data.clip_lists import SPLITS, Clip

Shares = tuple[float, float]
"""Of validation and test; the rest is to train on."""
FEW = 30
"""Groups of a class, below which a hash alone would leave a split with far more or less than its share."""


_SPEAKER_END = re.compile(r"_nohash_.*$")


def speaker(path: Path) -> str:
    """What stands in a file's name before "_nohash_", as in Speech Commands; otherwise all but the suffix."""
    return _SPEAKER_END.sub("", path.stem)


def split(
    paths: Iterable[Path], classes: Sequence[str], class_of: Callable[[Path], str], split_of: Callable[[Path], str]
) -> dict[str, list[Clip]]:
    """Labelled clips by split."""
    splits: dict[str, list[Clip]] = {name: [] for name in SPLITS}
    for path in paths:
        splits[split_of(path)].append(Clip(path, (classes.index(class_of(path)),)))
    return splits


def by_hash(classes_of: Mapping[str, set[str]], shares: Shares, seed: int) -> dict[str, str]:
    """The split of each group of files, which stays together.

    A hash of a group's name says it, whatever other groups there are. In a class of fewer than `FEW`, where chance
    would decide, what is beyond a split's share (but for one) goes back to be trained on. Where a class is left without
    a group in a split that has a share, and it has enough groups for all of them, its group whose hash is nearest is
    moved there; a class of fewer groups has one to train on. Groups that several classes share move for all of them.

    Args:
        classes_of: the classes that each group has files of.
        shares: of the groups.
        seed: chooses others.
    """
    positions = {name: _hashed(name, seed) for name in sorted(classes_of)}
    found = {name: _split_at(position, shares) for name, position in positions.items()}
    members: dict[str, list[str]] = defaultdict(list)
    for name in positions:
        for one in sorted(classes_of[name]):
            members[one].append(name)
    wanted = [name for name, share in zip(SPLITS, (1.0, *shares), strict=True) if share]
    for one in sorted(members):
        own = members[one]
        for split_name, share in zip(SPLITS[1:], shares, strict=True):
            held_there = sorted((group for group in own if found[group] == split_name), key=positions.__getitem__)
            most = max(round(share * len(own)), 1) if len(own) < FEW else len(own)
            found |= dict.fromkeys(held_there[most:], SPLITS[0])
        for split_name in wanted if len(own) >= len(wanted) else wanted[:1]:
            held = {name: [group for group in own if found[group] == name] for name in wanted}
            if not held[split_name]:
                giver = max(held, key=lambda name: len(held[name]))
                nearest = min(held[giver], key=lambda group: _distance(positions[group], split_name, shares))
                found[nearest] = split_name
    return found


def by_rank(groups: Iterable[str], shares: Shares, seed: int) -> Mapping[str, str]:
    """The split of each group: of all groups in the order of their hashes the first shares, at least one each.

    Where there are too few one is left to train on, before there is one to validate, and then one to test.
    """
    ranked = sorted(groups, key=lambda group: (_hashed(group, seed), group))
    names: list[str] = []
    for split_name, share in zip(SPLITS[1:], shares, strict=True):
        left = max(len(ranked) - 1 - len(names), 0)
        names += [split_name] * min(left, max(round(share * len(ranked)), 1) if share else 0)
    return dict(zip(ranked, names + ["train"] * len(ranked), strict=False))


def _hashed(name: str, seed: int) -> float:
    """A number from 0 up to 1, the same for the same arguments."""
    digest = hashlib.sha1(f"{seed}:{name}".encode(errors="surrogateescape"), usedforsecurity=False).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _ranges(shares: Shares) -> dict[str, tuple[float, float]]:
    validation, test = shares
    return {"validation": (0.0, validation), "test": (validation, validation + test), "train": (validation + test, 1.0)}


def _split_at(position: float, shares: Shares) -> str:
    return next((name for name, (first, end) in _ranges(shares).items() if first <= position < end), "train")


def _distance(position: float, split_name: str, shares: Shares) -> float:
    """How far a hash is from the range of a split."""
    first, end = _ranges(shares)[split_name]
    return max(first - position, position - end, 0.0)
