"""The README and the pages of docs/: their blocks, the code in their sentences, their links, their length."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "README.md"
GENERATED = tuple(
    ROOT / "docs" / f"{name}.md" for name in ("results", "accuracy", "scaling", "kernels", "forecast", "trust")
)
"""Pages that programs write; a link to one is right before it is written for the first time, too."""
PAGES = [README, *sorted(page for page in (ROOT / "docs").glob("*.md") if page not in GENERATED)]
LINKED = [*PAGES, *(page for page in GENERATED if page.exists())]

COLUMNS = 110

FENCE = re.compile(r"^```(\w*)$")
EXCUSE = re.compile(r"^<!-- not run: (.+) -->$")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block: its language, its first line's number in the page from 0, its lines, and why it cannot run."""

    language: str
    start: int
    lines: list[str]
    excuse: str | None


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks of a page."""
    lines = text.splitlines()
    opened: tuple[str, int] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if not fence:
            continue
        if opened is None:
            opened = fence[1], number + 1
        else:
            before = EXCUSE.match(lines[opened[1] - 2]) if opened[1] > 1 else None
            yield Block(*opened, lines[opened[1] : number], before[1] if before else None)
            opened = None
    if opened is not None:
        raise ValueError(f"line {opened[1]}: expected an end of the block, there is none")


def prose(text: str) -> str:
    """A page without what is fenced, line by line."""
    lines = text.splitlines()
    for block in blocks(text):
        lines[block.start : block.start + len(block.lines)] = [""] * len(block.lines)
    return "\n".join(lines)


def too_long(text: str, lines: int, *, tables: bool) -> list[str]:
    """Where a page exceeds `lines` or, but for tables if these are free, the width of a line."""
    found = text.splitlines()
    wrong = [f"{len(found)} lines, expected at most {lines}"] if len(found) > lines else []
    return wrong + [
        f"line {number}: {len(line)} columns, expected at most {COLUMNS}"
        for number, line in enumerate(found, 1)
        if len(line) > COLUMNS and not (tables and line.startswith("|"))
    ]


def anchors(text: str) -> set[str]:
    """What `#` may name in a page, as GitHub makes it of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        times = sum(1 for known in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", known))
        found.add(f"{slug}-{times}" if times else slug)
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links and images of a page that lead nowhere."""
    wrong = []
    for target in (first or second for first, second in LINK.findall(SPAN.sub("", prose(text)))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        missing = not file.exists() and file not in GENERATED
        if missing or not file.is_relative_to(ROOT):
            wrong.append(f"{target}: there is no such file in the repository")
        elif anchor and file.exists() and anchor not in anchors(text if not name else file.read_text("utf-8")):
            wrong.append(f"{target}: there is no such heading")
    return wrong


def script(text: str) -> str:
    """The Python of a page that runs, every line where it stands in the page."""
    lines = [""] * len(text.splitlines())
    for block in blocks(text):
        if block.language == "python" and block.excuse is None:
            lines[block.start : block.start + len(block.lines)] = block.lines
    return "\n".join(lines) + "\n"


def run_python(text: str, folder: Path) -> None:
    """Run the blocks of a page one after the other, as they are, in one namespace."""
    file = folder / "page.py"
    file.write_text(script(text), encoding="utf-8")
    runpy.run_path(str(file))


def spans(text: str) -> Iterator[str]:
    """The code in a page's sentences and tables."""
    yield from SPAN.findall(prose(text))
