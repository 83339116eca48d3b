"""Models on Triton operators on GPUs alone: graphs, streams, devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import pair, spectrograms
from torch import Tensor

from septr_fast import SepTr

CONFIG: dict[str, Any] = {"input_size": (12, 20), "num_classes": 6, "depth": 2, "dim": 64, "heads": 2, "dim_head": 64}


@pytest.fixture(autouse=True)
def _needs_a_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU")


def model_and_input(device: torch.device) -> tuple[SepTr, Tensor]:
    _, model = pair(CONFIG, torch.float32, backend="triton")
    return model.to(device), spectrograms(CONFIG, 3, torch.float32).to(device)


def test_evaluation_in_a_graph(device: torch.device) -> None:
    """Replays give the same bits, and read inputs and weights as they are at that moment."""
    model, x = model_and_input(device)
    model.eval()
    given = x.clone()
    with torch.no_grad():
        with torch.cuda.stream(torch.cuda.Stream(device)):
            model(given)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(given)
        for change in (lambda: None, lambda: given.mul_(2), lambda: model.transformer[1].pos_embedding_h.mul_(2)):
            change()
            graph.replay()
            first = logits.clone()
            graph.replay()
            assert torch.equal(logits, first)
            torch.testing.assert_close(logits, model(given), rtol=1e-5, atol=1e-5)
    assert not torch.equal(first, model(x))


def test_training_step_in_a_graph(device: torch.device) -> None:
    """Steps of a replayed graph and steps as they are written give the same parameters."""
    model, x = model_and_input(device)
    other = SepTr(**CONFIG, backend="triton").to(device)
    other.load_state_dict(model.state_dict())
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def step(module: SepTr) -> Tensor:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = module(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step(model)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(model)
    runs = []
    for _ in range(2):
        model.load_state_dict(start)
        losses = []
        for _ in range(3):
            graph.replay()
            losses.append(loss.clone())
        runs.append([*losses, *(parameter.detach().clone() for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][2])
    written = [step(other) for _ in range(3)]
    for found, wanted in zip(runs[0], [*written, *other.parameters()], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_on_another_stream(device: torch.device) -> None:
    """What arrives late on a stream is waited for there."""
    model, x = model_and_input(device)
    wanted = model(x)
    given = torch.zeros_like(x)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(100_000_000)
        given.copy_(x)
        logits = model(given)
        (gradient,) = torch.autograd.grad(logits.sum(), model.fc.weight)
    torch.cuda.synchronize(device)
    assert torch.equal(logits, wanted)
    assert gradient.abs().max() > 0


def test_on_another_device_than_the_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    model, x = model_and_input(torch.device("cuda", 0))
    wanted = model(x)
    logits = model.to("cuda:1")(x.to("cuda:1"))
    logits.sum().backward()
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(logits.to("cuda:0"), wanted, rtol=1e-4, atol=1e-4)
