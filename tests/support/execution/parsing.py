"""PTX as the compiler writes it: parameters, basic blocks, and where divergent branches come together again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s{}\[\]]+")
_PARAMETER = re.compile(r"\.param \.([usbf]\d+)(?: \.ptr[^,\n]*?)? (\w+_param_\d+)")
_LABEL = re.compile(r"(\$?\w+):$")
_PREDICATED = re.compile(r"@(!?)(%p\d+)\s+(.*)", re.DOTALL)
_MARKS = ("$L__tmp", "$L__func")
"""Labels of debug information, which no branch goes to."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: of the kernel's body.
        text: as it stands there.
        parts: of its name, such as `("ld", "global", "b32")`.
        operands: as written; vectors in braces, addresses in brackets.
        predicate: the register that decides whether it runs; None for always.
        negated: whether it runs where the predicate is false.
    """

    line: int
    text: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    predicate: str | None = None
    negated: bool = False

    @property
    def name(self) -> str:
        """The first part."""
        return self.parts[0]

    @property
    def ends_block(self) -> bool:
        """Whether what comes next in the text may not come next in time."""
        return self.name in ("bra", "ret")


@dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
        parameters: type and name of each.
        threads: of one program.
        blocks: instructions without a branch but at the end.
        labels: the block behind each.
    """

    parameters: tuple[tuple[str, str], ...]
    threads: int
    blocks: tuple[tuple[Instruction, ...], ...]
    labels: dict[str, int]

    def target(self, branch: Instruction) -> int:
        """The block that a branch goes to."""
        return self.labels[branch.operands[0]]

    @cached_property
    def joins(self) -> tuple[int, ...]:
        """For each block the nearest one that every way from it leads through; the number of blocks for the end."""
        count = len(self.blocks)
        after = [self._after(block) for block in range(count)]
        everywhere = set(range(count + 1))
        through = [everywhere] * count + [{count}]
        changed = True
        while changed:
            changed = False
            for block in reversed(range(count)):
                found = set.intersection(*(through[other] for other in after[block])) | {block}
                changed |= found != through[block]
                through[block] = found
        return tuple(max(through[block] - {block}, key=lambda other: len(through[other])) for block in range(count))

    def _after(self, block: int) -> list[int]:
        last = self.blocks[block][-1] if self.blocks[block] else None
        if last is None or not last.ends_block:
            return [block + 1]
        if last.name == "ret":
            return [len(self.blocks)]
        return [self.target(last), *([] if last.predicate is None else [block + 1])]


def parse(ptx: str) -> Program:
    """Read the only kernel of a module.

    Raises:
        ValueError: where there is none.
    """
    head, found, rest = ptx.partition(".reqntid")
    size = re.match(r"\s*(\d+)", rest)
    if not found or size is None:
        raise ValueError("ptx: expected a kernel with .reqntid, found none")
    body = rest[rest.index("{") + 1 : rest.index("\n}")]
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for number, raw in enumerate(body.split("\n")):
        text = raw.partition("//")[0].strip()
        label = _LABEL.match(text)
        if label is not None and not label[1].startswith(_MARKS):
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        if label is not None or text.startswith("."):
            continue
        for statement in filter(None, (part.strip() for part in text.split(";"))):
            blocks[-1].append(_instruction(number, statement))
            if blocks[-1][-1].ends_block:
                blocks.append([])
    return Program(tuple(_PARAMETER.findall(head)), int(size[1]), tuple(map(tuple, blocks)), labels)


def _instruction(line: int, text: str) -> Instruction:
    predicated = _PREDICATED.match(text)
    rest = text if predicated is None else predicated[3]
    name, *operands = rest.split(None, 1)
    return Instruction(
        line,
        text,
        tuple(name.split(".")),
        tuple(_OPERANDS.findall(operands[0])) if operands else (),
        None if predicated is None else predicated[2],
        predicated is not None and bool(predicated[1]),
    )


def vector(operand: str) -> list[str]:
    """The registers of a vector in braces, or the one that stands alone."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


def address(operand: str) -> tuple[str, int]:
    """The register and the offset of `[register + offset]`."""
    found = re.match(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\d+))?\s*\]$", operand)
    if found is None:
        raise ValueError(f"address: expected [register + offset], got {operand!r}")
    return found[1], int(found[2] or 0)
