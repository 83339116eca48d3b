"""`SepTrBlock`: two transformers in sequence, computed by the plan.

The data's way: a feature map is pooled and laid out as pixels `(batch, height, width, channels)`. The first
transformer turns them into the token grid `(batch, height, width, dim)` and the class token `(batch, dim)`, which
stay apart; the second walks the grid along the other axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from septr_fast import reference
from septr_fast.algebra.fold import Tokens, fold
from septr_fast.algebra.fold_cache import FoldCache
from septr_fast.algebra.folded import Folded
from septr_fast.algebra.plan import FORMULATIONS, Step, TransformerShape, choose
from septr_fast.algebra.reading import check_foldable, read_dropout
from septr_fast.loading import as_a_whole
from septr_fast.passes import backend as backends
from septr_fast.passes import dispatch
from septr_fast.passes.inputs import autocasts, check_input, check_placement
from septr_fast.passes.lengths import Lengths
from septr_fast.passes.lengths import read as read_lengths
from septr_fast.passes.observers import records
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch.linear import call
from septr_fast.reference import Attention, FeedForward, Transformer, size_pair
from septr_fast.resizing import resize_table

Size = int | tuple[int, int] | list[int]
Resized = tuple[tuple[int, int], dict[str, nn.Parameter]]
"""An input size and the positions that change with it, by name."""
Observer = Callable[[str, Transformer, Tensor, Tensor, Tensor], None]
"""Called with an axis, its transformer, the grid, the class token `(batch, dim)` and positions `(1 + length, dim)`."""


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
        self.formulation = per_transformer(formulation, 2)
        self._steps = self._plan()
        self._cache: FoldCache[list[Folded]] = FoldCache()

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
        check_input(self, x, self.channels if self.project else self.dim, self.input_size)
        check_placement(self, cls_token, "cls_token")
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
        """Read lengths in pixels of spectrograms `x` as valid tokens along `axis`; see `passes.lengths.read`."""
        side = int(axis == "width")
        size, pool = self.input_size[side], self.pooling[side]
        return read_lengths(lengths, axis, batch=x.shape[0], size=size, pool=pool, device=x.device)

    @property
    def pooling(self) -> tuple[int, int]:
        """Pixels of a token, `(height, width)`."""
        return cast(tuple[int, int], self.pool.kernel_size) if isinstance(self.pool, nn.AvgPool2d) else (1, 1)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As that of `nn.Module`, but where it raises, parameters and buffers are what they were before."""
        with as_a_whole(self, assign=assign):
            return super().load_state_dict(state_dict, strict, assign)

    def resize_positions(self, input_size: Size) -> None:
        """Take inputs of another size from now on; see `SepTr.resize_positions`."""
        self.take_positions(self.resized_positions(input_size))

    def resized_positions(self, input_size: Size) -> Resized:
        """What `resize_positions` is going to set; changes nothing."""
        size = size_pair(input_size, "input_size")
        height, width = (pixels // pool for pixels, pool in zip(size, self.pooling, strict=True))
        if not (height and width):
            raise ValueError(f"input_size: expected at least the pooling, {self.pooling}, got {size}")
        tables = {}
        for name, length in (("pos_embedding_h", height), ("pos_embedding_w", width)):
            old = getattr(self, name)
            if old.shape[2] != 1 + length:
                table = resize_table(old.detach(), length)
                tables[name] = nn.Parameter(table, requires_grad=old.requires_grad)
        return size, tables

    def take_positions(self, resized: Resized) -> None:
        """Set what `resized_positions` has computed."""
        self.input_size, tables = resized
        for name, table in tables.items():
            setattr(self, name, table)
        self._steps = self._plan()

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
        self,
        grid: Tensor,
        cls_token: Tensor,
        steps: Sequence[Step],
        lengths: Lengths | None = None,
        observe: Observer | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run both transformers as planned.

        Args:
            grid: tokens `(batch, height, width, dim)`, or pixels `(…, channels)` with `project`.
            cls_token: `(1 or batch, dim)`.
            steps: what `steps` returned.
            lengths: valid tokens of each sample; None for all.
            observe: called with what enters each transformer; not with a low-rank step, whose grid holds pixels.
            dtype: of the products; None for that of autocast, or of the parameters.

        Returns:
            The grid `(batch, height, width, dim)` (as it came in to a class-only pass, which makes
            none) and the class token `(batch, dim)`.
        """
        for _, transformer, _ in self._order():
            check_foldable(transformer)
        device_type, low_rank = grid.device.type, steps[0].formulation == "low-rank"
        autocast = autocasts(device_type)
        parameter_dtype = self.pos_embedding_h.dtype
        rounded = autocast and parameter_dtype != torch.float64
        compute_dtype = dtype or (torch.get_autocast_dtype(device_type) if rounded else parameter_dtype)
        if self.project and not low_rank:
            grid = call(self.projection, grid)
        owned = self.project
        with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
            folded = self._folded(steps, cls_token, compute_dtype)
            cls_token = cls_token.expand(grid.shape[0], -1)
            for (axis, transformer, pos_embedding), step, weights in zip(self._order(), steps, folded, strict=True):
                settings = Settings(
                    axis=axis,
                    dropout=read_dropout(transformer),
                    recompute=self.recompute,
                    lengths=lengths,
                    dtype=parameter_dtype,
                    in_place=owned,
                    backend=self.backend,
                )
                positions = pos_embedding[0, 0]
                if observe is not None:
                    observe(axis, transformer, grid, cls_token, positions)
                if step.formulation == "low-rank":
                    grid, cls_token = dispatch.low_rank_pass(grid, weights, settings)
                elif step.formulation == "class-only":
                    cls_token = dispatch.class_only_pass(grid, cls_token, positions, weights, settings)
                else:
                    grid, cls_token = dispatch.axis_pass(grid, cls_token, positions, weights, settings)
                owned = True
        return grid, cls_token

    def _plan(self) -> dict[bool, tuple[Step, Step]]:
        """Steps of the block alone, by whether all samples share one class token."""
        return {shared: self.steps(shared_cls_token=shared) for shared in (False, True)}

    def _order(self) -> list[tuple[str, Transformer, nn.Parameter]]:
        """Axis, transformer and positions, in the order in which they run."""
        along_height = ("height", self.transformer_h, self.pos_embedding_h)
        along_width = ("width", self.transformer_w, self.pos_embedding_w)
        return [along_height, along_width] if self.first_axis == "height" else [along_width, along_height]

    def _folded(self, steps: Sequence[Step], cls_token: Tensor, dtype: torch.dtype) -> list[Folded]:
        """The weights of both transformers as `steps` need them, for products in `dtype`.

        They are part of the graph where gradients can reach the parameters, otherwise kept across calls.
        """
        formulations = tuple(step.formulation for step in steps)

        def folded() -> list[Folded]:
            return [
                fold(transformer, formulation, dtype, self._tokens(formulation, cls_token, positions))
                for formulation, (_, transformer, positions) in zip(formulations, self._order(), strict=True)
            ]

        if records() or cls_token.is_meta:
            return folded()
        parameters = [*self.parameters(), *self.buffers(), *([cls_token] if "low-rank" in formulations else [])]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return folded()
        norms = [sublayer.norm for _, transformer, _ in self._order() for sublayer in transformer.sublayers]
        return self._cache.get((formulations, dtype, *(norm.eps for norm in norms)), parameters, folded)

    def _tokens(self, formulation: str, cls_token: Tensor, positions: Tensor) -> Tokens | None:
        """What the tokens of a low-rank transformer are made of; None for other formulations."""
        if formulation != "low-rank":
            return None
        return Tokens(cast(nn.Linear, self.projection), cls_token[0], positions[0, 0])


def per_transformer(formulation: str | Sequence[str | None] | None, transformers: int) -> tuple[str | None, ...]:
    """One forced formulation, or None, for each transformer; raise `ValueError` for what cannot be."""
    if formulation is not None and not isinstance(formulation, Sequence):
        raise ValueError(f"formulation: expected a name or a list of them, got {formulation!r}")
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
