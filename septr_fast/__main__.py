"""Command line: `python -m septr_fast` with `plan`, `predict`, `explain`, `info`, `kernels`, `tune` or `report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from septr_fast import explain_command, info, kernel_command, predict_command, tune
from septr_fast.model import SepTr
from septr_fast.plan import FORMULATIONS
from septr_fast.reference import AXES
from septr_fast.report import command as report_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (`sys.argv` by default); return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m septr_fast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_plan(commands.add_parser("plan", help="the formulation of every transformer, its work and its memory"))
    kernel_command.add_arguments(commands.add_parser("kernels", help="compile every kernel and say what falls short"))
    commands.add_parser("info", help="versions, devices, the backend of every pass there, and why")
    tune.add_arguments(commands.add_parser("tune", help="measure launch configurations on this GPU"))
    predict_command.add_arguments(commands.add_parser("predict", help="the classes of audio files"))
    explain_command.add_arguments(commands.add_parser("explain", help="what a model looks at in an audio file, drawn"))
    report_command.add_arguments(commands.add_parser("report", help="stored results as a page with tables and charts"))
    options = vars(parser.parse_args(arguments))
    others: dict[str, Callable[..., int]] = {
        "info": info.run,
        "kernels": kernel_command.run,
        "tune": tune.run,
        "predict": predict_command.run,
        "explain": explain_command.run,
        "report": report_command.run,
    }
    command = others.get(options.pop("command"))
    if command is not None:
        return command(**options)
    try:
        with torch.device("meta"):
            model = SepTr(**options)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{model.plan()}\n")
    return 0


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument(
        "--input-size", nargs="+", type=int, action=_Size, default=(128, 128), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--num-classes", type=int, default=35)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--mlp-dim", type=int, default=256)
    parser.add_argument("--dim-head", type=int, default=256)
    parser.add_argument("--down-sample-input", nargs="+", type=int, action=_Size, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--first-axis", choices=AXES, default="height")
    parser.add_argument("--formulation", choices=FORMULATIONS, help="forced wherever it is possible")


class _Size(argparse.Action):
    """One int for both sides, or height and width."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if len(values) > 2:
            parser.error(f"{option_string}: expected one int or two, got {len(values)}")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


if __name__ == "__main__":
    sys.exit(main())
