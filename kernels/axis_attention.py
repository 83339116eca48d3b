"""Attention along one axis on the kernels of `attention` and `attention_backward`: launchers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import launch
from .attention import axis_attention_fwd_kernel
from .attention_backward import axis_attention_bwd_query_kernel
from .attention_key_backward import axis_attention_bwd_key_kernel


@dataclass(frozen=True)
class Operands:
    """What attention along one axis reads.

    Attributes:
        query: `(batch, rows, length, heads, head_dim)`, the scale inside.
        key: `(batch, rows, length, key_heads, head_dim)`; `key_heads` divides `heads`.
        value: like `key`, or None where the keys are the values too.
        cls_query: `(batch, heads, head_dim)`.
        cls_key: `(batch, key_heads, head_dim)`.
        cls_value: like `cls_key`, or None where the keys are the values too.
        valid: `(batch,)`, int64, contiguous: how many grid tokens of a sample's sequences are keys; None for all.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None
    cls_query: Tensor
    cls_key: Tensor
    cls_value: Tensor | None
    valid: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The values, which may be the keys."""
        return self.key if self.value is None else self.value

    @property
    def cls_values(self) -> Tensor:
        """The class token's value, which may be its key."""
        return self.cls_key if self.cls_value is None else self.cls_value

    @property
    def cls_queries(self) -> Tensor:
        """The class token's queries as tokens: `(batch, rows, group, key_heads, head_dim)`."""
        return self.grouped(self.cls_query.unsqueeze(1).expand(-1, self.key.shape[1], -1, -1))

    def grouped(self, per_head: Tensor) -> Tensor:
        """View `(batch, rows, heads, …)` as `(batch, rows, group, key_heads, …)`."""
        return per_head.unflatten(2, (self.key.shape[3], -1)).transpose(2, 3)


@dataclass(frozen=True)
class ClassGradients:
    """What every sequence gives to the gradients of the class token's query, key and value, float32.

    Attributes:
        query: `(sequences, heads, head_dim)`.
        grid: `(1 or 2, sequences, key_heads, programs, head_dim)`, of key and value or of both in one, what the
            grid tokens' queries give.
        cls: likewise, what the class token's own queries give.
    """

    query: Tensor
    grid: Tensor
    cls: Tensor

    @classmethod
    def empty(cls, operands: Operands, sequences: int) -> ClassGradients:
        """To be written for so many sequences like those of `operands`."""
        heads, head_dim, key_heads = *operands.query.shape[3:], operands.key.shape[3]
        count = 1 if operands.value is None else 2
        query = torch.empty(sequences, heads, head_dim, dtype=torch.float32, device=operands.query.device)
        taken = (("axis_attention_bwd_query", operands.query), ("class_query_bwd", operands.cls_queries))
        programs = [_programs(_config(name, operands, queries), operands, queries) for name, queries in taken]
        return cls(query, *(query.new_empty(count, sequences, key_heads, each, head_dim) for each in programs))

    def of(self, sequences: slice) -> ClassGradients:
        """The part of some sequences behind one another."""
        return ClassGradients(self.query[sequences], self.grid[:, sequences], self.cls[:, sequences])

    def sums(self, batch: int, rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients of query, key and value (None where it is the key): `(batch, heads, head_dim)` each."""
        query = self.query.unflatten(0, (batch, rows)).sum(1)
        key, *value = (
            grid.unflatten(0, (batch, rows)).sum((1, 3)) + own.unflatten(0, (batch, rows)).sum((1, 3))
            for grid, own in zip(self.grid, self.cls, strict=True)
        )
        return query, key, value[0] if value else None


def attend(operands: Operands, out: Tensor, cls_out: Tensor, lse: Tensor, cls_lse: Tensor) -> None:
    """Attention of the grid tokens and of the class token.

    Args:
        operands: what is read.
        out: written, `(batch, rows, length, heads, head_dim)`, any strides.
        cls_out: written, `(batch, rows, heads, head_dim)`, any strides.
        lse: written, `(batch, rows, length, heads, 2)`, float32, any strides: the log-sum-exp of the scores in
            two parts, the highest score and the sum of the exponentials less it.
        cls_lse: written, `(batch, rows, heads, 2)`, likewise.
    """
    _forward("axis_attention_fwd", operands, operands.query, out, lse)
    attend_class_token(operands, cls_out, cls_lse)


def attend_class_token(operands: Operands, cls_out: Tensor, cls_lse: Tensor) -> None:
    """The class token's part of `attend` alone: its queries against all keys; see there."""
    _forward("class_query_fwd", operands, operands.cls_queries, operands.grouped(cls_out), operands.grouped(cls_lse))


def attend_backward(
    operands: Operands,
    lse: Tensor,
    cls_lse: Tensor,
    grad_out: Tensor,
    grad_cls_out: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor | None,
    grad_cls: ClassGradients,
) -> None:
    """Write the gradients of `attend`.

    Args:
        operands: what `attend` read.
        lse: what it wrote.
        cls_lse: likewise.
        grad_out: gradient of its `out`, any strides.
        grad_cls_out: gradient of its `cls_out`, any strides.
        grad_query: written, like `query`, any strides.
        grad_key: written, like `key`; the gradients of keys and values where they are one tensor.
        grad_value: written, like `value`, or None.
        grad_cls: written.
    """
    delta, cls_delta = torch.empty_like(lse[..., 0]), torch.empty_like(cls_lse[..., 0])
    _query_backward(
        "axis_attention_bwd_query", operands, operands.query, grad_out, lse, delta, grad_query, grad_cls.grid
    )
    grad_cls_query = grad_cls.query.unflatten(0, operands.key.shape[:2])
    grad, parts, deltas, written = map(operands.grouped, (grad_cls_out, cls_lse, cls_delta, grad_cls_query))
    _query_backward("class_query_bwd", operands, operands.cls_queries, grad, parts, deltas, written, grad_cls.cls)
    _key_backward(operands, grad_out, grad_cls_out, lse, cls_lse, delta, cls_delta, grad_key, grad_value)


def _forward(name: str, operands: Operands, query: Tensor, out: Tensor, lse: Tensor) -> None:
    batch, rows, queries, heads, head_dim = query.shape
    arguments = {**_keys(operands, heads), "rows": rows, "QUERIES": queries, "HEAD_DIM": head_dim}
    arguments |= {"q_ptr": query, "q_strides": query.stride(), "out_ptr": out, "out_strides": out.stride()}
    arguments |= {"lse_ptr": lse, "lse_strides": lse.stride()}
    config = _config(name, operands, query)
    products = _products(2, query, operands.key, config)
    launch.launch(
        name,
        axis_attention_fwd_kernel,
        batch * rows * operands.key.shape[3] * _programs(config, operands, query),
        config,
        arguments,
        device=query.device,
        flops=products[0],
        executed_flops=products[1],
    )


def _query_backward(
    name: str,
    operands: Operands,
    query: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    grad_query: Tensor,
    grad_cls: Tensor,
) -> None:
    """Write `delta`, `grad_query` and, in `grad_cls`, what these queries give the class token's key and value."""
    batch, rows, queries, heads, head_dim = query.shape
    arguments = {**_keys(operands, heads), "rows": rows, "QUERIES": queries, "HEAD_DIM": head_dim}
    arguments |= {"q_ptr": query, "q_strides": query.stride()}
    arguments |= {"grad_ptr": grad, "grad_strides": grad.stride()}
    arguments |= {"lse_ptr": lse, "lse_strides": lse.stride(), "delta_ptr": delta, "delta_strides": delta.stride()}
    arguments |= {"grad_q_ptr": grad_query, "grad_q_strides": grad_query.stride()}
    config = _config(name, operands, query)
    arguments |= {"grad_cls_k_ptr": grad_cls[0], "grad_cls_v_ptr": grad_cls[-1]}
    resident = operands.key.shape[2] <= config.tiles["BLOCK_K"]
    products = _products(3 if resident else 5, query, operands.key, config)
    launch.launch(
        name,
        axis_attention_bwd_query_kernel,
        batch * rows * operands.key.shape[3] * _programs(config, operands, query),
        config,
        arguments,
        device=query.device,
        flops=products[0],
        executed_flops=products[1],
    )


def _key_backward(
    operands: Operands,
    grad: Tensor,
    cls_grad: Tensor,
    lse: Tensor,
    cls_lse: Tensor,
    delta: Tensor,
    cls_delta: Tensor,
    grad_key: Tensor,
    grad_value: Tensor | None,
) -> None:
    query, key, value = operands.query, operands.key, operands.values
    cls_query, cls_grad, cls_lse, cls_delta = (
        operands.cls_queries,
        *(operands.grouped(x) for x in (cls_grad, cls_lse, cls_delta)),
    )
    grad_values = grad_key if grad_value is None else grad_value
    batch, rows, length, key_heads, head_dim = key.shape
    group = query.shape[3] // key_heads
    block_d = launch.feature_block(head_dim)
    config = _config("axis_attention_bwd_key", operands, query)
    arguments: dict[str, Any] = {"lse_ptr": lse, "cls_lse_ptr": cls_lse, "delta_ptr": delta}
    arguments["valid_ptr"] = operands.valid
    arguments |= {"cls_delta_ptr": cls_delta, "lse_strides": lse.stride(), "cls_lse_strides": cls_lse.stride()}
    arguments |= {"delta_strides": delta.stride(), "cls_delta_strides": cls_delta.stride()}
    strided = {"q": query, "k": key, "v": value, "cls_q": cls_query, "grad": grad, "cls_grad": cls_grad}
    for name, tensor in {**strided, "grad_k": grad_key, "grad_v": grad_values}.items():
        arguments |= {f"{name}_ptr": tensor, f"{name}_strides": tensor.stride()}
    arguments |= {"rows": rows, "KEY_HEADS": key_heads, "GROUP": group, "LENGTH": length, "HEAD_DIM": head_dim}
    arguments |= {"BLOCK_D": block_d, "BLOCK_G": launch.feature_block(group), "SHARED": operands.value is None}
    arguments["CHAINED"] = operands.value is None and launch.architecture(query.device) not in launch.UNCHAINED
    tile_q, tile_k = config.tiles["BLOCK_Q"], config.tiles["BLOCK_K"]
    tiles = launch.ceil_div(length, tile_k)
    padded = tiles * tile_k * (group * launch.ceil_div(length, tile_q) * tile_q + arguments["BLOCK_G"])
    launch.launch(
        "axis_attention_bwd_key",
        axis_attention_bwd_key_kernel,
        batch * rows * key_heads * tiles,
        config,
        arguments,
        device=query.device,
        flops=8 * batch * rows * key_heads * group * length * (length + 1) * head_dim,
        executed_flops=8 * batch * rows * key_heads * padded * block_d,
    )


def _keys(operands: Operands, heads: int) -> dict[str, Any]:
    """The arguments that every kernel over queries shares."""
    key, value = operands.key, operands.values
    cls_key, cls_value = operands.cls_key, operands.cls_values
    return {
        "k_ptr": key,
        "v_ptr": value,
        "cls_k_ptr": cls_key,
        "cls_v_ptr": cls_value,
        "valid_ptr": operands.valid,
        "k_strides": key.stride(),
        "v_strides": value.stride(),
        "cls_k_strides": cls_key.stride(),
        "cls_v_strides": cls_value.stride(),
        "HEADS": heads,
        "GROUP": heads // key.shape[3],
        "KEYS": key.shape[2],
        "BLOCK_D": launch.feature_block(key.shape[4]),
        "SHARED": operands.value is None,
    }


def _programs(config: launch.Config, operands: Operands, query: Tensor) -> int:
    """How many programs take the queries that share a key's head, of one sequence: by tiles, and by heads or not."""
    queries, heads = query.shape[2:4]
    members = 1 if config.tiles.get("TOGETHER") else heads // operands.key.shape[3]
    return members * launch.ceil_div(queries, config.tiles["BLOCK_Q"])


def _config(name: str, operands: Operands, query: Tensor) -> launch.Config:
    """The configuration of kernel `name`; that of separate keys and values is another one."""
    name = name if operands.value is None else f"{name}_direct"
    keys, head_dim = operands.key.shape[2], operands.key.shape[4]
    config = launch.choose(name, query.device, query.dtype, launch.feature_block(head_dim))
    return launch.fit(config, BLOCK_Q=query.shape[2], BLOCK_K=keys, BLOCK_C=head_dim)


def _products(count: int, query: Tensor, key: Tensor, config: launch.Config) -> tuple[int, int]:
    """Useful and executed operations of `count` products between all queries and keys."""
    batch, rows, queries, heads, head_dim = query.shape
    tile_q, tile_k = config.tiles["BLOCK_Q"], config.tiles["BLOCK_K"]
    padded_queries = launch.ceil_div(queries, tile_q) * tile_q
    padded_keys = launch.ceil_div(key.shape[2], tile_k) * tile_k
    each = 2 * count * batch * rows * heads
    return each * queries * key.shape[2] * head_dim, each * padded_queries * padded_keys * launch.feature_block(
        head_dim
    )
