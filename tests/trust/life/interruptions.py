"""Calls that end in the middle: out of memory, Ctrl-C, a kernel that fails; then the next call must be right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import torch
from septr_fast.kernels import launch
from support import originals
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from septr_fast import SepTr, accelerate

CONFIG: dict[str, Any] = {
    "input_size": (4, 5),
    "num_classes": 3,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "dim": 6,
}
ERRORS: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, KeyboardInterrupt)

Call = Callable[[nn.Module], object]


class Stop(TorchDispatchMode):
    """Counts operations of PyTorch and raises `error` in place of number `place`."""

    def __init__(self, place: int | None, error: type[BaseException]) -> None:
        super().__init__()
        self.place, self.error, self.count, self.raised = place, error, 0, False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count - 1 == self.place:
            self.raised = True
            raise self.error("stopped here")
        return function(*args, **(kwargs or {}))


@contextmanager
def interrupted(place: int, error: type[BaseException]) -> Iterator[Stop]:
    """Raise `error` in place of the operation number `place` of what runs inside, and no further than here.

    PyTorch wraps an error while it copies a state dict in another one.
    """
    stop = Stop(place, error)
    try:
        with stop:
            yield stop
    except (error, RuntimeError) as raised:
        if "stopped here" not in str(raised):
            raise


def inputs() -> Tensor:
    """Two spectrograms."""
    return torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(1))


def classify(model: nn.Module) -> Tensor:
    """The logits, with the folded weights kept."""
    with torch.no_grad():
        logits: Tensor = model.eval()(inputs())
    return logits


def change_and_classify(model: nn.Module) -> None:
    """Fold other weights than those that are kept."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    classify(model)


def train(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of every parameter."""
    model.zero_grad()
    model.train()(inputs()).sin().sum().backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def load(model: nn.Module) -> None:
    """Load other weights."""
    torch.manual_seed(5)
    model.load_state_dict(SepTr(**CONFIG).state_dict())


def resize(model: nn.Module) -> None:
    """Take other sizes, and these again."""
    assert isinstance(model, SepTr)
    model.resize_positions((4, 7))


INTERRUPTED: dict[str, Call] = {"forward": change_and_classify, "training step": train, "load_state_dict": load}
"""What is stopped at every one of its operations, by `ERRORS` in turn."""
SPARSE = 20
"""Of the places of `accelerate`, which builds a model first, every so many-th is tried."""


def built() -> SepTr:
    """A new model, the same each time."""
    torch.manual_seed(3)
    return SepTr(**CONFIG)


def original() -> nn.Sequential:
    """A module that holds an original, in training mode, the same each time."""
    torch.manual_seed(4)
    return nn.Sequential(originals.SeparableTr(**CONFIG)).train()


def operations(call: Call) -> int:
    """How many operations `call` has on a new model whose weights are kept."""
    model = built()
    classify(model)
    with Stop(None, KeyboardInterrupt) as stop:
        call(model)
    return stop.count


def operations_of_accelerate() -> int:
    """How many operations the replacement of `original` has."""
    parent = original()
    with Stop(None, KeyboardInterrupt) as stop:
        accelerate(parent)
    return stop.count


def cases(step: int) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Every interruption by name, each with what finds its fault; of the places of operations every `step`-th.

    A call that goes on to its end is a fault: each case is a call that was stopped, or is wrong.
    """
    for name, call in INTERRUPTED.items():
        for number, place in enumerate(range(0, operations(call), step)):
            error = ERRORS[number % len(ERRORS)]
            where = f"{error.__name__} in place of operation {place} of {name}"
            yield where, lambda call=call, place=place, error=error: after(call, place, error)
    for place in range(0, operations(resize), max(1, step // SPARSE)):
        yield f"operation {place} of resize_positions", lambda place=place: after_resizing(place)
    for place in range(0, operations_of_accelerate(), SPARSE * step):
        yield f"operation {place} of accelerate", lambda place=place: after_accelerating(place)
    for name in ("head", "whole model"):
        yield f"a hook of the {name} that raises", lambda name=name: after_a_hook(name)


def after(call: Call, place: int, error: type[BaseException]) -> str | None:
    """What is wrong once `call` was stopped, or None: logits and gradients are those of a new model of that state."""
    model = built()
    classify(model)
    with interrupted(place, error) as stop:
        call(model)
    return goes_on(stop) or differs(model)


def goes_on(stop: Stop) -> str | None:
    """That what ran inside was not stopped, or None."""
    return None if stop.raised else f"not stopped: it ended after {stop.count} operations"


def differs(model: SepTr) -> str | None:
    """Where `model` computes something else than a new one with its state dict, or None."""
    fresh = SepTr(**CONFIG, backend=model.blocks[0].backend)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    if not torch.equal(classify(model), classify(fresh)):
        return "other logits than a new model's"
    found, expected = train(model), train(fresh)
    wrong = [name for name in expected if name not in found or not torch.equal(found[name], expected[name])]
    return f"other gradients than a new model's: {', '.join(wrong[:3])}" if wrong else None


def after_resizing(place: int) -> str | None:
    """A resizing that is stopped leaves the old size whole, or the new one."""
    model = built()
    classify(model)
    with interrupted(place, KeyboardInterrupt) as stop:
        resize(model)
    if not stop.raised:
        return goes_on(stop)
    size = model.blocks[0].input_size
    other = SepTr(**{**CONFIG, "input_size": size})
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError as error:
        return f"neither the old size nor the new one: {error}"
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        return None if torch.equal(model.eval()(x), other.eval()(x)) else "other logits than a new model's"


def after_accelerating(place: int) -> str | None:
    """A replacement that is stopped leaves the original as it was."""
    parent = original()
    before, x = copy.deepcopy(parent), inputs()
    state, random = copy.deepcopy(parent.state_dict()), torch.get_rng_state()
    with interrupted(place, KeyboardInterrupt) as stop:
        accelerate(parent)
    if not stop.raised:
        return goes_on(stop)
    if not isinstance(parent[0], originals.SeparableTr):
        return "replaced, though it was stopped"
    if any(module.training is not True for module in parent.modules()):
        return "another mode"
    if any(not torch.equal(x, state[name]) for name, x in parent.state_dict().items()):
        return "other weights"
    if not torch.equal(random, torch.get_rng_state()):
        return "other random numbers"
    return None if torch.equal(parent(x), before(x)) else "other logits"


def after_a_hook(which: str) -> str | None:
    """A user's hook that raises, in a classification and in a training step."""
    model = built()
    raised = 0

    def refuse(*_: object) -> None:
        nonlocal raised
        raised += 1
        raise RuntimeError("the hook")

    handle = (model.fc if which == "head" else model).register_forward_hook(refuse)
    for call in (classify, train):
        with suppress(RuntimeError):
            call(model)
    handle.remove()
    return differs(model) if raised == 2 else f"not stopped: the hook raised {raised} times"


def after_kernels(places: Sequence[int]) -> Iterator[tuple[str, str | None]]:
    """Kernels that fail, by their numbers in a training step on the Triton backend: name and fault of each."""
    torch.manual_seed(3)
    model = SepTr(**{**CONFIG, "depth": 1, "input_size": (1, 2)}, backend="triton")
    x = torch.randn(1, 1, 1, 2)
    run, started, fails = launch.run, 0, -1

    def failing(described: launch.Launch, device: torch.device) -> None:
        nonlocal started
        started += 1
        if started - 1 == fails:
            raise torch.OutOfMemoryError("no memory for a kernel")
        run(described, device)

    def step() -> list[Tensor]:
        return list(torch.autograd.grad(model(x).sin().sum(), list(model.parameters())))

    with mock.patch.object(launch, "run", failing):
        expected = step()
        kernels = started
        for place in places:
            started, fails = 0, place % kernels
            with suppress(torch.OutOfMemoryError):
                step()
            stopped, fails = started == fails + 1, -1
            right = all(map(torch.equal, step(), expected))
            fault = "other gradients than before" if stopped else "not stopped"
            yield f"kernel {place % kernels} of {kernels} fails", None if stopped and right else fault
