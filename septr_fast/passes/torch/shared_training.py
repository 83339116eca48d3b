"""Passes of a training step by autograd, whose chunks the cores share.

Autograd follows a graph in one thread, and the cores share each operation. Here every chunk has a graph of its own,
from its rows and the operands to its tokens, which one thread makes in the forward pass and one follows in the backward
pass; in the graph of the caller all of them are one node. The gradients of the operands are sums over the chunks, in
one order for a number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from septr_fast.algebra import older_torch
from septr_fast.algebra.folded import accumulation_dtype, tensors_of
from septr_fast.passes.observers import are_batched, transforms
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch import cores, merged_training
from septr_fast.passes.torch.chunk_gradients import Operands
from septr_fast.passes.torch.chunks import Chunks, Place, places

InTurn = Callable[..., tuple[Tensor, Tensor]]
"""The same without a node of its own: transform, operands and chunks in, class tokens and grid tokens out."""


class Job(NamedTuple):
    """What is no tensor of a pass.

    Attributes:
        transform: of operands and a chunk.
        in_turn: for what this cannot do.
        rebuild: operands from their tensors.
        size: samples and rows of a chunk.
        per_sample: how many tensors come with the rows.
    """

    transform: Callable[..., Tensor]
    in_turn: InTurn
    rebuild: Callable[[Sequence[Tensor]], Operands]
    size: tuple[int, int]
    per_sample: int


def serves(chunks: Chunks, operands: Operands, settings: Settings) -> bool:
    """Whether the cores share `chunks` of a training step, and nobody looks into the pass."""
    if not chunks.shared or settings.drops or older_torch.saves_by_hooks():
        return False
    return merged_training.is_alone(chunks.rows, *chunks.per_sample, *_tensors(operands))


def run(transform: Callable[..., Tensor], operands: Operands, chunks: Chunks, in_turn: InTurn) -> tuple[Tensor, Tensor]:
    """What `transform` makes of `chunks`.

    Returns:
        Class tokens `(batch, rows, dim)` and grid tokens `(batch, rows, length, dim)`, of which there may be none.
    """
    assert chunks.size is not None
    job = Job(transform, in_turn, _rebuilding(operands), chunks.size, len(chunks.per_sample))
    apply: Callable[..., tuple[Tensor, Tensor]] = _SharedPass.apply
    return apply(job, chunks.rows, *chunks.per_sample, *_tensors(operands))


class _Graph(NamedTuple):
    """Of one chunk: its inputs, in the order of those of the pass, and where its tokens came out."""

    leaves: list[Tensor]
    end: GradientEdge


class _SharedPass(torch.autograd.Function):
    """`run`. Where its gradients are to be differentiable, or several are taken at once, it is in turn."""

    @staticmethod
    def forward(ctx: Any, job: Job, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[1:]

        def take(place: Place) -> tuple[_Graph, Tensor]:
            leaves = [
                part.detach().requires_grad_(need) for part, need in zip(_at(job, tensors, place), needed, strict=True)
            ]
            with torch.enable_grad():
                tokens = job.transform(job.rebuild(leaves[1 + job.per_sample :]), *leaves[: 1 + job.per_sample])
            return _Graph(leaves, get_gradient_edge(tokens)), tokens.detach()

        graphs, tokens = zip(*cores.each(take, places(tensors[0], job.size)), strict=True)
        ctx.save_for_backward(*tensors)
        ctx.job, ctx.graphs = job, list(graphs)
        class_tokens, bodies = (
            torch.cat([part.flatten(0, 1) for part in parts])
            for parts in ([part[:, :, 0] for part in tokens], [part[:, :, 1:] for part in tokens])
        )
        of_rows = tensors[0].shape[:2]
        return class_tokens.unflatten(0, of_rows), bodies.unflatten(0, of_rows)

    @staticmethod
    def backward(ctx: Any, grad_class_tokens: Tensor, grad_bodies: Tensor) -> tuple[Any, ...]:
        tensors, job, graphs, needed = ctx.saved_tensors, ctx.job, ctx.graphs, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or transforms() or are_batched(grad_class_tokens, grad_bodies):
            plain = partial(_in_turn, job)
            return None, *merged_training.by_autograd(plain, tensors, needed, (grad_class_tokens, grad_bodies))
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        grad_rows = torch.zeros_like(tensors[0]) if needed[0] else None

        def take_back(chunks: Sequence[tuple[int, Place]]) -> list[Tensor | None]:
            sums = [
                torch.zeros_like(x, dtype=accumulation_dtype(x.dtype)) if need else None
                for x, need in zip(tensors[1:], needed[1:], strict=True)
            ]
            for number, place in chunks:
                grad = torch.cat([grad_class_tokens[place].unsqueeze(2), grad_bodies[place]], dim=2)
                (leaves, end), graphs[number] = graphs[number], graphs[number] if keep else None
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                found: Iterator[Tensor] = iter(
                    torch.autograd.grad(end, wanted, grad, retain_graph=keep, materialize_grads=True)
                )
                if grad_rows is not None:
                    grad_rows[place] = next(found)
                for index, total in enumerate(sums):
                    if total is not None:
                        part = total[place[0]] if index < job.per_sample else total
                        part += next(found)
            return sums

        numbered = list(enumerate(places(tensors[0], job.size)))
        sums, *others = cores.each(take_back, cores.shares(numbered))
        for other in others:
            for total, more in zip(sums, other, strict=True):
                if total is not None and more is not None:
                    total += more
        rounded = (None if total is None else total.to(x.dtype) for total, x in zip(sums, tensors[1:], strict=True))
        return None, grad_rows, *rounded


def _at(job: Job, tensors: Sequence[Tensor], place: Place) -> Iterator[Tensor]:
    """What a chunk takes of the tensors of a pass."""
    for index, tensor in enumerate(tensors):
        yield tensor[place] if index == 0 else tensor[place[0]] if index <= job.per_sample else tensor


def _in_turn(job: Job, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    rows, per_sample, operands = tensors[0], tensors[1 : 1 + job.per_sample], tensors[1 + job.per_sample :]
    return job.in_turn(job.transform, job.rebuild(operands), Chunks(rows, per_sample, job.size, shared=False))


def _tensors(operands: Operands) -> list[Tensor]:
    found: list[Tensor] = []
    for operand in operands:
        found += [operand] if isinstance(operand, Tensor) else tensors_of(operand).values()
    return found


def _rebuilding(operands: Operands) -> Callable[[Sequence[Tensor]], Operands]:
    """What makes operands like these of their tensors, in the order of `_tensors`."""
    kinds: list[tuple[Any, dict[str, Any], list[str]] | None] = []
    for operand in operands:
        if isinstance(operand, Tensor):
            kinds.append(None)
            continue
        names = list(tensors_of(operand))
        others = {field.name: getattr(operand, field.name) for field in fields(operand) if field.name not in names}
        kinds.append((type(operand), others, names))

    def rebuild(tensors: Sequence[Tensor]) -> Operands:
        left = iter(tensors)
        return tuple(
            next(left) if kind is None else kind[0](**kind[1], **{name: next(left) for name in kind[2]})
            for kind in kinds
        )

    return rebuild
