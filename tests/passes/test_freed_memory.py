"""What a forward pass on a CPU makes the allocator do, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

MAPPED = """
import ctypes, sys, torch
from septr_fast import SepTr
from septr_fast.passes.torch import freed_memory

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
if sys.argv[1] == "without":
    freed_memory.keep = lambda: None
with torch.no_grad():
    SepTr(num_classes=5, depth=1, dim=8, mlp_dim=8, input_size=(4, 4), backend="torch").eval()(torch.randn(1, 1, 4, 4))
before = library.mallinfo2().hblkhd
block = torch.empty(24 << 20, dtype=torch.uint8)
print(library.mallinfo2().hblkhd - before)
"""
"""How many bytes of a block of 24 MiB are mapped for it alone, to be handed back when it is freed."""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33"
)
@pytest.mark.parametrize(("how", "all_of_it"), [("with", False), ("without", True)])
def test_blocks_come_from_the_heap(how: str, all_of_it: bool) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    command = [sys.executable, "-c", MAPPED, how]
    mapped = int(subprocess.run(command, env=kept, check=True, capture_output=True, text=True).stdout)
    assert mapped >= 24 << 20 if all_of_it else mapped == 0


TRIMMED = """
import resource, torch
from septr_fast import SepTr

torch.set_num_threads(1)
model = SepTr(num_classes=5, depth=2, dim=64, mlp_dim=64, dim_head=64, heads=2, input_size=(48, 48), backend="torch")
x = torch.randn(4, 1, 48, 48)
for number in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(x).sum().backward()
    model.zero_grad()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Page faults of each training step; a step keeps more than the 64 MiB that glibc leaves at the end of its heap."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("threshold", "kept"), [(None, True), ("65536", False)], ids=["ours", "the environment's"])
def test_a_step_takes_the_memory_of_the_one_before(threshold: str | None, kept: bool) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))
    }
    if threshold is not None:
        environment["MALLOC_TRIM_THRESHOLD_"] = threshold
    command = [sys.executable, "-c", TRIMMED]
    lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    faults = sorted(int(line) for line in lines[2:])
    assert faults[1] < 500 if kept else faults[1] > 5000
