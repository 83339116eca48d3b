"""Disassembling kernels together: each one's instructions are those that it has alone, in its own file."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.nvidia.compiler import get_ptxas  # noqa: E402

from septr_fast.tuning.assembly import running_products  # noqa: E402
from septr_fast.tuning.assembly.disassembly import disassembled, registers_and_stack  # noqa: E402

LOOP = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry {name}(.param .u64 out, .param .u32 count)
{{
  .reg .b64 %p; .reg .b32 %n, %i; .reg .f32 %x; .reg .pred %done;
  ld.param.u64 %p, [out];
  ld.param.u32 %n, [count];
  mov.u32 %i, 0;
  mov.f32 %x, 0f00000000;
round:
  setp.ge.u32 %done, %i, %n;
  @%done bra end;
  {body}
  add.u32 %i, %i, 1;
  bra round;
end:
  st.global.f32 [%p], %x;
  ret;
}}
"""
SINE = LOOP.format(name="sine", body="sin.approx.f32 %x, %x;")
ROOT = LOOP.format(name="root", body="sqrt.rn.f32 %x, %x;\n  bar.sync 0;")


def assembled(ptx: str, arch: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        subprocess.run([get_ptxas(arch).path, f"-arch=sm_{arch}", source, "-o", cubin], check=True, capture_output=True)
        return cubin.read_bytes()


def alone(cubin: bytes) -> list[str]:
    """Instructions, from the file that the assembler wrote, without addresses and labels."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return plain([line for line in text.splitlines() if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line)])


def plain(lines: list[str]) -> list[str]:
    """Without addresses, and the places that instructions lead to."""
    texts = [" ".join(line.split("*/", 1)[1].split()) for line in lines]
    return [
        re.sub(r"((?:BRA|BSSY|CALL|RET|JMP)\b.*?)(`\(\S+?\)|0x[0-9a-f]+)", r"\1…", text).strip(" ;") for text in texts
    ]


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_kernels_together_are_those_alone(arch: int) -> None:
    cubins = [assembled(source, arch) for source in (SINE, ROOT, SINE)]
    sine, root, again = (text.splitlines() for text in disassembled(cubins, arch))
    assert plain(sine) == plain(again) == alone(cubins[0])
    assert plain(root) == alone(cubins[1])
    assert any("MUFU.SIN" in line for line in sine)
    assert not any("MUFU.SIN" in line for line in root)


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_branches_lead_within_their_own_kernel(arch: int) -> None:
    texts = disassembled([assembled(source, arch) for source in (SINE, ROOT)], arch)
    for text in texts:
        blocks, following = running_products._blocks(text)
        assert len(blocks) > 3
        assert any(target <= place for place, targets in enumerate(following) for target in targets), "no loop"


def test_registers_and_stack() -> None:
    registers, stack = registers_and_stack(assembled(SINE, 80))
    assert 4 <= registers <= 32
    assert stack == 0


def test_what_is_no_kernel_is_refused() -> None:
    cubin = assembled(SINE, 80)
    with pytest.raises(ValueError, match="expected one kernel's code in a file, got 2"):
        disassembled([assembled(SINE + ROOT[ROOT.index(".visible") :], 80)], 80)
    with pytest.raises(ValueError, match="nvdisasm"):
        disassembled([cubin], 35)
    with pytest.raises(ValueError, match="cuobjdump"):
        registers_and_stack(b"no file of a kernel")
