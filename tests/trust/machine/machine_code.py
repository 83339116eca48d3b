"""What the code of a compiled kernel must hold: precision of products, of arithmetic, and contraction as asked for."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_DOT = re.compile(
    r"tt\.dot %\w+, %\w+(?P<rest>[^\n]*?)"
    r" : tensor<(?:\d+x)+(?P<left>\w+)[^>]*> \* tensor<(?:\d+x)+(?P<right>\w+)[^>]*>"
    r" -> tensor<(?:\d+x)+(?P<out>\w+)"
)
_ADDED = re.compile(r"(?P<name>%\w+) = tt\.dot %\w+, %\w+, (?P<added>%\w+)")
_PRECISION = re.compile(r"inputPrecision = (\w+)")
_INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*(?:\.[\w:]+)+)", re.MULTILINE)
_TENSOR_CORES = re.compile(r"(mma\.sync|wmma\.mma|wgmma\.mma_async|tcgen05\.mma)\.")
_ARITHMETIC = re.compile(r"(abs|add|cos|div|ex2|fma|lg2|mad|max|min|mul|neg|rcp|rsqrt|sin|sqrt|sub|tanh)\.")
_SHUFFLE = re.compile(r"^\s*shfl\.sync\.\w+\.b32\s+(%\w+)", re.MULTILINE)
_MOVE = re.compile(r"^\s*mov\.[bf]32\s+(%\w+), (%\w+);", re.MULTILINE)
_MULTIPLY_ADD = re.compile(r"^\s*(?:@!?%p\d+\s+)?fma\.rn\.(?:ftz\.)?f32\s+[^;]*, (%\w+);", re.MULTILINE)
_OTHER_FLOAT = re.compile(r"\.(f16|bf16|f64|e4m3|e5m2)(x\d)?$")

DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
"""Elements of products, as Triton writes them, by the names of the kernel report."""

TENSOR_CORES = {
    "bfloat16": re.compile(r"\.f32\.bf16\.bf16(\.f32)?$|kind::f16$"),
    "float16": re.compile(r"\.f32\.f16\.f16(\.f32)?$|kind::f16$"),
    "float32": None,
}
"""Instructions for tensor cores; float32 has none, and sums are float32 wherever the name tells it."""

APPROXIMATE = frozenset(("div.full.f32", "ex2.approx.f32", "ex2.approx.ftz.f32", "rsqrt.approx.ftz.f32"))
"""The instructions that are not rounded to the last bit, or flush subnormal numbers, and yet good to 2 ulp."""

IN_FUNCTIONS = frozenset(("abs.ftz.f32", "fma.rn.ftz.f32"))
"""The same within CUDA's own error function and logarithm, which are good to 2 ulp as a whole."""
FUNCTIONS = re.compile(r"math\.(erf|log2?)\b")

_NARROW_SUM = re.compile(r"^\s*(?:@!?%p\d+\s+)?(add(?:\.rn)?\.b?f16(?:x2)?)\s", re.MULTILINE)
_NARROW_FMA = re.compile(r"^\s*(?:@!?%p\d+\s+)?(fma\.rn\.bf16(?:x2)?)\s+%\w+, %\w+, (%\w+), %\w+;", re.MULTILINE)
_WRITTEN_NARROW = re.compile(r"arith\.(?:add|sub|mul|div|rem|neg)f .* : (?:tensor<[\dx]*x)?b?f16\b")
_CONSTANT = re.compile(r"^\s*mov\.b(?:16|32)\s+(%\w+), (\w+);", re.MULTILINE)
_ONE = ("16256", "0x3F80", "1065369472")
"""1 in bfloat16, and two of them."""

_FUSIBLE = ("add", "mul", "sub")


@dataclass(frozen=True)
class Asked:
    """How a kernel is to compute.

    Attributes:
        dtype: of the products, as the kernel report calls it.
        fusion: whether products and sums may be contracted into one instruction.
    """

    dtype: str
    fusion: bool


def faults(asm: Mapping[str, Any], tensor_cores: Mapping[str, int], asked: Asked) -> Iterator[str]:
    """What a compiled kernel does otherwise than asked.

    Args:
        asm: its code in Triton's stages; read are "ttir" and "ptx".
        tensor_cores: the tensor-core instructions in its machine code, by name.
        asked: for all of its products.
    """
    instructions = ptx_instructions(asm["ptx"])
    dots = asm["ttir"].count("tt.dot ")
    yield from _products(asm["ttir"], asked)
    yield from _tensor_cores(instructions, tensor_cores, dots, asked)
    if asked.dtype == "float32" and "tf32" in asm["ptx"]:
        yield "TF32 in the code of float32 products"
    by_compiler = DTYPES[asked.dtype] != "f32" and not _WRITTEN_NARROW.search(asm["ttir"])
    exact = narrow_sums(asm["ptx"]) if by_compiler else Counter[str]()
    yield from _arithmetic(instructions - exact, bool(FUNCTIONS.search(asm["ttir"])))
    yield from _contraction(instructions, asked.fusion)
    if "tcgen05.mma" in asm["ptx"] and (found := chained(asm["ttir"])):
        yield f"{len(found)} products added to another product's accumulator, the first: {found[0]}"
    if found := across_lanes(asm["ptx"]):
        yield f"{len(found)} products contracted with another lane's sum, the first: {found[0]}"


def ptx_instructions(ptx: str) -> Counter[str]:
    """How many instructions of each name, with all its suffixes, there are."""
    return Counter(_INSTRUCTION.findall(ptx))


def summary(asm: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of what decides how exact a kernel is."""
    found = ptx_instructions(asm["ptx"])
    return {
        "products": asm["ttir"].count("tt.dot "),
        "tensor cores": sum(count for name, count in found.items() if _TENSOR_CORES.match(name)),
        "multiply-adds": sum(count for name, count in found.items() if name.startswith("fma.") and ".f32" in name),
        "additions and multiplications": sum(count for name, count in found.items() if _kind(name) is not None),
        **{name: found[name] for name in sorted(APPROXIMATE | IN_FUNCTIONS)},
    }


def narrow_sums(ptx: str) -> Counter[str]:
    """Sums of two 16-bit values, rounded once, by the names of their instructions; such as sm_80 has multiply by one.

    Where a kernel writes no arithmetic of 16 bits, the compiler makes them of a sum in float32 that is rounded to 16
    bits at once. Those are the same bits: float32 has more than twice the digits and two (Figueroa, When is double
    rounding innocuous?, SIGNUM Newsletter 30(3), 1995).
    """
    constants = _CONSTANT.findall(ptx)
    ones = {name for name, value in constants if value in _ONE} - {
        name for name, value in constants if value not in _ONE
    }
    by_one = [name for name, factor in _NARROW_FMA.findall(ptx) if factor in ones]
    return Counter(_NARROW_SUM.findall(ptx)) + Counter(by_one)


def across_lanes(ptx: str) -> list[str]:
    """The multiply-adds of a product to what another lane of the warp holds.

    The other lane adds its own product to what this one holds, rounded: their sums differ in the last bit.
    """
    shuffled = {found[1] for found in _SHUFFLE.finditer(ptx)}
    moves = [found.groups() for found in _MOVE.finditer(ptx)]
    while moved := {to for to, source in moves if source in shuffled} - shuffled:
        shuffled |= moved
    return [found[0].strip() for found in _MULTIPLY_ADD.finditer(ptx) if found[1] in shuffled]


def chained(ttir: str) -> list[str]:
    """The products within a loop that are added to another product of the same round."""
    found: list[str] = []
    loops: list[tuple[int, set[str]]] = []
    depth = 0
    for line in ttir.splitlines():
        depth += line.count("{") - line.count("}")
        while loops and depth < loops[-1][0]:
            loops.pop()
        if "scf.for" in line:
            loops.append((depth, set()))
        elif loops and (dot := _ADDED.search(line)):
            if dot["added"] in loops[-1][1]:
                found.append(line.strip()[:60])
            loops[-1][1].add(dot["name"])
    return found


def unsaid_precision(source: str, name: str) -> list[str]:
    """Calls of `tl.dot` in a module that leave the precision to Triton."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    dots = [call for call in calls if ast.unparse(call.func) == "tl.dot"]
    unsaid = [call for call in dots if not any(keyword.arg == "input_precision" for keyword in call.keywords)]
    return [f"{name}:{call.lineno}: tl.dot without input_precision" for call in unsaid]


def plain_sums(source: str, name: str) -> list[str]:
    """Sums of products in a module that a compiler may contract with what other lanes hold."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    sums = [call for call in calls if ast.unparse(call.func) == "tl.sum" and isinstance(call.args[0], ast.BinOp)]
    found = [call for call in sums if isinstance(call.args[0].op, ast.Mult)]  # type: ignore[attr-defined]
    return [f"{name}:{call.lineno}: {ast.unparse(call)}, not by sum_of_products" for call in found]


def _products(ttir: str, asked: Asked) -> Iterator[str]:
    found = list(_DOT.finditer(ttir))
    if len(found) != ttir.count("tt.dot"):
        yield f"{ttir.count('tt.dot')} products, of which {len(found)} can be read"
    wanted = (DTYPES[asked.dtype], DTYPES[asked.dtype], "f32")
    for dot in found:
        said = _PRECISION.search(dot["rest"])
        precision = said[1] if said else "ieee"
        if precision != "ieee":
            yield f"a product in {precision}, expected ieee"
        if dot.group("left", "right", "out") != wanted:
            yield f"a product of {dot['left']} and {dot['right']} summed up in {dot['out']}, expected {wanted}"


def _tensor_cores(instructions: Counter[str], machine: Mapping[str, int], products: int, asked: Asked) -> Iterator[str]:
    used = [name for name in instructions if _TENSOR_CORES.match(name)]
    expected = TENSOR_CORES[asked.dtype] if products else None
    for name in used:
        if expected is None or not expected.search(name):
            yield f"{name} for {products} products of {asked.dtype}"
    if expected is not None and not used:
        yield f"no tensor-core instruction for {products} products of {asked.dtype}"
    if bool(machine) != bool(used):
        yield f"tensor cores in the assembly code: {used}, in the machine code: {dict(machine)}"


def _arithmetic(instructions: Counter[str], has_functions: bool) -> Iterator[str]:
    allowed = APPROXIMATE | IN_FUNCTIONS if has_functions else APPROXIMATE
    for name, count in sorted(instructions.items()):
        if not _ARITHMETIC.match(name):
            continue
        if _OTHER_FLOAT.search(name):
            yield f"{count} {name}: arithmetic outside of float32"
        elif {"approx", "full", "ftz"} & set(name.split(".")) and name not in allowed:
            yield f"{count} {name}: not exact"


def _contraction(instructions: Counter[str], fusion: bool) -> Iterator[str]:
    """Plain additions and products may be contracted by the assembler, those with a rounding may not."""
    for name, count in sorted(instructions.items()):
        kind = _kind(name)
        if kind == "apart for good" and fusion:
            yield f"{count} {name}: cannot be contracted"
        if kind == "free" and not fusion:
            yield f"{count} {name}: may be contracted"


def _kind(name: str) -> str | None:
    operation, *suffixes = name.split(".")
    if operation not in _FUSIBLE or not {"f32", "f32x2"} & set(suffixes):
        return None
    return "apart for good" if "rn" in suffixes else "free"
