"""What a pass asks a GPU for, recorded without one."""

from __future__ import annotations

import pytest
import torch
from septr_fast.kernels.launch import Launch
from torch.utils.flop_counter import FlopCounterMode

from septr_fast import reference
from septr_fast.forecast.steps import Operation, counted, steps

SMALL = {"input_size": (16, 24), "depth": 2, "heads": 2, "dim": 32, "dim_head": 32, "mlp_dim": 32, "num_classes": 4}
ARCH = 90


def test_launches_and_operations_stand_in_order() -> None:
    found = steps({**SMALL, "formulation": "merged"}, torch.bfloat16, ARCH, batch=3, training=False)
    names = [step.name for step in found]
    assert {"normalize", "axis_attention_fwd", "mlp_fwd"} <= set(names)
    first = names.index("axis_attention_fwd")
    assert names.index("normalize") < first < names.index("mlp_fwd", first)
    projection = found[first - 1]
    assert isinstance(projection, Operation)
    assert projection.name == "addmm"
    tokens, features = 3 * 16 * 24, 2 * 32
    assert projection.flops == 2 * tokens * 32 * features
    assert projection.moved == 2 * (tokens * (32 + features) + 32 * features + features)
    assert projection.share == 1


def test_training_asks_for_gradients() -> None:
    forward = counted(steps(SMALL, torch.bfloat16, ARCH, 1, False))
    training = steps(SMALL, torch.bfloat16, ARCH, 1, True)
    assert counted(training)["kernels"] > forward["kernels"] > 0
    assert any("bwd" in step.name for step in training)


def test_products_that_are_summed_up_in_float32_take_tensor_cores() -> None:
    found = steps({**SMALL, "formulation": "merged"}, torch.bfloat16, ARCH, 1, True)
    products = [step for step in found if isinstance(step, Operation) and step.name == "mm"]
    assert products
    assert {step.share for step in products} == {1}
    exact = steps(SMALL, torch.float32, ARCH, 1, True)
    assert all(step.share == 0 for step in exact if isinstance(step, Operation) and step.name == "mm")


@pytest.mark.parametrize(("tf32", "share"), [(False, 0.0), (True, 0.5)])
def test_pytorch_alone_launches_none_of_our_kernels(tf32: bool, share: float) -> None:
    found = steps({**SMALL, "formulation": "merged"}, torch.float32, ARCH, 1, True, backend="torch", tf32=tf32)
    assert counted(found)["kernels"] == 0
    products = [step for step in found if isinstance(step, Operation) and step.flops]
    assert {step.share for step in products} == {share}


def test_the_reference_asks_for_all_of_its_products() -> None:
    found = steps(SMALL, torch.bfloat16, ARCH, 3, False, backend="reference")
    assert counted(found)["kernels"] == 0
    with FlopCounterMode(display=False) as counter:
        reference.SepTr(**SMALL)(torch.randn(3, 1, *SMALL["input_size"]))  # type: ignore[arg-type, misc]
    assert sum(step.flops for step in found if isinstance(step, Operation)) == counter.get_total_flops()
    assert "_unsafe_view" not in {step.name for step in found}


def test_tokens_in_float32_beside_products_in_16_bits() -> None:
    """As under autocast: more bytes, by the kernels for a wide residual stream."""
    config = {**SMALL, "formulation": "merged"}
    narrow, wide = (
        steps(config, torch.bfloat16, ARCH, 1, False, residual=residual) for residual in (None, torch.float32)
    )
    assert [{step.name for step in found} & {"mlp_fwd", "mlp_fwd_wide"} for found in (narrow, wide)] == [
        {"mlp_fwd"},
        {"mlp_fwd_wide"},
    ]


def test_views_and_empty_tensors_start_nothing() -> None:
    found = steps(SMALL, torch.bfloat16, ARCH, 1, True)
    operations = {step.name for step in found if isinstance(step, Operation)}
    assert operations
    assert not operations & {"view", "transpose.int", "t", "expand", "unsqueeze", "empty.memory_format", "detach"}


@pytest.mark.parametrize("batch", [1, 4])
def test_work_grows_with_the_batch(batch: int) -> None:
    found = steps({**SMALL, "formulation": "merged"}, torch.bfloat16, ARCH, batch, False)
    programs = sum(step.programs for step in found if isinstance(step, Launch) and step.name == "axis_attention_fwd")
    assert programs % batch == 0
    assert programs > 0
