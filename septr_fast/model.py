"""`SepTr` and `SepTrBlock`: the original's constructor, checkpoints and results, computed by the plan.

The data's way: a spectrogram is pooled once and laid out as pixels `(batch, height, width, channels)`.
The first transformer turns them into the token grid `(batch, height, width, dim)` and the class token
`(batch, dim)`, which stay apart to the end; every further transformer walks the grid along its axis.
The upsampling at the end of a block and the pooling at the start of the next undo each other exactly,
so the model does neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from septr_fast import backend as backends
from septr_fast import folding, functional, reference
from septr_fast.fold_cache import FoldCache
from septr_fast.folding import Direct, LowRank, Merged, Mlp
from septr_fast.lengths import Lengths, clear
from septr_fast.lengths import read as read_lengths
from septr_fast.plan import FORMULATIONS, Plan, Step, TransformerShape, choose
from septr_fast.recording import records
from septr_fast.reference import Attention, FeedForward, Transformer

Size = int | tuple[int, int] | list[int]
Folded = list[tuple[Direct | Merged | LowRank, Mlp]]


class SepTrBlock(reference.SepTrBlock):
    """Two transformers in sequence, one along each axis of the token grid.

    Args:
        channels: channels of the input; read only where `project` or `reconstruct` is set.
        input_size: `(height, width)` of the input before pooling, or one int for both.
        heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        dim_head: width of a head.
        down_sample_input: `(height, width)` of the average pooling in front, or one int; None for none.
        project: map `channels` to `dim` first. Otherwise the input has `dim` channels.
        reconstruct: map `dim` back to `channels` at the end.
        dim: width of a token.
        dropout_tr: probability of dropping outputs of the attention and of both layers of the MLP.
        first_axis: the axis of the first transformer, "height" or "width".
        formulation: None for the one with the least work, or a name out of `plan.FORMULATIONS` (or one
            for each transformer) to be taken wherever it is possible.
        backend: "auto", "torch" or "triton".
    """

    def __init__(
        self,
        channels: int,
        input_size: Size,
        heads: int = 3,
        mlp_dim: int = 128,
        dim_head: int = 32,
        down_sample_input: Size | None = None,
        project: bool = False,
        reconstruct: bool = False,
        dim: int = 128,
        dropout_tr: float = 0.0,
        *,
        first_axis: str = "height",
        formulation: str | Sequence[str | None] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            channels,
            input_size,
            heads,
            mlp_dim,
            dim_head,
            down_sample_input,
            project,
            reconstruct,
            dim,
            dropout_tr,
            first_axis=first_axis,
        )
        self.backend = backends.check_name(backend)
        self.recompute = False
        self.formulation = _per_transformer(formulation, 2)
        self._steps = {shared: self.steps(shared_cls_token=shared) for shared in (False, True)}
        self._cache: FoldCache[Folded] = FoldCache()

    def forward(self, x: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor]:
        """Map a feature map and a class token through the block.

        Args:
            x: `(batch, channels, height, width)`; `(batch, dim, height, width)` without `project`.
            cls_token: `(1 or batch, 1, 1, dim)`.

        Returns:
            `(batch, dim, height, width)`, the sizes rounded down to multiples of the pooling and `dim`
            replaced by `channels` with `reconstruct`, and the class token `(batch, 1, 1, dim)`.

        Raises:
            ValueError: where a shape does not fit, naming the argument.
            TypeError: where dtypes or devices of input and parameters differ.
        """
        _check_input(self, x, self.channels if self.project else self.dim, self.input_size)
        _check_placement(self, cls_token, "cls_token")
        if cls_token.shape[1:] != (1, 1, self.dim) or cls_token.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"cls_token: expected (1 or batch, 1, 1, {self.dim}) for a batch of {x.shape[0]}, "
                f"got {tuple(cls_token.shape)}"
            )
        steps = self._steps[cls_token.shape[0] == 1]
        grid, cls_token = self.transform(self.pixels(x), cls_token[:, 0, 0], steps)
        if self.reconstruct is not None:
            grid = self.reconstruct(grid)
        return self.upsample(grid.permute(0, 3, 1, 2)), cls_token[:, None, None]

    def pixels(self, x: Tensor) -> Tensor:
        """Pool `x` `(batch, channels, height, width)` into pixels `(batch, height, width, channels)`."""
        pooled: Tensor = self.pool(x)
        return pooled.permute(0, 2, 3, 1)

    def lengths(self, lengths: Sequence[int] | Tensor, axis: str, x: Tensor) -> Lengths | None:
        """Read lengths in pixels of spectrograms `x` as valid tokens along `axis`; see `septr_fast.lengths.read`."""
        side = int(axis == "width")
        pool = self.pool.kernel_size[side] if isinstance(self.pool, nn.AvgPool2d) else 1  # type: ignore[index]
        return read_lengths(lengths, axis, batch=len(x), size=self.input_size[side], pool=pool, device=x.device)

    def steps(self, *, shared_cls_token: bool, last: bool = False, name: str = "block") -> tuple[Step, Step]:
        """Plan both transformers.

        Args:
            shared_cls_token: whether one class token serves all samples, as in the model's first block.
            last: whether only the class token of the second transformer is read.
            name: put in front of the transformers' names.
        """
        height, width = self.pos_embedding_h.shape[2] - 1, self.pos_embedding_w.shape[2] - 1
        steps = []
        for position, (axis, transformer, _) in enumerate(self._order()):
            attention, mlp = (sublayer.fn for sublayer in transformer.sublayers)
            shape = TransformerShape(
                axis=axis,
                rows=width if axis == "height" else height,
                length=height if axis == "height" else width,
                dim=self.dim,
                heads=cast(Attention, attention).heads,
                dim_head=cast(Attention, attention).dim_head,
                mlp_dim=cast(nn.Linear, cast(FeedForward, mlp).net[0]).out_features,
                channels=self.channels if self.project and position == 0 and shared_cls_token else None,
                last=last and position == 1,
            )
            steps.append(Step(f"{name}, {axis}", shape, choose(shape, self.formulation[position])))
        return steps[0], steps[1]

    def transform(
        self, grid: Tensor, cls_token: Tensor, steps: Sequence[Step], lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run both transformers as planned.

        Args:
            grid: tokens `(batch, height, width, dim)`, or pixels `(…, channels)` with `project`.
            cls_token: `(1 or batch, dim)`.
            steps: what `steps` returned.
            lengths: valid tokens of each sample; None for all.

        Returns:
            The grid `(batch, height, width, dim)` (as it came in to a class-only pass, which makes
            none) and the class token `(batch, dim)`.
        """
        for _, transformer, _ in self._order():
            folding.check(transformer)
        device_type, low_rank = grid.device.type, steps[0].formulation == "low-rank"
        autocast = _autocasts(device_type)
        parameter_dtype = self.pos_embedding_h.dtype
        rounded = autocast and parameter_dtype != torch.float64
        compute_dtype = torch.get_autocast_dtype(device_type) if rounded else parameter_dtype
        if self.project and not low_rank:
            grid = self.projection(grid)
        owned = self.project
        with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
            folded = self._folded(steps, cls_token, compute_dtype)
            cls_token = cls_token.expand(grid.shape[0], -1)
            for (axis, transformer, pos_embedding), step, (attention, mlp) in zip(
                self._order(), steps, folded, strict=True
            ):
                options: dict[str, Any] = {
                    "axis": axis,
                    "dropout": folding.read_dropout(transformer),
                    "recompute": self.recompute,
                    "lengths": lengths,
                    "backend": self.backend,
                }
                positions = pos_embedding[0, 0]
                if isinstance(attention, LowRank):
                    grid, cls_token = functional.low_rank_pass(grid, attention, mlp, dtype=parameter_dtype, **options)
                elif step.formulation == "class-only":
                    direct = cast(Direct, attention)
                    cls_token = functional.class_only_pass(grid, cls_token, positions, direct, mlp, **options)
                else:
                    out = grid if owned else None
                    grid, cls_token = functional.axis_pass(
                        grid, cls_token, positions, attention, mlp, out=out, **options
                    )
                owned = True
        return grid, cls_token

    def _order(self) -> list[tuple[str, Transformer, nn.Parameter]]:
        """Axis, transformer and positions, in the order in which they run."""
        along_height = ("height", self.transformer_h, self.pos_embedding_h)
        along_width = ("width", self.transformer_w, self.pos_embedding_w)
        return [along_height, along_width] if self.first_axis == "height" else [along_width, along_height]

    def _folded(self, steps: Sequence[Step], cls_token: Tensor, dtype: torch.dtype) -> Folded:
        """The weights of both transformers as `steps` need them, for products in `dtype`.

        They are part of the graph where gradients can reach the parameters, otherwise kept across calls.
        """
        formulations = tuple(step.formulation for step in steps)
        parameters = [*self.parameters(), *self.buffers(), *([cls_token] if "low-rank" in formulations else [])]
        norms = [sublayer.norm for _, transformer, _ in self._order() for sublayer in transformer.sublayers]
        settings = (formulations, dtype, *(norm.eps for norm in norms))

        def fold() -> Folded:
            return [
                (
                    self._fold_attention(formulation, transformer, positions, cls_token, dtype),
                    _fold_mlp(transformer, dtype),
                )
                for formulation, (_, transformer, positions) in zip(formulations, self._order(), strict=True)
            ]

        in_graph = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        if in_graph or records() or cls_token.is_meta:
            return fold()
        return self._cache.get(settings, parameters, fold)

    def _fold_attention(
        self, formulation: str, transformer: Transformer, positions: Tensor, cls_token: Tensor, dtype: torch.dtype
    ) -> Direct | Merged | LowRank:
        if formulation == "low-rank":
            return folding.fold_low_rank(transformer, cast(nn.Linear, self.projection), cls_token[0], positions[0, 0])
        if formulation == "merged":
            return folding.cast(folding.fold_merged(transformer), dtype)
        return folding.cast(folding.fold_direct(transformer), dtype)


class SepTr(reference.SepTr):
    """Separable Transformer: a classifier of spectrograms.

    Ristea, Ionescu and Khan, "SepTr: Separable Transformer for Audio Spectrogram Processing",
    INTERSPEECH 2022. Constructor, state dict, initialization and results are those of the original
    `SeparableTr`; the arithmetic is that of `septr_fast.folding`.

    Args:
        channels: channels of a spectrogram, 1 for a magnitude.
        input_size: `(height, width)` of a spectrogram, in frequency bins and frames, or one int for both.
        num_classes: number of classes.
        depth: number of blocks, each of two transformers.
        heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        dim_head: width of a head.
        down_sample_input: `(height, width)` of the average pooling in front, or one int; None for none.
        dim: width of a token.
        dropout_tr: probability of dropping outputs of the attention and of both layers of the MLP.
        return_cls: return `(logits, class token)` in place of the logits.
        first_axis: the axis along which the first transformer of a block attends, "height" or "width".
        formulation: None for the one with the least work, or a name out of `plan.FORMULATIONS`, taken
            wherever it is possible, or a list of them with one for each of the `2 * depth` transformers.
        backend: "auto", "torch" or "triton".

    Raises:
        ValueError: for an argument out of range, naming it.

    Example:
        >>> model = SepTr(input_size=(16, 24), num_classes=10, depth=1, heads=2, dim_head=8, dim=16)
        >>> model(torch.zeros(4, 1, 16, 24)).shape
        torch.Size([4, 10])
    """

    block_type = SepTrBlock

    def __init__(
        self,
        channels: int = 1,
        input_size: Size = (128, 128),
        num_classes: int = 35,
        depth: int = 3,
        heads: int = 5,
        mlp_dim: int = 256,
        dim_head: int = 256,
        down_sample_input: Size | None = None,
        dim: int = 256,
        *,
        dropout_tr: float = 0.0,
        return_cls: bool = False,
        first_axis: str = "height",
        formulation: str | Sequence[str | None] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            channels,
            input_size,
            num_classes,
            depth,
            heads,
            mlp_dim,
            dim_head,
            down_sample_input,
            dim,
            dropout_tr=dropout_tr,
            return_cls=return_cls,
            first_axis=first_axis,
        )
        formulations = _per_transformer(formulation, 2 * depth)
        for index, block in enumerate(self.blocks):
            block.formulation = formulations[2 * index : 2 * index + 2]
            block.backend = backends.check_name(backend)
        self._steps = [
            block.steps(shared_cls_token=index == 0, last=index == depth - 1, name=f"block {index}")
            for index, block in enumerate(self.blocks)
        ]

    @property
    def blocks(self) -> list[SepTrBlock]:
        """The blocks in order."""
        return [cast(SepTrBlock, block) for block in self.transformer]

    def forward(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None = None, *, lengths_axis: str = "width"
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classify spectrograms.

        Args:
            x: `(batch, channels, height, width)` in the dtype and on the device of the parameters; any
                floating dtype under autocast.
            lengths: of padded spectrograms, `(batch,)` integers: how many columns are real, those in front. Each
                sample gets the result of the spectrogram cut there, its positions cut alike, whatever stands
                behind. A list, or a tensor on the CPU, costs no synchronization with a GPU. None for all.
            lengths_axis: "width" for columns, "height" for rows.

        Returns:
            Logits `(batch, num_classes)`; with `return_cls` also the class token `(batch, dim)`.

        Raises:
            ValueError: where a shape or a length does not fit, with what was expected.
            TypeError: where dtypes or devices of input and parameters differ.
        """
        first = self.blocks[0]
        _check_input(self, x, first.channels, first.input_size)
        grid, cls_token = first.pixels(x), self.cls_token[0, 0]
        valid = None if lengths is None else first.lengths(lengths, lengths_axis, x)
        if valid is not None:
            grid = clear(grid, valid)
        for block, steps in zip(self.blocks, self._steps, strict=True):
            grid, cls_token = block.transform(grid, cls_token, steps, valid)
        logits = self.fc(cls_token)
        return (logits, cls_token) if self.return_cls else logits

    def plan(self) -> Plan:
        """The formulation of every transformer and what it costs; `print` it for a table."""
        steps = tuple(step for pair in self._steps for step in pair)
        return Plan(steps, self.fc.out_features, self.fc.weight.element_size())

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute in the backward pass: a tenth of the memory of the original for about a third more work."""
        for block in self.blocks:
            block.recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the class token and the positions, which weight decay should leave alone; as timm asks for them."""
        return {name for name, _ in self.named_parameters() if name == "cls_token" or "pos_embedding" in name}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Two groups for an optimizer like AdamW: weights with `weight_decay`; norms, biases and tokens without.

        Args:
            weight_decay: of the first group, that of all matrices.

        Returns:
            Dictionaries with "params" and "weight_decay"; frozen parameters are in neither.
        """
        kept = self.no_weight_decay()
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[parameter.dim() < 2 or name in kept].append(parameter)
        return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def _fold_mlp(transformer: Transformer, dtype: torch.dtype) -> Mlp:
    return folding.cast(folding.fold_mlp(transformer), dtype)


def _per_transformer(formulation: str | Sequence[str | None] | None, transformers: int) -> tuple[str | None, ...]:
    """One forced formulation, or None, for each transformer; raise `ValueError` for what cannot be."""
    each = [formulation] * transformers if formulation is None or isinstance(formulation, str) else list(formulation)
    if len(each) != transformers:
        raise ValueError(f"formulation: expected one name or {transformers}, got {len(each)}")
    for position, name in enumerate(each):
        if name is not None and name not in FORMULATIONS:
            raise ValueError(f"formulation: expected one of {', '.join(FORMULATIONS)}, got {name!r}")
        misplaced = (name == "low-rank" and position != 0) or (name == "class-only" and position != transformers - 1)
        if misplaced and not isinstance(formulation, str):
            raise ValueError(f"formulation: {name} is not possible for transformer {position} of {transformers}")
    return tuple(each)


def _check_input(module: nn.Module, x: Tensor, channels: int, size: tuple[int, int]) -> None:
    """Raise an error that names what is wrong with the spectrograms or feature maps `x`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (batch, channels, height, width), got {type(x).__name__}")
    expected = f"(batch, {channels}, {size[0]}, {size[1]})"
    if x.dim() != 4:
        raise ValueError(f"x: expected {expected}, got {x.dim()} dimensions, {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"x: expected {channels} channels, {expected}, got {x.shape[1]}, {tuple(x.shape)}")
    if tuple(x.shape[2:]) != size:
        raise ValueError(f"x: expected input_size {size}, {expected}, got {tuple(x.shape[2:])}, {tuple(x.shape)}")
    _check_placement(module, x, "x")


def _check_placement(module: nn.Module, x: Tensor, name: str) -> None:
    """Raise `TypeError` unless `x` and all parameters share a device, and a dtype where no autocast is on."""
    places = {(parameter.device, parameter.dtype) for parameter in module.parameters()}
    if len(places) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        raise TypeError(f"parameters: expected one dtype and device, got {found}")
    device, dtype = places.pop()
    if x.device != device:
        raise TypeError(f"{name}: expected a tensor on {device}, where the parameters are, got {x.device}")
    if x.dtype != dtype and not (_autocasts(device.type) and x.is_floating_point()):
        raise TypeError(f"{name}: expected {dtype}, the dtype of the parameters, got {x.dtype}")


def _autocasts(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


SeparableTr = SepTr
