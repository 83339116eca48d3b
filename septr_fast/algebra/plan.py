"""Which formulation each transformer of a model takes, and what it costs.

Work is counted as the floating-point operations of matrix products, 2 per multiply-add, which is what
`torch.utils.flop_counter` counts too. Formulations are compared by the work of one row, without the
folding of the weights: that is done once for all rows of all samples, and in evaluation only once.

Memory is counted as the values that autograd keeps for the backward pass, the few values per token of
the statistics left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

FORMULATIONS = ("direct", "merged", "low-rank", "class-only")
WRITTEN = "as written"
"""In place of a formulation: the transformer is called as the original is, since its weights cannot be folded, or since
so little work is left to save that it is not worth folding."""

OVERHEAD_FLOP = 50_000_000
"""What a CPU could compute in the time that a folded transformer takes for itself, whatever the batch. This and the two
below are fitted to times of small models on two cores of an Intel Xeon."""
BYTE_FLOP = 35
"""The same for each byte of the weights, which are compared with what was folded."""
BYTES = 4
"""Of a weight, as its dtype is left aside."""
FOLDING = 2
"""How many times as long as a pass's operations those of folding take, in training: they are products of few rows."""
ALONE_VALUES = 1 << 19
"""Of a sample's widest intermediate result: 4 MiB in float64. From there on a pass without gradients is never as
written, since no other sample shares its chunks either (`passes.torch.chunks`): its bits depend on no batch."""


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of one transformer.

    Attributes:
        axis: "height" or "width", the axis that a sequence runs along.
        rows: sequences per sample.
        length: grid tokens per sequence; the class token makes it one more.
        dim: token width.
        heads: number of heads.
        dim_head: width of a head.
        mlp_dim: width of the MLP's hidden layer.
        channels: input channels where this transformer projects the pixels, else None.
        last: whether only its class token is read.
    """

    axis: str
    rows: int
    length: int
    dim: int
    heads: int
    dim_head: int
    mlp_dim: int
    channels: int | None = None
    last: bool = False

    @property
    def tokens(self) -> int:
        """Tokens per sequence, the class token included."""
        return self.length + 1

    @property
    def widths(self) -> tuple[int, int, int]:
        """Heads, their width and that of the hidden layer."""
        return self.heads, self.dim_head, self.mlp_dim

    @property
    def has_projection(self) -> bool:
        """Whether the attention has an output projection: not with one head of full width."""
        return not (self.heads == 1 and self.dim_head == self.dim)


def per_transformer(formulation: str | Sequence[str | None] | None, transformers: int) -> tuple[str | None, ...]:
    """One forced formulation, or None, for each transformer; raise `ValueError` for what cannot be."""
    if formulation is not None and not isinstance(formulation, Sequence):
        raise ValueError(f"formulation: expected a name or a list of them, got {formulation!r}")
    each = [formulation] * transformers if formulation is None or isinstance(formulation, str) else list(formulation)
    if len(each) != transformers:
        raise ValueError(f"formulation: expected one name or {transformers}, got {len(each)}")
    for position, name in enumerate(each):
        if name is not None and name not in FORMULATIONS:
            raise ValueError(f"formulation: expected one of {', '.join(FORMULATIONS)}, got {name!r}")
        misplaced = (name == "low-rank" and position != 0) or (name == "class-only" and position != transformers - 1)
        if misplaced and not isinstance(formulation, str):
            raise ValueError(f"formulation: {name} is not possible for transformer {position} of {transformers}")
    return tuple(each)


def allowed(shape: TransformerShape) -> tuple[str, ...]:
    """The formulations that compute what is read of a transformer of this shape."""
    first = ("low-rank",) if shape.channels is not None else ()
    last = ("class-only",) if shape.last else ()
    return ("direct", "merged", *first, *last)


def choose(shape: TransformerShape, forced: str | None = None) -> str:
    """The allowed formulation with the least work per row; `forced` where that is allowed."""
    options = allowed(shape)
    if forced in options:
        return forced
    return min(options, key=lambda formulation: row_flops(shape, formulation))


def row_flops(shape: TransformerShape, formulation: str) -> int:
    """Work of one sequence of `shape.tokens` tokens in `formulation`."""
    tokens, dim, heads, width = shape.tokens, shape.dim, shape.heads, shape.heads * shape.dim_head
    mlp = 4 * dim * shape.mlp_dim
    out = 2 * width * dim if shape.has_projection else 0
    if formulation == "direct":
        return tokens * (6 * dim * width + 4 * tokens * width + out + mlp)
    if formulation == "merged":
        return tokens * (4 * heads * dim * dim + 4 * tokens * heads * dim + mlp)
    if formulation == "low-rank":
        channels = shape.channels or 0
        token = 2 * channels * dim + 2 * channels * channels
        scores = 2 * heads * channels * (channels + 2 * tokens)
        values = 2 * heads * (tokens * channels + tokens * dim + channels * dim)
        return tokens * (token + scores + values + mlp)
    if formulation == "class-only":
        return 4 * heads * shape.length * dim + 2 * dim * width + out + mlp
    raise ValueError(f"formulation: expected one of {', '.join(FORMULATIONS)}, got {formulation!r}")


def sample_flops(shape: TransformerShape, formulation: str) -> int:
    """Work of a whole sample: its rows, and what is done once for its class token or its pixels."""
    work = shape.rows * row_flops(shape, formulation)
    if formulation == "class-only":
        work += shape.heads * shape.dim * (4 * shape.dim_head + 2)
    if formulation != "low-rank" and shape.channels is not None:
        work += 2 * shape.rows * shape.length * shape.channels * shape.dim
    return work


def fold_flops(shape: TransformerShape, formulation: str) -> int:
    """Work of folding the weights: once per training step, once and for all in evaluation."""
    dim, heads, dim_head, width = shape.dim, shape.heads, shape.dim_head, shape.heads * shape.dim_head
    if formulation == "merged":
        circuits = 2 if shape.has_projection else 1
        return 2 * dim * width * (circuits * dim + 1)
    if formulation == "low-rank":
        basis = (shape.channels or 0) + shape.tokens
        out = dim * width if shape.has_projection else 0
        return 2 * basis * (basis * dim + 3 * dim * width + heads * basis * dim_head + width + out)
    return 0


def row_values(shape: TransformerShape, formulation: str) -> int:
    """The widest intermediate result of one sequence in `formulation`, by which rows are cut into chunks on a CPU."""
    tokens, heads = shape.tokens, shape.heads
    widest = {
        "direct": tokens * 3 * heads * shape.dim_head,
        "merged": tokens * heads * shape.dim,
        "low-rank": tokens * heads * tokens,
        "class-only": shape.length * shape.dim,
    }
    return widest[formulation]


def row_saved_values(shape: TransformerShape, formulation: str) -> int:
    """Values that autograd keeps of one sequence in `formulation`, without recomputation."""
    tokens, dim, heads, width = shape.tokens, shape.dim, shape.heads, shape.heads * shape.dim_head
    mlp = 2 * dim + 2 * shape.mlp_dim
    if formulation == "direct":
        return tokens * (2 * dim + 4 * width + heads * tokens + mlp)
    if formulation == "merged":
        return tokens * (2 * dim + 2 * heads * dim + heads * tokens + mlp)
    if formulation == "low-rank":
        return tokens * (heads * (3 * tokens + 3 * (shape.channels or 0)) + mlp)
    if formulation == "class-only":
        return 2 * shape.length * dim + 3 * heads * shape.tokens + heads * dim + width + mlp
    raise ValueError(f"formulation: expected one of {', '.join(FORMULATIONS)}, got {formulation!r}")


@dataclass(frozen=True)
class Step:
    """One transformer of a plan: its shape and the formulation that it takes.

    `reason` says why it runs `WRITTEN`, or why another formulation was given up; None where nothing stands in the way.
    The work of what runs as written is counted as that of the original.
    """

    name: str
    shape: TransformerShape
    formulation: str
    reason: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The fields; what was worked out from them stays behind."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def reference_flops(self) -> int:
        """Work of a sample as the original is written."""
        return sample_flops(self.shape, "direct")

    @property
    def flops(self) -> int:
        """Work of a sample as it runs here, folding left out."""
        return sample_flops(self.shape, "direct" if self.formulation == WRITTEN else self.formulation)

    @property
    def fold_flops(self) -> int:
        """Work of folding this transformer's weights."""
        return fold_flops(self.shape, self.formulation)

    @cached_property
    def least_batches(self) -> tuple[int, int]:
        """Samples from which on the formulation pays on a CPU: without gradients, and with them."""
        if self.formulation == WRITTEN:
            return 1, 1
        shape, saved = self.shape, max(self.reference_flops - self.flops, self.reference_flops // 10)
        weights = 4 * shape.dim * shape.heads * shape.dim_head + 2 * shape.dim * shape.mlp_dim
        costs = (OVERHEAD_FLOP + BYTE_FLOP * BYTES * weights, OVERHEAD_FLOP + FOLDING * self.fold_flops)
        evaluates, trains = (-(-cost // max(1, saved)) for cost in costs)
        alone = shape.rows * row_values(shape, self.formulation) >= ALONE_VALUES
        return (1 if alone else evaluates), trains

    @cached_property
    def written(self) -> Step:
        """The same transformer as the original is written."""
        return replace(self, formulation=WRITTEN)

    def for_batch(self, samples: int, *, trains: bool) -> Step:
        """This step, or the one as written where that is quicker on a CPU for so many samples."""
        return self if samples >= self.least_batches[trains] else self.written

    @property
    def reference_saved_values(self) -> int:
        """Values kept of a sample for the backward pass as the original is written."""
        return self.shape.rows * row_saved_values(self.shape, "direct")

    @property
    def saved_values(self) -> int:
        """Values kept of a sample for the backward pass as it runs here."""
        formulation = "direct" if self.formulation == WRITTEN else self.formulation
        return self.shape.rows * row_saved_values(self.shape, formulation)


@dataclass(frozen=True)
class Plan:
    """The steps of a model, in the order in which they run, and its classifier.

    `print(plan)` shows a table. All totals are of one forward pass.

    Attributes:
        steps: the transformers.
        num_classes: outputs of the classifier where that is a linear layer, otherwise 0.
        itemsize: bytes per value.
        notes: what runs as it is written, and why; printed below the table.
        weighs: whether on a CPU small batches run as written.
    """

    steps: tuple[Step, ...]
    num_classes: int
    itemsize: int = 4
    notes: tuple[str, ...] = ()
    weighs: bool = False

    def _classifier(self, batch: int) -> int:
        return 2 * batch * self.steps[-1].shape.dim * self.num_classes

    def reference_flops(self, batch: int = 1) -> int:
        """Work of the original for `batch` samples."""
        return batch * sum(step.reference_flops for step in self.steps) + self._classifier(batch)

    def flops(self, batch: int = 1, folded: bool = False) -> int:
        """Work of this package for `batch` samples, with the folding unless the weights are `folded` already."""
        work = batch * sum(step.flops for step in self.steps) + self._classifier(batch)
        return work if folded else work + sum(step.fold_flops for step in self.steps)

    def reference_saved_bytes(self) -> int:
        """Bytes that the original keeps of one sample for the backward pass."""
        return self.itemsize * sum(step.reference_saved_values for step in self.steps)

    def saved_bytes(self) -> int:
        """Bytes that this package keeps of one sample for the backward pass, without recomputation."""
        return self.itemsize * sum(step.saved_values for step in self.steps)

    def __str__(self) -> str:
        header = ("transformer", "formulation", "rows x tokens", "MFLOP/row", "as run", "saved MB", "as run")
        table = [header, *(self._cells(step) for step in self.steps)]
        widths = [max(len(row[column]) for row in table) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in pairs)
            for pairs in (list(enumerate(zip(row, widths, strict=True))) for row in table)
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._totals(), *self._small(), *self.notes])

    def _cells(self, step: Step) -> tuple[str, ...]:
        shape, megabytes = step.shape, self.itemsize / 1e6
        return (
            step.name,
            step.formulation,
            f"{shape.rows} x {shape.tokens}",
            f"{step.reference_flops / shape.rows / 1e6:.1f}",
            f"{step.flops / shape.rows / 1e6:.1f}",
            f"{step.reference_saved_values * megabytes:.1f}",
            f"{step.saved_values * megabytes:.1f}",
        )

    def _small(self) -> list[str]:
        """From how many samples on all transformers are folded on a CPU; nothing where one sample is enough."""
        if not self.weighs:
            return []
        evaluates, trains = (max(step.least_batches[place] for step in self.steps) for place in (0, 1))
        if max(evaluates, trains) <= 1:
            return []
        least = f"{evaluates} spectrograms at a time, {trains} in training"
        return [f"on a CPU all transformers run so from {least}; of fewer some run as written, as folding costs more"]

    def _totals(self) -> list[str]:
        written, run = self.reference_flops(), self.flops()
        kept_written, kept_run = self.reference_saved_bytes(), self.saved_bytes()
        fold = sum(step.fold_flops for step in self.steps)
        return [
            f"per spectrogram: {written / 1e9:.2f} GFLOP as written, {run / 1e9:.2f} as run ({run / written:.1%}),",
            f"{fold / 1e9:.2f} of them to fold the weights, once per training step or once in evaluation;",
            f"kept for backward: {kept_written / 1e6:.1f} MB as written, {kept_run / 1e6:.1f} as run "
            f"({kept_run / kept_written:.1%}), without recomputation",
        ]
