"""The whole way from import to prediction, every way out barred, as a program: `trust.supply.offline FOLDER`.

An audit hook sees what Python does below all packages: connections, names that are looked up, programs that are
started, pickles. It raises, so that whatever tries ends. With `connect` or `pickle` behind the folder it tries.
"""

from __future__ import annotations

import pickle
import socket
import sys
from pathlib import Path
from typing import Any

BARRED = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "socket.bind",
    "urllib.Request",
    "http.client.connect",
    "ftplib.connect",
    "webbrowser.open",
}
"""From the start."""
BARRED_LATER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class"}
"""Once everything is imported."""
LATER = False


class BarredError(BaseException):
    """What nobody catches."""


def bar(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook."""
    if event in BARRED or (LATER and event in BARRED_LATER):
        raise BarredError(f"{event} {arguments!r}"[:200])


def use(folder: Path) -> None:
    """Everything that a user does with the package, on small sizes."""
    global LATER
    import numpy as np
    import soundfile
    import soxr  # noqa: F401
    import torch

    from septr_fast import LogMel, SepTr, predict_long
    from septr_fast.adopt import checkpoints
    from septr_fast.inference import prediction

    LATER = True
    front_end = LogMel(8000, 6, fft_size=128, frames=8)
    sizes: dict[str, Any] = {"num_classes": 3, "depth": 1, "heads": 2, "mlp_dim": 8, "dim_head": 4, "dim": 8}
    model = SepTr(input_size=(6, 8), **sizes)
    waveform = torch.randn(2, front_end.span)
    model(front_end(waveform)).sum().backward()
    torch.optim.AdamW(model.parameters()).step()
    model.eval().attention_maps(front_end(waveform))
    predict_long(model, torch.randn(1, 1, 6, 20), 8, 4)
    checkpoints.save(folder / "model.safetensors", model, ["no", "one", "yes"], front_end.settings)
    bundle = checkpoints.load(folder / "model.safetensors")
    soundfile.write(folder / "clip.wav", np.zeros(3000, np.float32) + 0.1, 11025)
    found = list(prediction.classify(bundle, [folder / "clip.wav"]))
    assert len(found) == 1, found
    assert isinstance(found[0], prediction.Prediction), found


def main(folder: Path, attempt: str = "") -> None:
    """Use the package, or do what is barred."""
    global LATER
    sys.addaudithook(bar)
    if attempt == "connect":
        socket.create_connection(("127.0.0.1", 9))
    elif attempt == "pickle":
        LATER = True
        pickle.loads(pickle.dumps(Path("x")))
    else:
        use(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
