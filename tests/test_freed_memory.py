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
from septr_fast import SepTr, freed_memory

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
