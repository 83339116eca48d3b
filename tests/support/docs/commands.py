"""The commands of pages, read by the parsers of the programs that they start; nothing is run."""

from __future__ import annotations

import argparse
import io
import pkgutil
import re
import runpy
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import setuptools
from support.docs.pages import ROOT, blocks, spans
from torch.distributed import run as torchrun

from benchmarks.gpu import __main__ as gpu_script
from comparison import command as comparing
from septr_fast.commands.main import COMMANDS
from septr_fast.commands.main import main as septr_fast_command
from training import options as training_options

FOLDERS = re.compile(r"(?:septr_fast|kernels|benchmarks|tests|docs|examples)/[\w./*-]*")
OUTPUT = re.compile(r"(?:benchmarks|examples)/out\b")
PROGRAMS = ("make", "pip", "septr-fast", "python", "pytest", "torchrun")


def command_lines(text: str) -> Iterator[str]:
    """The commands in a page's shell blocks, without comments and empty lines."""
    for block in blocks(text):
        if block.language == "sh":
            for line in "\n".join(block.lines).replace("\\\n", " ").splitlines():
                if shlex.split(line, comments=True):
                    yield line


@contextmanager
def parsing() -> Iterator[io.StringIO]:
    """Catch what a parser prints and its exit; one with an error is a `ValueError` with what it says."""
    printed, said = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(said):
            yield printed
    except SystemExit as ended:
        if ended.code:
            raise ValueError(said.getvalue().strip().splitlines()[-1]) from None


def check_command(line: str, folder: Path, *, whole: bool = True) -> None:
    """Raise `ValueError` for a command that would not start; `FOLDER` in it stands for `folder`.

    A command that is not `whole`, in a sentence, may lack arguments.
    """
    words = [str(folder) if word == "FOLDER" else word for word in shlex.split(line, comments=True)]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, words = Path(words[0]).name, words[1:]
    if program == "python" and words[:1] == ["-m"]:
        program, words = words[1], words[2:]
    elif program == "python" and words:
        program, words = words[0], words[1:]
    checks = {
        "make": check_make,
        "pip": check_pip,
        "septr-fast": check_septr_fast,
        "septr_fast": check_septr_fast,
        "pytest": check_pytest,
        "torchrun": check_torchrun,
        "examples/train.py": check_train,
        "examples/compare_models.py": check_comparison,
        "benchmarks.gpu": check_gpu,
        "benchmarks.suite.pages": check_nothing,
        "benchmarks.measuring.scaling": check_nothing,
        "benchmarks.measuring.forecasts": check_nothing,
    }
    if program not in checks:
        raise ValueError(f"{line}: expected one of {', '.join(checks)}, got {program}")
    if not whole and not any(word.startswith("-") for word in words):
        words = words[:1]
        if program in ("septr-fast", "septr_fast"):
            words = [*words, "--help"]
        elif program not in ("make",):
            return
    checks[program](words)


def check_make(words: Sequence[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):(?!=)", text, re.MULTILINE)
    variables = re.findall(r"^(\w+) *[?:]?=", text, re.MULTILINE)
    for word in words:
        name, assigned, _ = word.partition("=")
        if name not in (variables if assigned else targets):
            raise ValueError(f"make {word}: expected one of {', '.join(variables if assigned else targets)}")


def check_pip(words: Sequence[str]) -> None:
    found = re.fullmatch(r"install (?:\.|septr_fast)(?:\[([\w,]+)\])?", " ".join(words))
    if not found:
        raise ValueError(f"pip {' '.join(words)}: expected to install this package")
    with mock.patch.object(setuptools, "setup") as setup, mock.patch.object(Path, "read_text", return_value=""):
        runpy.run_path(str(ROOT / "setup.py"))
    extras = setup.call_args.kwargs["extras_require"]
    for name in filter(None, (found[1] or "").split(",")):
        if name not in extras:
            raise ValueError(f"pip: expected an extra out of {', '.join(extras)}, got {name}")


def check_septr_fast(words: Sequence[str]) -> None:
    with ExitStack() as stack:
        for command in COMMANDS.values():
            stack.enter_context(mock.patch.object(command, "run", return_value=0))
        stack.enter_context(parsing())
        septr_fast_command(words)


def check_train(words: Sequence[str]) -> None:
    with parsing():
        training_options.parse(words, completed=dict)  # No weights are there.


def check_comparison(words: Sequence[str]) -> None:
    with parsing():
        comparing.parse(words)


def check_torchrun(words: Sequence[str]) -> None:
    with parsing():
        given = torchrun.get_args_parser().parse_args(words)
    checks = {("examples/train.py", False): check_train, ("septr_fast", True): check_septr_fast}
    started = given.training_script, bool(given.module)
    if started not in checks:
        raise ValueError(f"torchrun: expected examples/train.py or -m septr_fast, got {given.training_script}")
    checks[started](given.training_script_args)


def check_gpu(words: Sequence[str]) -> None:
    class ParsedError(Exception):
        pass

    with mock.patch("benchmarks.gpu.bare.prepare", side_effect=ParsedError), mock.patch("sys.path", []), parsing():
        try:
            gpu_script.main(words)
        except ParsedError:
            return


def check_nothing(words: Sequence[str]) -> None:
    if words:
        raise ValueError(f"expected no arguments, got {' '.join(words)}")


class Options(argparse.ArgumentParser):
    """The options of a `conftest.py`, and those of plugins that pages use."""

    def __init__(self, folder: str) -> None:
        super().__init__(prog="pytest", allow_abbrev=False)
        self.add_argument("paths", nargs="*")
        for name in ("--benchmark-json", "--benchmark-histogram"):
            self.add_argument(name)
        self.add_argument("--benchmark-only", action="store_true")
        runpy.run_path(str(ROOT / folder / "conftest.py"))["pytest_addoption"](self)

    def getgroup(self, _: str) -> Options:
        return self

    def addoption(self, *names: str, **settings: Any) -> None:
        self.add_argument(*names, **settings)


def check_pytest(words: Sequence[str]) -> None:
    path = next((word for word in words if not word.startswith("-")), "")
    if not path or not (ROOT / path).exists():
        raise ValueError(f"pytest: expected a path in the repository first, got {path!r}")
    with parsing():
        Options(Path(path).parts[0]).parse_args(words)


def known_options() -> set[str]:
    """All options of all programs that pages tell of."""
    texts = [Options("benchmarks").format_help(), Options("tests").format_help()]
    calls = [lambda: training_options.parse(["--help"]), lambda: gpu_script.main(["--help"])]
    calls += [lambda: comparing.parse(["--help"])]
    calls += [lambda name=name: septr_fast_command([name, "--help"]) for name in COMMANDS]
    for call in calls:
        with parsing() as printed:
            call()
        texts.append(printed.getvalue())
    return set(re.findall(r"--[a-z][a-z-]*", " ".join(texts)))


def wrong_spans(text: str, folder: Path, options: set[str]) -> list[str]:
    """Code in sentences that names a file, an object, an option or a command that there is not."""
    wrong = []
    for span in spans(text):
        if FOLDERS.fullmatch(span) and not OUTPUT.match(span) and not any(ROOT.glob(span.rstrip("/"))):
            wrong.append(f"{span}: there is no such file")
        elif re.fullmatch(r"--[a-z-]+", span) and span not in options:
            wrong.append(f"{span}: no program has such an option")
        elif re.fullmatch(r"septr_fast(\.\w+)+(\(.*\))?", span) and not resolves(span.partition("(")[0]):
            wrong.append(f"{span}: there is no such object")
        elif span.split()[0] in PROGRAMS and " " in span:
            try:
                check_command(span, folder, whole=False)
            except ValueError as error:
                wrong.append(f"{span}: {error}")
    return wrong


def resolves(name: str) -> bool:
    """Whether a dotted name is that of a module or of something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
