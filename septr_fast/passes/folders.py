"""Folders that only their user can write to: what is read from others' may be anybody's."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def why_not_private(path: Path) -> str | None:
    """Why somebody else could put something into `path`, a file or a folder that may not be there yet; None if nobody.

    Root is trusted, and so is a group that has nobody but the user in it. A folder above in which all may write but
    only remove their own, like `/tmp`, is no danger to what is there. Where there are no permissions of this kind, on
    Windows, nobody is suspected.
    """
    if os.name != "posix":
        return None
    ends = (path.absolute(), path.resolve())
    for place in dict.fromkeys(place for end in ends for place in (end, *end.parents)):
        if not place.exists():
            continue
        found = place.stat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user"
        if place not in ends and found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and _has_others(found.st_gid)):
            return f"others can write to {place}; take that from them by chmod go-w"
    return None


def _has_others(group: int) -> bool:
    """Whether anybody but the user may be in the group: it is no group of the user's own name, or has members."""
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return True
    return entry.gr_name != user or bool(set(entry.gr_mem) - {user})
