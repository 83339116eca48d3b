"""The merged pass of a training step on a CPU, in float32, with a backward pass written by hand.

Autograd runs the same arithmetic as `passes.axis_pass`, but makes a tensor of every part of a gradient and adds
them up afterwards, joins and splits the chunks' grids once more, and multiplies `queriesᵀ scores` where
`scoresᵀ queries` is the faster layout. Here a gradient grows where it lies: 4 to 6 percent of the time of a step
(default model, 64x64, two cores of an Intel Xeon).

The backward pass, per chunk, from the gradient `dz` of the tokens that come out, in the names of `Kept`:
`dW = doutᵀ in` and `din = dout W` for every product; `dx = dout + d(normalize)(dx̂)` for each of both sublayers; and of
the attention `A = P x̂`, `P = softmax(Q x̂ᵀ)`: `dP = dA x̂ᵀ`, `dS = P (dP - Σ P dP)`, `dQ = dS x̂` and
`dx̂ = Pᵀ dA + dSᵀ Q + dQ W`, whose three terms are summed in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from septr_fast.algebra.folded import Merged, Mlp
from septr_fast.passes.lengths import mean_over_rows
from septr_fast.passes.observers import are_batched, differentiates_forward, records, transforms
from septr_fast.passes.torch import cores
from septr_fast.passes.torch.chunks import Place, places
from septr_fast.passes.torch.linear import linear

Plain = Callable[..., tuple[Tensor, Tensor]]
"""The same pass by autograd: settings, rows, class token, positions and weights in, tokens and class token out."""


class Kept(NamedTuple):
    """What one chunk keeps for the backward pass; `tokens` counts those of all its rows."""

    mean: Tensor
    rstd: Tensor
    normalized: Tensor
    """Tokens with class token and positions, normalized, `(rows, 1 + length, dim)`."""
    query: Tensor
    """`(rows, (1 + length) * heads, dim)`."""
    probability: Tensor
    """`(rows, (1 + length) * heads, 1 + length)`."""
    attended: Tensor
    """`(tokens, heads * dim)`."""
    y: Tensor
    """What comes out of the attention sublayer, `(tokens, dim)`."""
    y_mean: Tensor
    y_rstd: Tensor
    y_normalized: Tensor
    """As `y`."""
    hidden: Tensor
    """Before the GELU, `(tokens, mlp_dim)`."""
    activated: Tensor
    """After it."""


class Weights(NamedTuple):
    """The weights of a merged pass, and in the backward pass their gradients."""

    query_weight: Tensor
    query_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    mlp_out_weight: Tensor
    mlp_out_bias: Tensor


class Settings(NamedTuple):
    """What is no tensor of a pass.

    Heads, the epsilons of both normalizations, the chunks' `(samples, rows)`, and whether the backward pass runs each
    chunk forward again instead of keeping what it needs.
    """

    heads: int
    eps: float
    mlp_eps: float
    chunk: tuple[int, int]
    recompute: bool


def weights_of(attention: Merged, mlp: Mlp) -> Weights:
    """The weights in the order of `Weights`."""
    of_mlp = (mlp.hidden_weight, mlp.hidden_bias, mlp.out_weight, mlp.out_bias)
    return Weights(attention.query_weight, attention.query_bias, attention.out_weight, attention.out_bias, *of_mlp)


def serves(*tensors: Tensor) -> bool:
    """Whether gradients of `tensors`, all in float32, are recorded on a CPU, and nobody looks into the pass."""
    return is_alone(*tensors) and all(tensor.dtype == torch.float32 for tensor in tensors)


def is_alone(*tensors: Tensor) -> bool:
    """Whether gradients of `tensors` are recorded on a CPU, and nobody looks into the pass."""
    return (
        torch.is_grad_enabled()
        and not records()
        and not differentiates_forward()
        and any(tensor.requires_grad for tensor in tensors)
        and all(tensor.device.type == "cpu" for tensor in tensors)
    )


def run(
    rows: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Weights, settings: Settings, plain: Plain
) -> tuple[Tensor, Tensor]:
    """The pass over `rows` `(batch, rows, length, dim)`.

    Returns:
        The tokens in the shape of `rows` and the class token, `(batch, dim)`.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _MergedPass.apply
    return apply(settings, plain, rows, cls_token, pos_embedding, *weights)


class _MergedPass(torch.autograd.Function):
    """`run`. Where its gradients are to be differentiable, or several are taken at once, it is by `plain`."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: Settings,
        plain: Plain,
        rows: Tensor,
        cls_token: Tensor,
        pos_embedding: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        given = Weights(*weights)
        out = torch.empty_like(rows)
        class_tokens = rows.new_empty(*rows.shape[:2], rows.shape[3])

        def write(place: Place) -> Sequence[Tensor]:
            of_chunk = _forward(rows[place], cls_token[place[0]], pos_embedding, given, settings)
            z = _out(of_chunk, given).view(*rows[place].shape[:2], -1, rows.shape[3])
            out[place] = z[:, :, 1:]
            class_tokens[place] = z[:, :, 0]
            return () if settings.recompute else of_chunk

        kept = [tensor for chunk in cores.each(write, places(rows, settings.chunk)) for tensor in chunk]
        ctx.save_for_backward(rows, cls_token, pos_embedding, *weights, *kept)
        ctx.settings, ctx.plain = settings, plain
        return out, mean_over_rows(class_tokens, None, "width")

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_class_token: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        given = 3 + len(Weights._fields)
        inputs, kept = saved[:given], saved[given:]
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or transforms() or are_batched(grad_out, grad_class_token):
            return (
                None,
                None,
                *by_autograd(partial(ctx.plain, ctx.settings), inputs, needed, (grad_out, grad_class_token)),
            )
        rows, cls_token, pos_embedding = inputs[:3]
        weights = Weights(*inputs[3:])
        of_rows = grad_class_token / rows.shape[1]
        grad_rows = torch.empty_like(rows) if needed[0] else None

        def take_back(chunks: Sequence[tuple[int, Place]]) -> _Sums:
            sums = _Sums(needed[3:], torch.zeros_like(cls_token), torch.zeros_like(pos_embedding))
            for number, place in chunks:
                if ctx.settings.recompute:
                    of_chunk = _forward(rows[place], cls_token[place[0]], pos_embedding, weights, ctx.settings)
                else:
                    of_chunk = Kept(*kept[number * len(Kept._fields) : (number + 1) * len(Kept._fields)])
                front = of_rows[place[0], None, None].expand(-1, grad_out[place].shape[1], -1, -1)
                grad = torch.cat([front, grad_out[place]], dim=2)
                x = _tokens(rows[place], cls_token[place[0]], pos_embedding)
                grad = _backward(grad.flatten(0, 1), x, of_chunk, weights, sums).view_as(grad)
                sums.cls_token[place[0]] += grad[:, :, 0].sum(1)
                sums.positions += grad.sum((0, 1))
                if grad_rows is not None:
                    grad_rows[place] = grad[:, :, 1:]
            return sums

        numbered = list(enumerate(places(rows, ctx.settings.chunk)))
        sums, *others = cores.each(take_back, cores.shares(numbered))
        for other in others:
            sums.add_all(other)
        return None, None, grad_rows, sums.cls_token, sums.positions, *sums.values


def _forward(body: Tensor, cls_token: Tensor, pos_embedding: Tensor, weights: Weights, settings: Settings) -> Kept:
    """A chunk `(samples, rows, length, dim)` through both sublayers but for the last product."""
    dim = body.shape[-1]
    x = _tokens(body, cls_token, pos_embedding)
    normalized, mean, rstd = torch.native_layer_norm(x, (dim,), None, None, settings.eps)
    query = linear(normalized, weights.query_weight, weights.query_bias).view(len(x), -1, dim)
    probability = torch.bmm(query, normalized.transpose(1, 2))
    torch.softmax(probability, -1, out=probability)
    attended = torch.bmm(probability, normalized).view(-1, settings.heads * dim)
    y = linear(attended, weights.out_weight, weights.out_bias).add_(x.flatten(0, 1))
    y_normalized, y_mean, y_rstd = torch.native_layer_norm(y, (dim,), None, None, settings.mlp_eps)
    hidden = linear(y_normalized, weights.hidden_weight, weights.hidden_bias)
    activated = torch.nn.functional.gelu(hidden)
    attention = (mean, rstd, normalized, query, probability, attended)
    return Kept(*attention, y, y_mean, y_rstd, y_normalized, hidden, activated)


def _out(kept: Kept, weights: Weights) -> Tensor:
    """What comes out of a chunk, `(tokens, dim)`."""
    return linear(kept.activated, weights.mlp_out_weight, weights.mlp_out_bias).add_(kept.y)


def _tokens(body: Tensor, cls_token: Tensor, pos_embedding: Tensor) -> Tensor:
    """Join the class token to each row and add positions: `(samples * rows, 1 + length, dim)`."""
    samples, rows, length, dim = body.shape
    x = body.new_empty(samples, rows, 1 + length, dim)
    torch.add(body, pos_embedding[1:], out=x[:, :, 1:])
    x[:, :, 0] = (cls_token + pos_embedding[0]).unsqueeze(1)
    return x.flatten(0, 1)


def _backward(grad: Tensor, x: Tensor, kept: Kept, weights: Weights, sums: _Sums) -> Tensor:
    """The gradient of `x` from that of what came out, both in the shape of `x`; those of the weights go to `sums`."""
    dim = grad.shape[-1]
    grad_z = grad.flatten(0, 1)
    sums.add("mlp_out", grad_z, kept.activated)
    grad_hidden = linear(grad_z, weights.mlp_out_weight.t())
    torch.ops.aten.gelu_backward.grad_input(grad_hidden, kept.hidden, grad_input=grad_hidden)
    sums.add("hidden", grad_hidden, kept.y_normalized)
    grad_y = _normalize_backward(linear(grad_hidden, weights.hidden_weight.t()), kept.y, kept.y_mean, kept.y_rstd).add_(
        grad_z
    )

    sums.add("out", grad_y, kept.attended)
    grad_attended = linear(grad_y, weights.out_weight.t()).view_as(kept.query)
    grad_scores = torch.bmm(grad_attended, kept.normalized.transpose(1, 2))
    torch.ops.aten._softmax_backward_data.out(
        grad_scores, kept.probability, -1, grad_scores.dtype, grad_input=grad_scores
    )
    grad_normalized = torch.bmm(kept.probability.transpose(1, 2), grad_attended)
    grad_normalized.baddbmm_(grad_scores.transpose(1, 2), kept.query)
    grad_query = torch.bmm(grad_scores, kept.normalized, out=grad_attended).view_as(kept.attended)
    sums.add("query", grad_query, kept.normalized.flatten(0, 1))
    grad_normalized.view(-1, dim).addmm_(grad_query, weights.query_weight)
    grad_x = _normalize_backward(grad_normalized, x, kept.mean, kept.rstd)
    return grad_x.add_(grad_y.view_as(grad_x))


def _normalize_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    wanted = [True, False, False]
    result: Tensor = torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, None, None, wanted)[0]
    return result


class _Sums:
    """Gradients of what all chunks read, summed over them; None of the weights' that are not needed."""

    def __init__(self, needed: Sequence[bool], cls_token: Tensor, positions: Tensor) -> None:
        self.cls_token, self.positions = cls_token, positions
        self._needed = Weights(*needed)  # type: ignore[arg-type]
        self._values: dict[str, Tensor] = {}

    @property
    def values(self) -> list[Tensor | None]:
        """In the order of `Weights`."""
        return [self._values.get(name) for name in Weights._fields]

    def add_all(self, other: _Sums) -> None:
        """Add the sums over other chunks."""
        self.cls_token += other.cls_token
        self.positions += other.positions
        for name, value in other._values.items():
            self._values[name] += value

    def add(self, name: str, grad: Tensor, given: Tensor) -> None:
        """Add those of one product: `grad` `(tokens, out)` of what came out, `given` `(tokens, in)` went in."""
        weight, bias = f"{name}_weight", f"{name}_bias"
        if getattr(self._needed, weight):
            if weight in self._values:
                self._values[weight].addmm_(grad.t(), given)
            else:
                self._values[weight] = grad.t() @ given
        if getattr(self._needed, bias):
            self._values[bias] = grad.sum(0) + self._values[bias] if bias in self._values else grad.sum(0)


def by_autograd(
    plain: Plain, inputs: Sequence[Tensor], needed: Sequence[bool], grads: tuple[Tensor, Tensor]
) -> list[Tensor | None]:
    """The gradients of `inputs`, None where not `needed`, as part of a graph where one is recorded.

    They are those of aliases: one input may be computed from another, whose gradient is not to pass through it.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(inputs, needed, strict=True)]
        results = plain(*aliases)
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    found = iter(torch.autograd.grad(results, wanted, grads, create_graph=differentiable, allow_unused=True))
    return [next(found) if need else None for need in needed]
