"""Loss curves of a small model trained beside the reference."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from septr_fast import SepTr, reference
from trust.outcome import Progress

CONFIG: dict[str, Any] = {
    "input_size": (8, 12),
    "num_classes": 4,
    "depth": 2,
    "heads": 2,
    "dim_head": 16,
    "mlp_dim": 32,
    "dim": 24,
}
SEED = 0
OTHERS = (1, 2)
"""Seeds of the reference runs that show how far apart runs may be."""
BATCH = 8
RATE = 2e-3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def batch(random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spectrograms of noise with a tone that rises or falls, in one half or the other of the bins; and which it is."""
    labels = torch.randint(CONFIG["num_classes"], (BATCH,), generator=random)
    height, width = CONFIG["input_size"]
    x = torch.randn(BATCH, 1, height, width, generator=random)
    steps = torch.linspace(0, height / 2 - 1, width).round().long()
    for sample, label in enumerate(labels.tolist()):
        bins = steps if label % 2 else steps.flip(0)
        x[sample, 0, bins + (label // 2) * (height // 2), torch.arange(width)] += 2
    return x, labels


def losses(kind: type[nn.Module], seed: int, dtype: torch.dtype, steps: int, progress: Progress) -> Tensor:
    """The loss of every step; parameters and data are drawn from the seed. bfloat16 is by autocast."""
    torch.manual_seed(seed)
    model, random = kind(**CONFIG), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    found = []
    for _ in range(steps):
        x, labels = batch(random)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
        progress(1)
    return torch.tensor(found, dtype=torch.float64)


def distance(one: Tensor, other: Tensor) -> float:
    """Mean difference of two curves, step by step."""
    return (one - other).abs().mean().item()


def train_beside_the_reference(steps: int, progress: Progress) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each dtype, and what lies outside of the spread of two reference runs with other seeds."""
    rows, wrong = [], []
    for name, dtype in DTYPES.items():
        ours = losses(SepTr, SEED, dtype, steps, progress)
        theirs = losses(reference.SepTr, SEED, dtype, steps, progress)
        others = [losses(reference.SepTr, seed, dtype, steps, progress) for seed in OTHERS]
        found = distance(ours, theirs)
        spread = min(distance(one, other) for one, other in combinations([theirs, *others], 2))
        tail = steps // 4
        rows.append(
            {
                "dtype": name,
                "SepTr to the reference": found,
                "reference to reference, other seeds": spread,
                "first loss": ours[0].item(),
                "mean of the last quarter": ours[-tail:].mean().item(),
                "of the reference": theirs[-tail:].mean().item(),
                "of the other seeds": ", ".join(f"{other[-tail:].mean().item():.3g}" for other in others),
            }
        )
        if not found <= spread:
            wrong.append(f"training in {name}: {found:.3g} from the reference's curve, spread {spread:.3g}")
    return rows, wrong
