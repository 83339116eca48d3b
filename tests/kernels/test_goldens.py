"""Models and blocks on Triton operators against the stored results of the original."""

from __future__ import annotations

import pytest
import torch
from support.kernels import attention_cases
from torch import nn

pytest.importorskip("triton")

from septr_fast.kernels import launch
from support.goldens import BLOCKS, MODELS, assert_close, compare_summaries, hashed, load, with_golden_weights
from support.kernels.pass_cases import TILES

from septr_fast import SepTr, SepTrBlock, reference

QUICK = {"model_floor_downsample", "model_single_head", "model_tiny"}
"""Models that the interpreter runs in seconds, in small tiles; the others run in large ones, since its time goes by
the number of tiles, and on a GPU in those of the tables."""

LARGE = {
    **attention_cases.tiles(block_q=128, block_k=128, block_c=256),
    "normalize": launch.Config({"BLOCK_M": 512}),
    "normalize_bwd": launch.Config({"BLOCK_L": 64, "SEQUENCES": 16}),
    **{name: launch.Config({"BLOCK_M": 256, "BLOCK_H": 256}) for name in ("mlp_fwd", "mlp_fwd_wide", "mlp_bwd")},
    "class_attention_fwd": launch.Config({"BLOCK_K": 128}),
    "class_attention_bwd": launch.Config({"BLOCK_K": 128, "ROWS": 16}),
    "low_rank_fwd": launch.Config({"BLOCK_Q": 128, "BLOCK_K": 128, "PARTS": 32}),
    "low_rank_bwd": launch.Config({"BLOCK_Q": 128, "BLOCK_K": 128, "PARTS": 32}),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    quick = name in QUICK
    if device.type == "cpu" and not quick and not request.config.getoption("--long"):
        pytest.skip("takes the interpreter minutes: --long")
    with launch.override(TILES if quick else LARGE if device.type == "cpu" else {}):
        compare_model(name, device)


def compare_model(name: str, device: torch.device) -> None:
    stored, config, batch, seed = load(name)
    model = with_golden_weights(SepTr(**config, backend="triton"), seed, torch.float32).to(device)
    size = reference.size_pair(config.get("input_size", (128, 128)), "input_size")
    x = hashed("input", (batch, config.get("channels", 1), *size), 1.7, seed).requires_grad_()
    logits = model(x.to(device)).cpu()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(stored["labels"]))
    loss.backward()
    model.cpu()
    assert_close(logits, stored["logits"], torch.float32, "logits")
    assert_close(loss, stored["loss"], torch.float32, "loss")
    if "gradnorm" in stored.files:
        compare_summaries(model, x, stored, seed, torch.float32)
        return
    assert_close(x.grad, stored["grad/input"], torch.float32, "input")
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, stored[f"grad/{key}"], torch.float32, key)


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, device: torch.device) -> None:
    with launch.override(TILES):
        compare_block(name, device)


def compare_block(name: str, device: torch.device) -> None:
    stored, config, _, seed = load(name)
    block = with_golden_weights(SepTrBlock(**config, backend="triton"), seed, torch.float32).to(device)
    x, cls_token = (torch.from_numpy(stored[key]).float().requires_grad_() for key in ("input", "cls_token"))
    out_x, out_cls = (out.cpu() for out in block(x.to(device), cls_token.to(device)))
    assert_close(out_x, stored["out_x"], torch.float32, "out_x")
    assert_close(out_cls, stored["out_cls"], torch.float32, "out_cls")
    directions = [torch.from_numpy(stored[key]).float() for key in ("grad_out_x", "grad_out_cls")]
    torch.autograd.backward([out_x, out_cls], directions)
    block.cpu()
    assert_close(x.grad, stored["grad/input"], torch.float32, "input")
    assert_close(cls_token.grad, stored["grad/cls_token"], torch.float32, "cls_token")
    for key, parameter in block.named_parameters():
        assert_close(parameter.grad, stored[f"grad/{key}"], torch.float32, key)
