"""The stub of the driver, built and put in place: from then on kernels are launched, and nothing runs.

For a process in which Triton does not interpret.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.nvidia import driver

SOURCE = Path(__file__).with_name("stub.c")
MOST = 256
STREAM = 7
"""The number of the only stream; launches bear it."""


class _Record(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * MOST),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("attributes", ctypes.c_uint),
        ("values", ctypes.c_ulonglong * MOST),
        ("launches", ctypes.c_ulonglong),
    )


class Recorded(NamedTuple):
    """A launch as the driver was asked for it."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    attributes: int
    values: list[int]
    launches: int


class Stub:
    """Answers for a device of some architecture.

    Args:
        folder: to build in.
        arch: compute capability.
    """

    def __init__(self, folder: Path, arch: int) -> None:
        library = folder / "libcuda.so.1"
        headers = Path(driver.__file__).with_name("include")
        command = ["gcc", "-shared", "-fPIC", "-w", f"-I{headers}", "-Wl,-soname,libcuda.so.1", str(SOURCE), "-o"]
        subprocess.run([*command, str(library)], check=True)
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.last_launch.restype = ctypes.POINTER(_Record)
        triton.knobs.nvidia.libcuda_path = str(folder)
        self._count = 0
        self.arch = arch
        self.driver = _driver(arch)

    def expect(self, sizes: Sequence[int]) -> None:
        """The bytes of each parameter of the next launch."""
        self._count = len(sizes)
        self._library.expect(len(sizes), (ctypes.c_int * len(sizes))(*sizes))

    def last(self) -> Recorded:
        """The last launch."""
        told = self._library.last_launch().contents
        values = list(told.values[: self._count])
        name = told.name.decode()
        return Recorded(name, tuple(told.grid), tuple(told.block), told.shared, told.attributes, values, told.launches)


def _driver(arch: int) -> Any:
    """Triton's own driver, but that the device is told and not asked for."""
    made = driver.CudaDriver()
    made.get_current_device = lambda: 0
    made.set_current_device = lambda device: None
    made.get_device_capability = lambda device: divmod(arch, 10)
    made.get_current_stream = lambda device: STREAM
    return made
