"""The command line: `septr-fast`, or `python -m septr_fast`, with one of `COMMANDS`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType

from septr_fast.commands import explain, forecast, info, kernels, plan, predict, report, tune

COMMANDS: dict[str, ModuleType] = {
    "plan": plan,
    "predict": predict,
    "explain": explain,
    "info": info,
    "kernels": kernels,
    "tune": tune,
    "forecast": forecast,
    "report": report,
}
"""Modules with `HELP`, `add_arguments(parser)` and `run(**options)`, which returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (`sys.argv` by default); return the exit status."""
    parser = argparse.ArgumentParser(prog="septr-fast", description=f"SepTr, fast: {', '.join(COMMANDS)}.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=command.__doc__))
    options = vars(parser.parse_args(arguments))
    status: int = COMMANDS[options.pop("command")].run(**options)
    return status
