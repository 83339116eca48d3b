"""What a program of attention need not load again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from septr_fast.kernels import launch
from support.judging import FaultError
from support.kernels import attention_cases
from support.kernels.tracing import element_addresses, trace_accesses

from trust.parts import memory


def loaded_once(form: attention_cases.Form, tiles: Mapping[str, launch.Config]) -> None:
    """No program loads a key twice where all keys are one tile, which they fill."""
    torch.manual_seed(1)
    inputs = attention_cases.draw(form, (1, 2, 16), 16, memory.CPU)
    gradients = attention_cases.output_gradients(inputs, form.heads, "width")
    with launch.override(tiles), memory.described_launches() as described, trace_accesses() as trace:
        attention_cases.step(attention_cases.axis_attention, inputs, form.heads, "width", gradients)
    for traced, one in zip(trace.launches, described, strict=True):
        loaded = np.isin(traced.loads.addresses, element_addresses(one.arguments["k_ptr"]))
        places = np.stack([traced.loads.addresses[loaded], traced.loads.programs[loaded].astype(np.uint64)])
        if np.unique(places, axis=1).shape != places.shape:
            raise FaultError(f"{one.name}: keys loaded again")
