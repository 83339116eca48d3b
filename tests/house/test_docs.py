"""README and docs: they are short, every link leads somewhere, their Python runs, their commands are the programs'."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
from support.docs.commands import check_command, command_lines, known_options, wrong_spans
from support.docs.pages import (
    GENERATED,
    LINKED,
    PAGES,
    README,
    ROOT,
    blocks,
    broken_links,
    run_python,
    script,
    too_long,
)

from septr_fast.commands.main import main as septr_fast_command

pytestmark = pytest.mark.usefixtures("one_thread")

README_LINES, README_BYTES = 160, 10_240
PAGE_LINES = 250
GENERATED_LINES = 120

NOT_RUN = {"docs/ecosystem.md": ["tests/adopt/test_onnx.py exports to ONNX"]}
"""Pages with blocks of Python that are not run here, and the reasons that stand before them."""


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_readme_is_one_page() -> None:
    assert too_long(README.read_text(encoding="utf-8"), README_LINES, tables=False) == []
    assert len(README.read_bytes()) <= README_BYTES


@pytest.mark.parametrize("page", PAGES[1:], ids=ids)
def test_pages_are_short(page: Path) -> None:
    assert too_long(page.read_text(encoding="utf-8"), PAGE_LINES, tables=True) == []


@pytest.mark.parametrize("page", GENERATED, ids=ids)
def test_generated_pages_are_summaries(page: Path) -> None:
    if not page.exists():
        pytest.skip("not written yet")
    assert len(page.read_text(encoding="utf-8").splitlines()) <= GENERATED_LINES


@pytest.mark.parametrize("page", LINKED, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(page.read_text(encoding="utf-8"), tmp_path)


def test_blocks_that_do_not_run_are_known() -> None:
    found = {ids(page): [one.excuse for one in blocks(page.read_text("utf-8")) if one.excuse] for page in PAGES}
    assert {page: excuses for page, excuses in found.items() if excuses} == NOT_RUN
    for block in (block for page in PAGES for block in blocks(page.read_text("utf-8")) if block.excuse):
        ast.parse("\n".join(block.lines))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_start(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in command_lines(text):
        check_command(line, tmp_path)
    assert wrong_spans(text, tmp_path, known_options()) == []


def test_what_the_cheap_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    shown = ["\n".join(block.lines) for block in blocks(page) if not block.language]
    plans = [line for line in command_lines(page) if line.startswith("septr-fast plan")]
    assert len(plans) == len(shown) == 1
    assert septr_fast_command(shlex.split(plans[0])[1:]) == 0
    assert capsys.readouterr().out.strip() == shown[0]
    assert septr_fast_command(["info"]) == 0


def test_excuses_and_fences_are_read() -> None:
    text = "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n\n```python\nx = 1\n```\n"
    assert [block.excuse for block in blocks(text)] == ["needs a GPU", None]
    assert script(text) == "\n" * 6 + "x = 1\n\n"
    with pytest.raises(ValueError, match="line 1: expected an end"):
        list(blocks("```sh\nmake test\n"))


def test_python_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_python("```python\n1 / 0\n```\n", tmp_path)


def test_long_pages_are_found() -> None:
    assert too_long("a\nb\n", 1, tables=True) == ["2 lines, expected at most 1"]
    assert too_long("x" * 111, 1, tables=True) == ["line 1: 111 columns, expected at most 110"]
    assert too_long("|" * 111, 1, tables=True) == []
    assert len(too_long("|" * 111, 1, tables=False)) == 1


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[a](LICENSE) ![b](docs/data-flow.svg) [c](#of-a-page) [d](https://x.y/z)\n# Of `a` page!\n", True),
        ("[a](docs/use.md#the-model)", True),
        ("[a](docs/results.md#results)", True),
        ("`[a](nowhere)`\n```\n[a](nowhere)\n```\n", True),
        ("[a](nowhere.md)", False),
        ("![a](nowhere.png)", False),
        ('<img alt="" src="nowhere.png">', False),
        ("[a](#nowhere)\n```\n# nowhere\n```\n", False),
        ("[a](docs/use.md#nowhere)", False),
        ("[a](../outside)", False),
    ],
)
def test_broken_links_are_found(text: str, right: bool) -> None:
    assert (broken_links(README, text.replace("page!", "page") if right else text) == []) == right


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "make test NOTHING=1",
        "pip install '.[nothing]'",
        "pip install another",
        "septr-fast nothing",
        "septr-fast predict clip.wav",
        "septr-fast plan --nothing",
        "python -m septr_fast plan --heads many",
        "python -m nothing",
        "python -m benchmarks.gpu --stage nothing --out results",
        "python -m benchmarks.gpu --stage check",
        "python -m benchmarks.suite.pages --nothing",
        "python examples/train.py --nothing",
        "python examples/train.py --batch 0",
        "torchrun --nothing 4 examples/train.py",
        "torchrun examples/nothing.py",
        "torchrun --nproc_per_node 4 examples/train.py --nothing",
        "pytest benchmarks/ --nothing",
        "pytest benchmarks/nothing.py",
        "pytest tests --full",
        "rm -rf build",
    ],
)
def test_wrong_commands_are_found(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_command(line, tmp_path)


@pytest.mark.parametrize(
    ("span", "right"),
    [
        ("docs/use.md", True),
        ("benchmarks/test_*.py", True),
        ("benchmarks/out/results.json", True),
        ("--benchmark-json", True),
        ("septr_fast.hub.SepTr", True),
        ("septr_fast.accelerate(model)", True),
        ("septr-fast predict", True),
        ("docs/nothing.md", False),
        ("--nothing", False),
        ("septr_fast.nothing", False),
        ("septr-fast nothing", False),
        ("septr-fast plan --nothing", False),
        ("make nothing", False),
    ],
)
def test_wrong_names_are_found(span: str, right: bool, tmp_path: Path) -> None:
    assert (wrong_spans(f"See `{span}`.", tmp_path, known_options()) == []) == right
