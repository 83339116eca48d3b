"""Work for the processes of `trust.runner` that goes wrong in one way each; for its tests."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

OUTCOME = {"what": "Nothing.", "cannot": "Anything.", "tried": 3, "wrong": [], "figures": {}}


def work(name: str, full: bool, sender: Connection) -> None:
    """Tell of two cases, then do what `name` says."""
    sender.send(2)
    if name == "crash":
        os._exit(11)
    if name == "hang":
        time.sleep(600)
    sender.send({**OUTCOME, "figures": {"full": int(full)}})
