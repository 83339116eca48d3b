"""What the device can do at best: bandwidth of a copy, rates of matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring.timing import Budget, interleaved, spread

PRECISIONS = {
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}
"""Dtype and `torch.get_float32_matmul_precision` of each product."""


def measure(device: torch.device, tiny: bool, budget: Budget) -> dict[str, Any]:
    """Copy and products on `device`."""
    results: dict[str, Any] = {"properties": properties(device), "copy": copy(device, 1 << (16 if tiny else 30))}
    results["product"] = {
        name: product(name, 64 if tiny else 8192, device) for name in PRECISIONS if budget.allows(f"product in {name}")
    }
    return results


def properties(device: torch.device) -> dict[str, int]:
    """Sizes that the driver tells."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.get_device_properties(device)
    return {
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "memory_bytes": found.total_memory,
    }


def copy(device: torch.device, size: int) -> dict[str, Any]:
    """Bytes per second, read and written, of a copy of `size` bytes on the device."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = spread(_times(lambda: target.copy_(source), device))
    return {"bytes": size, **times, "bytes_per_second": 2 * size / times["seconds"]}


def product(name: str, size: int, device: torch.device) -> dict[str, Any]:
    """Operations per second of a product of random square matrices."""
    dtype, precision = PRECISIONS[name]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)

    def multiply() -> Tensor:
        return torch.mm(left, right, out=out)

    try:
        times = spread(_times(multiply, device))
    finally:
        torch.set_float32_matmul_precision(before)
    return {"size": size, **times, "flops_per_second": 2 * size**3 / times["seconds"]}


def _times(call: Any, device: torch.device) -> list[float]:
    for _ in range(5):
        call()
    return interleaved({"call": call}, device, rounds=50, limit=10)["call"]


def summary(results: dict[str, Any]) -> str:
    """To read."""
    lines = [f"{name:10} {entry['flops_per_second'] / 1e12:8.1f} TFLOP/s" for name, entry in results["product"].items()]
    return "\n".join([f"{'copy':10} {results['copy']['bytes_per_second'] / 1e9:8.1f} GB/s", *lines])
