"""How launches that write or read packed buffers grow to any number of parts, all of the same values.

A part is what the programs of one sequence, or of one block of tokens, leave in a buffer, or find there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from septr_fast.kernels.launch import ceil_div

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """A packed buffer as `(outer, parts, elements)`.

    Attributes:
        elements: of a part side by side.
        outer: how often all parts follow one another.
        use: whether the launch writes it or reads it; or writes it aside, and it need not pass 2³¹ elements.
    """

    elements: int
    outer: int = 1
    use: Literal["written", "read", "aside"] = "written"


@dataclass(frozen=True)
class Stretched:
    """How a launch grows with the number of its parts.

    Attributes:
        same: of strided tensors the dimensions whose strides become zero, so that all parts are of the same values.
        grown: other arguments, tiles among them, by the number of parts.
        buffers: all that are packed, by the names of their arguments.
        programs: for each part.
    """

    same: dict[str, tuple[int, ...]]
    grown: Callable[[int], Arguments]
    buffers: dict[str, Parts]
    programs: int = 1


def _one_row(*names: str) -> dict[str, tuple[int, ...]]:
    """Samples and rows of strided tensors at the same place."""
    return dict.fromkeys(names, (0, 1))


def _normalize(given: Arguments) -> Stretched:
    block = given["BLOCK_M"]
    buffers = {"hat_ptr": Parts(block * given["WIDTH"])}
    return Stretched(_one_row("x"), lambda parts: {"tokens": parts * block}, buffers)


def _normalize_bwd(given: Arguments) -> Stretched:
    return Stretched(
        _one_row("grad_hat", "x", "residual_grad", "grad_x"),
        lambda parts: {"sequences": parts * given["SEQUENCES"]},
        {"partial_ptr": Parts(given["length"] * given["WIDTH"])},
        given["blocks"],
    )


def _mlp_bwd(given: Arguments) -> Stretched:
    block = given["BLOCK_M"]
    widths = {"hat": "WIDTH", "activated": "HIDDEN", "grad_h": "HIDDEN", "rounded": "WIDTH"}
    return Stretched(
        _one_row("y", "grad_z", "grad_y"),
        lambda parts: {"tokens": parts * block},
        {
            f"{name}_ptr": Parts(block * given[width])
            for name, width in widths.items()
            if given[f"{name}_ptr"] is not None
        },
    )


def _axis_attention_bwd_query(given: Arguments) -> Stretched:
    groups = given["HEADS"] // (given["GROUP"] if given.get("TOGETHER") else 1)
    programs = groups * ceil_div(given["QUERIES"], given["BLOCK_Q"])
    names = ("grad_cls_k_ptr",) if given["SHARED"] else ("grad_cls_k_ptr", "grad_cls_v_ptr")
    return Stretched(
        _one_row("q", "k", "v", "grad", "lse", "delta", "grad_q"),
        lambda parts: {"rows": parts},
        dict.fromkeys(names, Parts(programs * given["HEAD_DIM"])),
        programs,
    )


def _class_attention_fwd(given: Arguments) -> Stretched:
    return Stretched(
        _one_row("grid"),
        lambda parts: {"rows": parts},
        {"attended_ptr": Parts(given["heads"] * given["WIDTH"]), "statistics_ptr": Parts(given["heads"] * 2)},
    )


def _slices(given: Arguments, parts: int) -> Arguments:
    return {"slices": parts, "rows": parts * given["ROWS"]}


def _class_key_bwd(given: Arguments) -> Stretched:
    return Stretched(
        _one_row("grad_attended", "attended", "statistics"),
        lambda parts: _slices(given, parts),
        {
            "cls_part_ptr": Parts(given["WIDTH"]),
            "query_part_ptr": Parts(given["parts"] * given["heads"] * given["WIDTH"]),
            "delta_ptr": Parts(given["ROWS"] * given["heads"]),
        },
    )


def _class_attention_bwd(given: Arguments) -> Stretched:
    return Stretched(
        _one_row("grad_attended", "grid", "statistics", "grad_grid"),
        lambda parts: _slices(given, parts),
        {
            "pos_part_ptr": Parts(given["length"] * given["WIDTH"]),
            "query_part_ptr": Parts((given["blocks"] + 1) * given["heads"] * given["WIDTH"]),
            "delta_ptr": Parts(given["ROWS"] * given["heads"], use="read"),
        },
        given["blocks"],
    )


def _low_rank_fwd(given: Arguments) -> Stretched:
    statistics = Parts(given["heads"] * (given["length"] + 1))
    return Stretched(
        dict.fromkeys(("r", "u", "query"), (0,)),
        lambda parts: {"sequences": parts, "PARTS": parts},
        {
            "rows_ptr": Parts(given["queries"] * given["columns"]),
            "highest_ptr": statistics,
            "total_ptr": statistics,
        },
        given["blocks"] * given["heads"],
    )


def _low_rank_fwd_of_one_sequence(given: Arguments) -> Stretched:
    """A part is a block of its queries, for the first head; all its tokens have the same values."""
    block = given["BLOCK_Q"]
    statistics = Parts(given["first"] + block, use="aside")
    return Stretched(
        {**dict.fromkeys(("r", "u", "query"), (1,)), **dict.fromkeys(("table", "cls_table"), (0,))},
        lambda parts: {"sequences": 1, "queries": parts * block, "blocks": parts},
        {"rows_ptr": Parts(block * given["columns"]), "highest_ptr": statistics, "total_ptr": statistics},
    )


def _low_rank_bwd_class_key(given: Arguments) -> Stretched:
    heads, tokens, features = given["heads"], given["length"] + 1, 1 + given["CHANNELS"]
    query_blocks = given["first"] + given["blocks"]
    return Stretched(
        dict.fromkeys(("r", "u", "query", "grad"), (0,)),
        lambda parts: {"sequences": parts, "PARTS": parts},
        {
            "highest_ptr": Parts(heads * tokens, use="read"),
            "total_ptr": Parts(heads * tokens, use="read"),
            "delta_ptr": Parts(heads * tokens),
            "factor_parts_ptr": Parts(tokens * features, (given["key_blocks"] + 1 + query_blocks) * heads),
            "table_parts_ptr": Parts(tokens * heads * tokens),
            "slope_parts_ptr": Parts(heads * tokens * features, query_blocks),
        },
        given["blocks"] * heads,
    )


def _low_rank_bwd(given: Arguments) -> Stretched:
    stretched = _low_rank_bwd_class_key(given)
    buffers = {
        **stretched.buffers,
        "delta_ptr": replace(stretched.buffers["delta_ptr"], use="read"),
        "query_parts_ptr": Parts((given["length"] + 1) * given["heads"] * given["CHANNELS"], given["key_blocks"]),
    }
    return replace(stretched, buffers=buffers, programs=given["key_blocks"] * stretched.programs)


KERNELS: dict[str, tuple[Callable[[Arguments], Stretched], ...]] = {
    "normalize": (_normalize,),
    "normalize_bwd": (_normalize_bwd,),
    "mlp_bwd": (_mlp_bwd,),
    "axis_attention_bwd_query": (_axis_attention_bwd_query,),
    "class_query_bwd": (_axis_attention_bwd_query,),
    "class_attention_fwd": (_class_attention_fwd,),
    "class_key_bwd": (_class_key_bwd,),
    "class_attention_bwd": (_class_attention_bwd,),
    "low_rank_fwd": (_low_rank_fwd, _low_rank_fwd_of_one_sequence),
    "low_rank_bwd_class_key": (_low_rank_bwd_class_key,),
    "low_rank_bwd": (_low_rank_bwd,),
}
"""By the names of launches that have packed buffers, the ways to stretch them, given arguments and tiles."""
