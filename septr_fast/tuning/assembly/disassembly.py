"""Machine code of compiled kernels as text, that of many kernels by one run of the disassembler.

A run takes a quarter of a second to start and a hundredth for a kernel, so the code of many is put one behind the
other, which the disassembler reads as instructions without a file's frame. Addresses then count from the first.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate

import triton

_ADDRESS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_BYTES = 16
"""Of an instruction."""
_SUFFIXES = {90: "a", 100: "a", 120: "a"}
"""Of the names of architectures whose code the disassembler reads with all that is particular to them."""


def disassembled(cubins: Sequence[bytes], arch: int) -> list[str]:
    """The instructions of each kernel, one a line behind its address.

    Args:
        cubins: compiled for `arch`, one kernel each.
        arch: compute capability.

    Raises:
        ValueError: where a file holds no code, or code does not come out as so many instructions as it has.
    """
    codes = [_code(cubin) for cubin in cubins]
    ends = list(accumulate(map(len, codes)))
    lines: list[list[str]] = [[] for _ in codes]
    place = 0
    for line in _run_on(b"".join(codes), triton.knobs.nvidia.nvdisasm.path, "-b", f"SM{arch}{_SUFFIXES.get(arch, '')}"):
        address = _ADDRESS.match(line)
        if address is None:
            continue
        while int(address[1], 16) >= ends[place]:
            place += 1
        lines[place].append(line)
    for code, found in zip(codes, lines, strict=True):
        if len(code) != _BYTES * len(found):
            raise ValueError(f"expected {len(code) // _BYTES} instructions for sm_{arch}, got {len(found)}")
    return ["\n".join(found) for found in lines]


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, of one thread."""
    text = "\n".join(_run_on(cubin, triton.knobs.nvidia.cuobjdump.path, "-res-usage", suffix=".cubin"))
    usage = _USAGE.search(text)
    if usage is None:
        raise ValueError(f"no use of registers in {text[:200]!r}")
    return int(usage[1]), int(usage[2])


def _code(cubin: bytes) -> bytes:
    """The bytes of the one section of code of an ELF file."""
    found = [content for name, content in _sections(cubin) if name.startswith(b".text.")]
    if len(found) != 1 or not found[0]:
        raise ValueError(f"expected one kernel's code in a file, got {len(found)}")
    return found[0]


def _sections(elf: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    _, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    entries = [_SECTION.unpack_from(elf, table + place * _SECTION.size) for place in range(count)]
    strings = entries[names][4]
    for name, _, _, _, offset, size, *_ in entries:
        start = strings + name
        yield elf[start : elf.index(b"\0", start)], elf[offset : offset + size]


def _run_on(content: bytes, *command: str, suffix: str = "") -> list[str]:
    """The lines that a command prints about a file."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        ran = subprocess.run([*command, file.name], capture_output=True, text=True)
    if ran.returncode:
        raise ValueError(f"{' '.join(command)}: {ran.stderr.strip() or ran.returncode}")
    return ran.stdout.splitlines()
