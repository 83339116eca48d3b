"""The models by name, all from the same seed, so that those of SepTr have the same parameters."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring import counting
from benchmarks.measuring.roofline import STATIC_ARCHITECTURE
from benchmarks.suite import baselines, cases, data, parts
from benchmarks.suite.cases import Case
from septr_fast import SepTr, SepTrBlock, graphed, reference
from septr_fast.passes import backend

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of parameters and inputs; float32 in every other precision."""

OURS = (cases.OURS, cases.OURS_COMPILED, cases.ON_PYTORCH, cases.ON_TRITON, cases.GRAPH, cases.RECOMPUTING)
LAYERS_PER_BLOCK = 4
"""Layers of ViT and AST for one block of SepTr, so that the default depth of 3 stands beside their 12."""

LEARNING_RATE = 1e-4
EPS, EPS_FLOAT16 = 1e-8, 1e-4
"""What AdamW adds to its denominators; 1e-8 is 0 in float16, where squares of small gradients are 0 as well."""

BACKENDS = {cases.ON_PYTORCH: "torch", cases.ON_TRITON: "triton"}
"""What models of this package insist on; the others take what is chosen."""

Task = Callable[..., Tensor | tuple[Tensor, ...]]


def why_not(name: str, case: Case, device: torch.device) -> str | None:
    """What keeps the model `name` from `case` on `device`; None for what can be tried."""
    on_triton = runs_on_triton(case, device)
    if case.precision == "tf32" and device.type != "cuda":
        return "TF32 is a mode of the tensor cores of NVIDIA GPUs"
    if name == cases.GRAPH and device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if name == cases.ON_TRITON:
        return f"it is {cases.OURS} here" if on_triton else backend.why_not_triton("axis_pass", device)
    if (name == cases.ON_PYTORCH and not on_triton) or (name == cases.RECOMPUTING and on_triton):
        return f"it is {cases.OURS} here"
    if name in cases.COMPILED and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        return "torch.compile needs a C++ compiler on a CPU"
    if name in cases.PATCH_MODELS:
        return baselines.why_no_patches(name[:3], case.size, case.channels)
    return None


def runs_on_triton(case: Case, device: torch.device) -> bool:
    """Whether `SepTr` takes its Triton kernels for `case` on `device`; they recompute in every backward pass."""
    return backend.choose("auto", "axis_pass", device, products=products_dtype(case)) == "triton"


def dtype(case: Case) -> torch.dtype:
    """Of parameters and inputs."""
    return DTYPES.get(case.precision, torch.float32)


def products_dtype(case: Case) -> torch.dtype:
    """Of the operands of matrix products."""
    return torch.bfloat16 if case.precision == "autocast" else dtype(case)


def plain(name: str, case: Case, num_classes: int, device: torch.device) -> nn.Module:
    """What the model `name` has to be as good as, with its parameters: the reference, or ViT or AST unfused."""
    torch.manual_seed(0)
    model = _patches(name, case, num_classes, fused=False) if name in cases.PATCH_MODELS else None
    model = _eager(cases.REFERENCE, case, num_classes) if model is None else model
    return model.to(device, dtype(case)).train(case.training)


def build(name: str, case: Case, num_classes: int, device: torch.device, *, smoke: bool = False) -> nn.Module:
    """The model `name` of `case`, in the mode of its task.

    Args:
        name: one of the case's models.
        case: task, shape and precision.
        num_classes: number of classes.
        device: where it runs.
        smoke: compile forward passes of the whole model alone, and without generating code, which takes minutes
            for nothing on tiny shapes.
    """
    torch.manual_seed(0)
    model = _eager(name, case, num_classes).to(device, dtype(case)).train(case.training)
    if not case.training:
        model = baselines.fold(model.requires_grad_(False))
    if name in cases.COMPILED and not (smoke and case.group != cases.FORWARD):
        torch.compiler.reset()
        return torch.compile(model, dynamic=False, backend="eager" if smoke else "inductor")  # type: ignore[return-value]
    return Graphed(model) if name == cases.GRAPH else model


def _eager(name: str, case: Case, num_classes: int) -> nn.Module:
    if name in cases.PATCH_MODELS:
        return _patches(name, case, num_classes)
    own = {"backend": BACKENDS[name]} if name in BACKENDS else {}
    if case.group in cases.PARTS:
        arguments = parts.block_config(case.config)
        block = SepTrBlock(**arguments, **own) if name in OURS else reference.SepTrBlock(**arguments)  # type: ignore[arg-type]
        return parts.Part(case.group, _with_attention(name, block), **own)
    config = {**case.config, "num_classes": num_classes}
    if name not in OURS:
        return _with_attention(name, reference.SepTr(**config))
    model = SepTr(**config, **own)  # type: ignore[arg-type]
    model.set_grad_checkpointing(name == cases.RECOMPUTING)
    return model


def _patches(name: str, case: Case, num_classes: int, *, fused: bool = True) -> nn.Module:
    kind, tiny = name[:3], name in (cases.VIT_TINY, cases.AST_TINY)
    layers = LAYERS_PER_BLOCK * int(case.config.get("depth", 3)) if case.group == "growth: depth" else 12
    return baselines.Patches(kind, case.size, case.channels, num_classes, tiny=tiny, layers=layers, fused=fused)


def _with_attention(name: str, model: Any) -> Any:
    kinds = {cases.FUSED: baselines.FusedAttention, cases.MERGED: baselines.MergedAttention}
    return baselines.with_attention(model, kinds[name]) if name in kinds else model


class Graphed(nn.Module):
    """A model in inference whose calls are replayed from CUDA graphs from the third for a shape on."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._graphed = graphed(model)

    def forward(self, x: Tensor) -> Any:
        """Return what the model returns."""
        return self._graphed(x)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Set what `name` asks of products and convolutions in float32; the former settings come back."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def flops(name: str, case: Case, num_classes: int, device: torch.device) -> int:
    """Matrix arithmetic of a call of the model `name` on `device`, forward and in training backward.

    Counted without data, once for a case and device. What the kernels of `SepTr` do again in the backward pass
    counts; weights that are folded by an earlier call do not, but in a graph, which folds them in every call.
    """
    chosen = BACKENDS.get(name) == "triton" or (name not in BACKENDS and runs_on_triton(case, device))
    on_kernels = name in OURS and case.training and chosen
    return _flops(name, case, num_classes, device, on_kernels)


@functools.lru_cache
def _flops(name: str, case: Case, num_classes: int, device: torch.device, on_kernels: bool) -> int:
    if on_kernels:
        return _flops_of_kernels(case, num_classes, device)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = _eager(name, case, num_classes).train(case.training)
    if not case.training:
        baselines.fold(model.requires_grad_(False))
    if isinstance(model, SepTr) and not case.training:
        return model.plan().flops(case.batch, folded=not _folds_in_every_call(name, device))
    inputs = data.blank(case)

    def call() -> None:
        outputs = model(*inputs)
        if case.training:
            F.cross_entropy(outputs, torch.zeros(case.batch, dtype=torch.int64, device="meta")).backward()

    with torch.set_grad_enabled(case.training):
        if case.group in cases.PARTS:
            call()
        return counting.flops(call)


def least_flops(name: str, case: Case, num_classes: int) -> int:
    """The least matrix arithmetic that is known to give what the model `name` gives: of `SepTr` that on PyTorch."""
    return flops(name if name in cases.PATCH_MODELS else cases.ON_PYTORCH, case, num_classes, torch.device("cpu"))


def _folds_in_every_call(name: str, device: torch.device) -> bool:
    return name == cases.GRAPH or (name == cases.OURS_COMPILED and device.type == "cuda")


def _flops_of_kernels(case: Case, num_classes: int, device: torch.device) -> int:
    """Matrix arithmetic of a step of `SepTr` on its kernels, and of what PyTorch does beside them."""
    from septr_fast.tuning.kernel_launches import recording

    with torch.device("meta"):
        model = SepTr(**{**case.config, "num_classes": num_classes}, backend="triton")
        labels = torch.zeros(case.batch, dtype=torch.int64)
    model.to(products_dtype(case))
    inputs = (x.to(products_dtype(case)) for x in data.blank(case))
    arch = backend.capability(device) or STATIC_ARCHITECTURE
    with counting.Operations() as operations, recording(arch) as launches:
        F.cross_entropy(model(*inputs), labels).backward()
    return operations.flops + sum(launch.flops for launch in launches)


def attention(name: str, case: Case, device: torch.device) -> SDPBackend | None:
    """The kernel of `scaled_dot_product_attention` for a baseline on it, the fastest on this device."""
    if name not in (cases.FUSED, cases.MERGED):
        return None
    with torch.device("meta"):
        shape = SepTr(**case.config).plan().steps[0].shape
    rows, products = shape.rows * case.batch, products_dtype(case)
    key = (rows, shape.heads, shape.tokens, shape.dim_head)
    query = key
    if name == cases.MERGED:
        key, query = (rows, 1, shape.tokens, shape.dim), (rows, 1, shape.tokens * shape.heads, shape.dim)
    return baselines.fastest_attention(query, key, products, device, case.training)


@contextmanager
def settings(case: Case, device: torch.device, kernel: SDPBackend | None = None) -> Iterator[None]:
    """Autocast to bfloat16 where the case asks for it, and attention on `kernel`."""
    with ExitStack() as stack:
        if case.precision == "autocast":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if kernel is not None:
            stack.enter_context(sdpa_kernel(kernel))
        yield


def task(model: nn.Module, case: Case, device: torch.device, kernel: SDPBackend | None = None) -> Task:
    """A function of the case's inputs that does the task once and waits for the device."""
    train = _trains(model, partial(settings, case, device, kernel)) if case.training else None

    def run(*inputs: Tensor) -> Any:
        if train is not None:
            result = train(*inputs)
        else:
            with torch.no_grad(), settings(case, device, kernel):
                result = model(*inputs[: 2 if case.group in cases.PARTS else 1])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return run


def _trains(
    model: nn.Module, context: Callable[[], AbstractContextManager[None]]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of AdamW; it leaves no gradients behind, so that a call's memory holds those that it makes.

    The optimizer has its state already, as behind a first step, by one of no gradient and no learning rate.
    """
    in_float16 = next(model.parameters()).dtype == torch.float16
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, eps=EPS_FLOAT16 if in_float16 else EPS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE

    def train(x: Tensor, labels: Tensor) -> Tensor:
        with context():
            logits: Tensor = model(x)
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return logits.detach()

    return train
