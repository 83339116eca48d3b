"""GPUs as the forecast knows them: what their makers state, and what others have measured on them.

Sources: NVIDIA's data sheets and architecture papers of A100, B200, H100, H200, L4, GeForce RTX 3090, 4060 and 4090 for
multiprocessors, clocks, tensor cores and memory; for what is attained, `products_source`.
"""

from __future__ import annotations

from dataclasses import dataclass

COPIED = 0.9
"""Share of its memory's stated speed that a kernel attains that reads and writes once."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: as people say.
        arch: compute capability, as the kernels' tables have it.
        multiprocessors: how many.
        clock: Hz, the boost clock that the stated rates belong to.
        tensor: operations in 16 bits with sums in float32 that a multiprocessor's tensor cores do in a cycle.
        products: share of that rate that the vendor's own library attains in large products.
        products_source: where that was published; "taken" where it is an assumption.
        memory: bytes per second, stated.
        cache: bytes of L2.
        called: by the driver.
        plain: float32 instructions of a warp that a quarter of a multiprocessor starts in a cycle.
    """

    name: str
    arch: int
    multiprocessors: int
    clock: float
    tensor: int
    products: float
    products_source: str
    memory: float
    cache: int
    called: str
    plain: float = 1.0

    @property
    def peak(self) -> float:
        """Operations per second in 16 bits, stated."""
        return self.multiprocessors * self.tensor * self.clock


MIB = 1 << 20
DEVICES = {
    "h100": Device(
        "H100 SXM",
        90,
        132,
        1.83e9,
        4096,
        0.73,
        "cuBLAS, triton-lang/triton#2339",
        3.35e12,
        50 * MIB,
        "NVIDIA H100 80GB HBM3",
    ),
    "h200": Device(
        "H200", 90, 132, 1.83e9, 4096, 0.73, "that of an H100, triton-lang/triton#2339", 4.8e12, 50 * MIB, "NVIDIA H200"
    ),
    "b200": Device(
        "B200",
        100,
        148,
        1.86e9,
        8192,
        0.76,
        "taken: cuBLAS on a GB300, facebookexperimental/triton#740",
        8e12,
        126 * MIB,
        "NVIDIA B200",
    ),
    "a100": Device(
        "A100 40 GB",
        80,
        108,
        1.41e9,
        2048,
        0.87,
        "cuBLAS, triton-lang/triton#743",
        1.555e12,
        40 * MIB,
        "NVIDIA A100-SXM4-40GB",
        0.5,
    ),
    "l4": Device(
        "L4", 89, 58, 2.04e9, 1024, 0.5, "taken: 72 W do not carry the boost clock", 0.3e12, 48 * MIB, "NVIDIA L4"
    ),
    "4090": Device(
        "RTX 4090",
        89,
        128,
        2.52e9,
        512,
        0.95,
        "taken: as on an RTX 4060",
        1.008e12,
        72 * MIB,
        "NVIDIA GeForce RTX 4090",
    ),
    "4060": Device(
        "RTX 4060",
        89,
        24,
        2.46e9,
        512,
        0.96,
        "Triton, triton-lang/triton#10851",
        0.272e12,
        24 * MIB,
        "NVIDIA GeForce RTX 4060",
    ),
    "3090": Device(
        "RTX 3090", 86, 82, 1.695e9, 512, 0.95, "taken: as on an RTX 4060", 0.936e12, 6 * MIB, "NVIDIA GeForce RTX 3090"
    ),
}
"""By the name that the command line takes."""
