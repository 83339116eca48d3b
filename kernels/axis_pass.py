"""One transformer along one axis of the grid: positions, attention, MLP, and their gradients.

The rows of the grid are taken in chunks whose queries stay near the processor. For a chunk of n rows:

    x̂ = normalize(x + positions)                     kernel, (n · length, dim)
    projected = x̂ W_qᵀ + b_q                         vendor's product
    attended = attention(projected, x̂, class token)   kernels, (n · length + n, heads · head_dim)
    branch = attended W_oᵀ + b_o                     vendor's product
    y = x + positions + branch, z = y + MLP(y)       kernel

Where the table says so, one kernel does the middle three (`fused_attention`), in the forward pass. Else
`attended` holds the grid tokens first and the class tokens of the n rows after them, so that one product
serves both. In the merged form x̂ is keys and values; in the direct form `projected` holds queries, keys and
values. Besides the inputs only `y` is kept for the backward pass, which computes the rest of a chunk again.
Gradients of weights are summed over the chunks in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .axis_attention import ClassGradients, Operands, attend, attend_backward, attend_class_token
from .fused_attention import attend_and_project, serves
from .normalization import normalize, normalize_backward
from .operators import along
from .passes import Layers, add_mlp, add_mlp_backward, add_up, branch_gradient, chunks, parts, sequences
from .products import column_sums, outer


@dataclass(frozen=True)
class Weights:
    """A transformer's folded weights in the dtype of the products, as `septr_fast.algebra` makes them.

    Attributes:
        query_weight: `(heads * dim, dim)` in the merged form, `(3 * heads * head_dim, dim)` in the direct one.
        query_bias: `(heads * dim,)` or `(3 * heads * head_dim,)`.
        out_weight: `(dim, heads * head_dim)`, or None where attention's output is not projected.
        out_bias: `(dim,)`, or None likewise.
        hidden_weight: `(hidden, dim)`.
        hidden_bias: `(hidden,)`.
        mlp_weight: `(dim, hidden)`.
        mlp_bias: `(dim,)`.
    """

    query_weight: Tensor
    query_bias: Tensor
    out_weight: Tensor | None
    out_bias: Tensor | None
    hidden_weight: Tensor
    hidden_bias: Tensor
    mlp_weight: Tensor
    mlp_bias: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.query_weight.dtype

    @property
    def layers(self) -> Layers:
        """The MLP."""
        return Layers(self.hidden_weight, self.hidden_bias, self.mlp_weight, self.mlp_bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that are there, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class Settings:
    """What a pass is told besides tensors.

    Attributes:
        heads: number of heads.
        merged: whether keys and values are the normalized tokens.
        attention_eps: added to the variance of a token before the attention.
        mlp_eps: likewise before the MLP.
        axis: "height" or "width", the axis that a sequence runs along.
    """

    heads: int
    merged: bool
    attention_eps: float
    mlp_eps: float
    axis: str


@dataclass(frozen=True)
class _Chunk:
    """What is computed of a chunk of rows up to the attention's output."""

    hat: Tensor
    operands: Operands
    attended: Tensor
    lse: Tensor
    cls_lse: Tensor


def forward(
    grid: Tensor,
    cls_token: Tensor,
    pos: Tensor,
    weights: Weights,
    settings: Settings,
    keep: bool,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Run the pass.

    Args:
        grid: `(batch, height, width, dim)`, any strides.
        cls_token: `(batch, dim)`.
        pos: `(1 + length, dim)`, the class token's position first.
        weights: folded weights.
        settings: heads, form, epsilons and axis.
        keep: whether to return what the backward pass needs.
        valid: `(batch,)`, int64, how many tokens of a sample's sequences are keys; None for all.

    Returns:
        The grid `(batch, height, width, dim)`, the class token of every sequence `(batch, rows, dim)`, and
        with `keep` what both were between attention and MLP.
    """
    rows = along(grid, settings.axis)
    batch, count, _, dim = rows.shape
    out, cls_out = grid.new_empty(grid.shape), grid.new_empty(batch, count, dim)
    middle, cls_middle = (torch.empty_like(out), torch.empty_like(cls_out)) if keep else (None, None)
    cls_branch = torch.empty(batch, count, dim, dtype=weights.dtype, device=grid.device)
    cls_hat, cls_projected = _project_class_token(cls_token, pos, weights, settings)
    for chunk in chunks(rows, len(weights.query_bias), weights.dtype):
        samples = chunk[0]
        cls = (cls_hat[samples], cls_projected[samples])
        body, front = _branch(rows[chunk], pos, *cls, weights, settings, None if valid is None else valid[samples])
        cls_branch[chunk] = front
        kept = None if middle is None else along(middle, settings.axis)[chunk]
        written = along(out, settings.axis)[chunk]
        add_mlp(rows[chunk], pos[1:], body, weights.layers, settings.mlp_eps, kept, written)
    kept = None if cls_middle is None else cls_middle.unsqueeze(2)
    repeated = _class_rows(cls_token, count)
    add_mlp(repeated, pos[:1], cls_branch.unsqueeze(2), weights.layers, settings.mlp_eps, kept, cls_out.unsqueeze(2))
    return out, cls_out, middle, cls_middle


def backward(
    grad_out: Tensor,
    grad_cls_out: Tensor,
    grid: Tensor,
    cls_token: Tensor,
    pos: Tensor,
    weights: Weights,
    settings: Settings,
    middle: Tensor,
    cls_middle: Tensor,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Gradients of `forward`, from those of its first two results (any strides) and what it kept.

    Returns:
        The gradients of grid, class token and positions, and those of the weights by name in float32.
    """
    rows, grad_rows, middle_rows = (along(x, settings.axis) for x in (grid, grad_out, middle))
    batch, count = rows.shape[:2]
    sums = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in weights.tensors.items()}
    grad_grid, grad_pos = grid.new_empty(grid.shape), torch.zeros_like(pos[1:], dtype=torch.float32)
    grad_cls_middle = torch.empty_like(cls_middle)
    through, grad = (x.unsqueeze(2) for x in (cls_middle, grad_cls_out))
    add_up(sums, add_mlp_backward(through, grad, weights.layers, settings.mlp_eps, grad_cls_middle.unsqueeze(2)))
    cls_hat, cls_projected = _project_class_token(cls_token, pos, weights, settings)
    added, grad_cls = {**sums, "pos": grad_pos}, None
    for chunk in chunks(rows, len(weights.query_bias), weights.dtype):
        x, samples = rows[chunk], chunk[0]
        hat = normalize(x, pos[1:], settings.attention_eps, weights.dtype)
        keys = None if valid is None else valid[samples]
        computed = _attend(hat, cls_hat[samples], cls_projected[samples], weights, settings, keys)
        grad_cls = grad_cls or ClassGradients.empty(computed.operands, batch * count)
        grad_middle, grad_branch, found = branch_gradient(
            middle_rows[chunk], grad_rows[chunk], grad_cls_middle[chunk], weights.layers, settings.mlp_eps
        )
        grad_hat, of_attention = _attend_backward(
            computed, grad_branch, weights, settings, grad_cls.of(sequences(chunk, count))
        )
        part = normalize_backward(
            grad_hat, x, pos[1:], grad_middle, settings.attention_eps, along(grad_grid, settings.axis)[chunk]
        )
        assert part is not None
        add_up(added, {**found, **of_attention, "pos": part})
    grad_projected, grad_cls_hat = _class_gradients(grad_cls, cls_hat, cls_projected, (batch, count), settings)
    rounded = grad_projected.to(weights.dtype)
    add_up(sums, {"query_weight": outer(rounded, cls_hat), "query_bias": grad_projected.sum(0)})
    grad_cls_hat = grad_cls_hat + (rounded @ weights.query_weight).float()
    grad_cls_token = torch.empty_like(cls_token)
    cls_part = normalize_backward(
        grad_cls_hat[:, None, None],
        cls_token[:, None, None],
        pos[:1],
        grad_cls_middle.sum(1, dtype=torch.float32)[:, None, None],
        settings.attention_eps,
        grad_cls_token[:, None, None],
    )
    assert cls_part is not None
    return grad_grid, grad_cls_token, torch.cat([cls_part, grad_pos]).to(pos.dtype), sums


def _class_gradients(
    found: ClassGradients | None, cls_hat: Tensor, cls_projected: Tensor, shape: tuple[int, int], settings: Settings
) -> tuple[Tensor, Tensor]:
    """Gradients of the class token projected and normalized, from what the sequences give: float32, None for none."""
    if found is None:
        return cls_projected.float(), cls_hat.float()
    query, *others = (x.flatten(1) for x in found.sums(*shape) if x is not None)
    if settings.merged:
        return query, others[0]
    return torch.cat([query, *others], dim=1), torch.zeros_like(cls_hat, dtype=torch.float32)


def _branch(
    x: Tensor,
    pos: Tensor,
    cls_hat: Tensor,
    cls_projected: Tensor,
    weights: Weights,
    settings: Settings,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What the attention adds in the rows `x`: to grid tokens, and to the class token of each row."""
    hat = normalize(x, pos[1:], settings.attention_eps, weights.dtype)
    projects = settings.merged and weights.out_weight is not None and weights.out_bias is not None
    if projects and valid is None and serves(hat):
        assert weights.out_weight is not None
        assert weights.out_bias is not None
        branch = torch.empty_like(hat)
        projections = (weights.query_weight, weights.query_bias, weights.out_weight, weights.out_bias)
        attend_and_project(hat, cls_hat, *projections, settings.heads, branch)
        attended = _attend_class_token(hat, cls_hat, cls_projected, settings)
        return branch, F.linear(attended, weights.out_weight, weights.out_bias)
    attended = _attend(hat, cls_hat, cls_projected, weights, settings, valid).attended
    if weights.out_weight is not None:
        attended = F.linear(attended, weights.out_weight, weights.out_bias)
    return parts(attended, hat.shape)


def _attend_class_token(hat: Tensor, cls_hat: Tensor, cls_projected: Tensor, settings: Settings) -> Tensor:
    """What the class token attends to in every row, all heads side by side; merged form."""
    samples, rows = hat.shape[:2]
    cls_query, cls_key, _ = _split(cls_projected, cls_hat, settings)
    attended = cls_projected.new_empty(samples, rows, *cls_query.shape[1:])
    lse = torch.empty(*attended.shape[:3], 2, dtype=torch.float32, device=hat.device)
    key = hat.unsqueeze(-2)
    attend_class_token(Operands(key, key, None, cls_query, cls_key, None), attended, lse)
    return attended.flatten(2)


def _attend(
    hat: Tensor, cls_hat: Tensor, cls_projected: Tensor, weights: Weights, settings: Settings, valid: Tensor | None
) -> _Chunk:
    """Project and attend in normalized rows `(samples, rows, length, dim)`."""
    samples, rows, length, _ = hat.shape
    projected = F.linear(hat, weights.query_weight, weights.query_bias)
    query, key, value = _split(projected, hat, settings)
    cls_query, cls_key, cls_value = _split(cls_projected, cls_hat, settings)
    heads, head_dim = query.shape[3:]
    attended = projected.new_empty(samples * rows * (length + 1), heads * head_dim)
    body, front = (view.unflatten(-1, (heads, head_dim)) for view in parts(attended, hat.shape))
    lse = torch.empty(samples, rows, heads, length, 2, dtype=torch.float32, device=hat.device).transpose(2, 3)
    cls_lse = torch.empty(samples, rows, heads, 2, dtype=torch.float32, device=hat.device)
    operands = Operands(query, key, value, cls_query, cls_key, cls_value, valid)
    attend(operands, body, front, lse, cls_lse)
    return _Chunk(hat, operands, attended, lse, cls_lse)


def _attend_backward(
    computed: _Chunk, grad_branch: Tensor, weights: Weights, settings: Settings, grad_cls: ClassGradients
) -> tuple[Tensor, dict[str, Tensor]]:
    """From the gradient of the branch that of x̂, and those of the attention's weights; writes `grad_cls`."""
    grad_attended, found = grad_branch, dict[str, Tensor]()
    if weights.out_weight is not None:
        grad_attended = grad_branch @ weights.out_weight
        found["out_weight"] = outer(grad_branch, computed.attended)
        found["out_bias"] = column_sums(grad_branch)
    hat, operands = computed.hat, computed.operands
    samples, rows, length, _ = hat.shape
    grad_out, grad_cls_out = (part.unflatten(-1, operands.query.shape[3:]) for part in parts(grad_attended, hat.shape))
    grad_projected = hat.new_empty(samples, rows, length, weights.query_weight.shape[0])
    grad_hat = torch.empty_like(hat)
    written = _split(grad_projected, grad_hat, settings)
    attend_backward(operands, computed.lse, computed.cls_lse, grad_out, grad_cls_out, *written, grad_cls)
    flat_grad, flat_grad_hat = grad_projected.flatten(0, 2), grad_hat.flatten(0, 2)
    found["query_weight"] = outer(flat_grad, hat.flatten(0, 2))
    found["query_bias"] = column_sums(flat_grad)
    if settings.merged:
        flat_grad_hat.addmm_(flat_grad, weights.query_weight)
    else:
        torch.mm(flat_grad, weights.query_weight, out=flat_grad_hat)
    return grad_hat, found


def _project_class_token(cls_token: Tensor, pos: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor]:
    """The class token normalized `(batch, dim)` and projected `(batch, features)`, once for all its sequences."""
    hat = normalize(cls_token[:, None, None], pos[:1], settings.attention_eps, weights.dtype)[:, 0, 0]
    return hat, F.linear(hat, weights.query_weight, weights.query_bias)


def _class_rows(cls_token: Tensor, rows: int) -> Tensor:
    """The class token as the only token of every row: `(batch, rows, 1, dim)`, not copied."""
    return cls_token[:, None, None].expand(-1, rows, -1, -1)


def _split(projected: Tensor, hat: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries, keys and values `(…, heads, head_dim)` out of what is projected and what is normalized."""
    if settings.merged:
        return projected.unflatten(-1, (settings.heads, -1)), hat.unsqueeze(-2), None
    query, key, value = projected.unflatten(-1, (3, settings.heads, -1)).unbind(-3)
    return query, key, value
