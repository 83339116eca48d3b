"""Which elements of its arguments a launch of each kernel has to touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from septr_fast.kernels.launch import Launch, ceil_div
from support.kernels.tracing import element_addresses
from torch import Tensor

Views = list[Tensor]
"""Parts of one argument that hold the elements."""


def needed(launch: Launch) -> dict[str, Views]:
    """The elements, by argument: all of a tensor, but where a kernel's own rule says less."""
    found = {name: [x] for name, x in launch.arguments.items() if isinstance(x, Tensor)}
    rule = RULES.get(launch.name.removesuffix("_direct"))
    return {**found, **(rule(launch) if rule else {})}


def unlike(launch: Launch, touched: np.ndarray) -> list[str]:
    """How the distinct addresses that were `touched` differ from those that are needed, in words."""
    parts = {name: addresses(views) for name, views in needed(launch).items()}
    wrong = []
    for name, wanted in parts.items():
        missing = int((~np.isin(wanted, touched)).sum())
        if missing:
            wrong.append(f"leaves {missing} of {wanted.size} needed elements of {name} untouched")
    more = int((~np.isin(touched, np.concatenate(list(parts.values())))).sum())
    return [*wrong, *([f"touches {more} elements that it does not need"] if more else [])]


def addresses(views: Views) -> np.ndarray:
    """The distinct addresses of the elements of all `views`, sorted."""
    return np.unique(np.concatenate([element_addresses(x) for x in views]))


def _attention(launch: Launch) -> dict[str, Views]:
    """Keys and values in tiles of `BLOCK_K`, up to the last tile with a valid one."""
    given, tile = launch.arguments, launch.config.tiles["BLOCK_K"]
    if given["valid_ptr"] is None:
        return {}
    ends = [ceil_div(valid, tile) * tile for valid in given["valid_ptr"].tolist()]
    return {
        name: [given[name][sample : sample + 1, :, :end] for sample, end in enumerate(ends)]
        for name in ("k_ptr", "v_ptr")
    }


def _class_attention(launch: Launch) -> dict[str, Views]:
    """Of padded samples the valid tokens alone."""
    given = launch.arguments
    if given["valid_ptr"] is None:
        return {}
    ends = given["valid_ptr"].tolist()
    tokens = [given["grid_ptr"][sample : sample + 1, :, :end] for sample, end in enumerate(ends)]
    return {"grid_ptr": tokens, "pos_ptr": [given["pos_ptr"][: max(ends)]]}


def _class_attention_backward(launch: Launch) -> dict[str, Views]:
    """Of the query's parts all but the last: that one is the class token's own key's."""
    return {"query_part_ptr": [launch.arguments["query_part_ptr"][:, :, :-1]]}


def _of_queries(launch: Launch) -> tuple[dict[str, Views], Any]:
    """What kernels of the first transformer touch for their own queries, and the slice of these among all tokens."""
    given = launch.arguments
    queries = slice(given["first"], given["first"] + given["queries"])
    of_tokens = ("highest_ptr", "total_ptr", "delta_ptr")
    return {
        "u_ptr": [given["u_ptr"][:, queries], given["u_ptr"][:, 1:]],
        "query_ptr": [given["query_ptr"][:, queries]],
        "table_ptr": [given["table_ptr"][queries]],
        **{name: [given[name][:, :, queries]] for name in of_tokens if name in given},
    }, queries


def _low_rank(launch: Launch) -> dict[str, Views]:
    """The class token's factor is a key's for all queries; its pixel, which is zero, is not."""
    views, queries = _of_queries(launch)
    return {**views, "cls_table_ptr": [launch.arguments["cls_table_ptr"][queries]]}


def _low_rank_class_key(launch: Launch) -> dict[str, Views]:
    """As `_low_rank`; of parts those of the class token's key, of gradients all but the padding of their columns."""
    given = launch.arguments
    views, queries = _of_queries(launch)
    factors, first, blocks = given["factor_parts_ptr"], given["first"], given["blocks"]
    columns = given["heads"] * (given["length"] + 1 + given["CHANNELS"])
    of_class_key = given["key_blocks"]
    return {
        **views,
        "cls_table_ptr": [given["cls_table_ptr"][queries]],
        "grad_ptr": [given["grad_ptr"][:, :columns]],
        "factor_parts_ptr": [
            factors[of_class_key, :, :, queries],
            factors[of_class_key + 1 + first : of_class_key + 1 + first + blocks, :, :, 0],
        ],
        "table_parts_ptr": [given["table_parts_ptr"][:, queries, :, 0]],
        "slope_parts_ptr": [given["slope_parts_ptr"][first : first + blocks, :, :, 0]],
    }


def _low_rank_backward(launch: Launch) -> dict[str, Views]:
    """As `_low_rank`, for keys of the grid alone."""
    given = launch.arguments
    views, queries = _of_queries(launch)
    factors, first, blocks = given["factor_parts_ptr"], given["first"], given["blocks"]
    heads, length, keys = given["heads"], given["length"], given["key_blocks"]
    of_pixels = heads * (length + 1)
    return {
        **views,
        "r_ptr": [given["r_ptr"][:, queries], given["r_ptr"][:, 1:]],
        "slope_ptr": [given["slope_ptr"][:, :, 1:]],
        "bias_ptr": [given["bias_ptr"][:, 1:]],
        "grad_ptr": [
            given["grad_ptr"][:, : heads * length],
            given["grad_ptr"][:, of_pixels : of_pixels + heads * given["CHANNELS"]],
        ],
        "factor_parts_ptr": [
            factors[:keys, :, :, queries],
            factors[keys + 1 + first : keys + 1 + first + blocks, :, :, 1:],
        ],
        "query_parts_ptr": [given["query_parts_ptr"][:, :, queries]],
        "table_parts_ptr": [given["table_parts_ptr"][:, queries, :, 1:]],
        "slope_parts_ptr": [given["slope_parts_ptr"][first : first + blocks, :, :, 1:]],
    }


RULES: dict[str, Callable[[Launch], dict[str, Views]]] = {
    "axis_attention_fwd": _attention,
    "class_query_fwd": _attention,
    "class_attention_fwd": _class_attention,
    "class_attention_bwd": _class_attention_backward,
    "low_rank_fwd": _low_rank,
    "low_rank_bwd_class_key": _low_rank_class_key,
    "low_rank_bwd": _low_rank_backward,
}
"""Of the kernels that do not touch all elements of their arguments in every launch."""
