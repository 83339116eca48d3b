"""What figures were measured on: device, threads, driver, versions, commit and date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def stamp(device: torch.device) -> dict[str, Any]:
    """A stamp for figures of `device`."""
    from septr_fast.passes import backend

    baselines = {"transformers": version("transformers")}
    return {
        "device": backend.device_name(device) if device.type == "cuda" else processor(),
        "kind": device.type,
        "capability": backend.capability(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {**backend.versions(), **baselines},
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def version(package: str) -> str | None:
    """The version of an installed package; None for what is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """What the processor calls itself, as far as can be told."""
    try:
        import cpuinfo
    except ImportError:
        return platform.processor() or platform.machine()
    return str(cpuinfo.get_cpu_info().get("brand_raw", platform.machine()))


def commit(root: Path = ROOT) -> str:
    """The checkout's commit by git, or as its folder `.git` tells it; "unknown" where neither does."""
    describe = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(describe, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    folder = root / ".git"
    try:
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:12]
        name = head.removeprefix("ref: ")
        if (folder / name).exists():
            return (folder / name).read_text(encoding="utf-8").strip()[:12]
        packed = (folder / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.split()[0][:12] for line in packed if line.endswith(f" {name}")), "unknown")
