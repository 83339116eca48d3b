"""The command: from options to a finished run, and its exit status."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from septr_fast.commands.options import shown
from training import options as run_options
from training import results
from training.data import preparation
from training.loop import Run
from training.options import Options
from training.stopping import Stop

_LONGEST_PREPARATION = timedelta(hours=6)
"""How long processes wait for the one that makes or reads the clips."""

_KINDS = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)

_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit status, 128 and the signal's number if one stopped it."""
    options = run_options.parse(arguments)
    try:
        return train(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"train.py: {shown(str(error))}\n")
        return 2


def train(options: Options) -> int:
    """Begin a run, or go on with the one in its folder; returns as `main`.

    Raises:
        ValueError: for options that do not fit each other, the data, the machine or the run that was begun.
    """
    preparation.check_options(options)
    accelerator = start_processes(options)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    level = logging.INFO if accelerator.is_main_process else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])
    status = _train(options, accelerator)
    # Models first: DDP waits for its group of processes when it goes, sometimes for ever if that is gone.
    accelerator.free_memory()
    accelerator.end_training()
    return status


class OneLine(logging.Formatter):
    """Messages of this program as one line each, whatever the names of files and classes in them hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The message; what is no character is escaped."""
        message = super().formatMessage(record)
        return shown(message) if record.name.partition(".")[0] in ("training", "septr_fast") else message


def start_processes(options: Options) -> Accelerator:
    """Device and processes of the run, checked against the options.

    Raises:
        ValueError: for a batch that does not divide, a precision without a device for it, or processes that share
            work in another way.
    """
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision=options.precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=_LONGEST_PREPARATION)],
    )
    if accelerator.distributed_type not in _KINDS:
        raise ValueError(
            f"parallel: expected processes that --parallel ddp or fsdp2 shares the work of, got those of Accelerate's "
            f"own {accelerator.distributed_type}; leave it out of its configuration"
        )
    pieces = accelerator.num_processes * options.accumulate
    if options.batch % pieces:
        raise ValueError(
            f"batch: expected a multiple of {pieces}, {accelerator.num_processes} processes times "
            f"{options.accumulate} pieces, got {options.batch}"
        )
    if options.precision == "fp16" and accelerator.device.type != "cuda":
        raise ValueError(f"precision: expected no or bf16 on {accelerator.device.type}, got fp16")
    return accelerator


def _train(options: Options, accelerator: Accelerator) -> int:
    finished = options.out / results.NAME
    if finished.exists():
        _logger.info("the run in %s is finished: see %s, or give another --out", options.out, finished)
        return 0
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            preparation.begin(options, accelerator.device)
    prepared = preparation.read(options)
    run = Run(options, prepared, accelerator)
    with Stop() as stop:
        if not run.train(stop):
            _logger.info(
                "stopped in epoch %d behind step %d; the same command goes on",
                run.progress.epoch + 1,
                run.progress.step,
            )
            return 128 + (stop.signal or 0)
    content = results.write(run, prepared)
    for name, model in content["models"].items():
        test = model["test"]
        _logger.info("%s: %s, best epoch %d", name, _shown(test), model["best_epoch"])
    if content["comparison"] is not None:
        _logger.info(
            "the reference's step over that of septr: %s", json.dumps(content["comparison"]["reference_over_septr"])
        )
    return 0


def _shown(test: dict[str, Any] | None) -> str:
    """The result of a test, on one line."""
    if test is None:
        return "no test split"
    accuracy = f"test accuracy {test['accuracy']:.1%} of {test['clips']} clips"
    precision = test["mean_average_precision"]
    return accuracy if precision is None else f"test mean average precision {precision:.3f}, {accuracy}"
