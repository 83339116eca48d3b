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
from septr_fast.algebra import older_torch
from septr_fast.algebra.fold import Tokens, fold
from septr_fast.algebra.fold_cache import FoldCache
from septr_fast.algebra.folded import NO_DROPOUT, Folded
from septr_fast.algebra.plan import WRITTEN, Step, TransformerShape, choose, per_transformer
from septr_fast.algebra.reading import is_hooked, read_dropout, read_widths, why_not_linear, why_written
from septr_fast.loading import as_a_whole
from septr_fast.passes import backend as backends
from septr_fast.passes import dispatch
from septr_fast.passes.inputs import autocasts, check_input, check_placement, differentiates, tensors_below
from septr_fast.passes.lengths import Lengths, clear
from septr_fast.passes.lengths import read as read_lengths
from septr_fast.passes.observers import records
from septr_fast.passes.settings import Settings
from septr_fast.passes.torch.linear import call, is_plain
from septr_fast.passes.written import written_pass
from septr_fast.reference import Transformer, size_pair
from septr_fast.resizing import resize_table

Size = int | tuple[int, int] | list[int]
Resized = tuple[tuple[int, int], dict[str, nn.Parameter]]
"""An input size and the positions that change with it, by name."""
Planned = dict[tuple[bool, bool], tuple[Step, Step]]
"""Steps by whether one class token serves all samples, and whether only the last one is read."""
Observer = Callable[[str, Transformer, Tensor, Tensor, Tensor], None]
"""Called with an axis, its transformer, the grid, the class token `(batch, dim)` and positions `(1 + length, dim)`."""


_RESIZINGS = ((nn.Identity, nn.Identity), (nn.AvgPool2d, nn.UpsamplingNearest2d))
"""How a block pools and upsamples, one of which undoes the other."""


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
        self.take_formulations(per_transformer(formulation, 2))
        self._cache: FoldCache[list[Folded | None]] = FoldCache()

    def forward(self, x: Tensor, cls_token: Tensor, lengths: Lengths | None = None) -> tuple[Tensor, Tensor]:
        """Map a feature map and a class token through the block.

        Args:
            x: `(batch, channels, height, width)`; `(batch, dim, height, width)` without `project`. Of `input_size`, or
                of that rounded down to multiples of the pooling, as a block before gives it.
            cls_token: `(1 or batch, 1, 1, dim)`.
            lengths: valid tokens of each sample, as the method `lengths` reads them; None for all.

        Returns:
            `(batch, dim, height, width)`, the sizes rounded down to multiples of the pooling and `dim`
            replaced by `channels` with `reconstruct`, and the class token `(batch, 1, 1, dim)`.

        Raises:
            ValueError: where a shape does not fit, naming the argument.
            TypeError: where dtypes or devices of input and parameters differ.
        """
        check_input(self, x, self.features, self._size_of(x))
        check_placement(self, cls_token, "cls_token")
        if cls_token.shape[1:] != (1, 1, self.dim) or cls_token.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"cls_token: expected (1 or batch, 1, 1, {self.dim}) for a batch of {x.shape[0]}, "
                f"got {tuple(cls_token.shape)}"
            )
        steps = self.planned(shared_cls_token=cls_token.shape[0] == 1)
        grid, cls_token = self.transform(self.pixels(x, lengths), cls_token[:, 0, 0], steps, lengths)
        if self.reconstruct is not None:
            grid = self.reconstruct(grid)
        return self.upsample(grid.permute(0, 3, 1, 2)), cls_token[:, None, None]

    def pixels(self, x: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Pool `x` `(batch, channels, height, width)` into pixels `(batch, height, width, channels)`, 0 in padding."""
        pooled: Tensor = self.pool(x)
        grid = pooled.permute(0, 2, 3, 1)
        return grid if lengths is None else clear(grid, lengths)

    def lengths(self, lengths: Sequence[int] | Tensor, axis: str, x: Tensor) -> Lengths | None:
        """Read lengths in pixels of spectrograms `x` as valid tokens along `axis`; see `passes.lengths.read`."""
        side = int(axis == "width")
        size, pool = self.input_size[side], self.pooling[side]
        return read_lengths(lengths, axis, batch=x.shape[0], size=size, pool=pool, device=x.device)

    @property
    def features(self) -> int:
        """Channels of what the block takes."""
        return self.channels if self.project else self.dim

    def _size_of(self, x: Tensor) -> tuple[int, int]:
        """The size that `x` should have: `input_size`, or what a block before leaves of it; any for another pooling."""
        if type(self.pool) not in (nn.Identity, nn.AvgPool2d):
            return cast("tuple[int, int]", tuple(x.shape[2:]))
        height, width = (size // pool * pool for size, pool in zip(self.input_size, self.pooling, strict=True))
        return (height, width) if tuple(x.shape[2:]) == (height, width) else self.input_size

    def why_called(self) -> str | None:
        """What of this block besides its transformers has to be called as it is written; None for nothing."""
        if type(self).forward is not SepTrBlock.forward or "forward" in self.__dict__:
            return "it has a forward of its own"
        if is_hooked(self):
            return "it has hooks"
        if self.reconstruct is not None:
            return "it reconstructs its input"
        pool, upsample = self.pool, self.upsample
        plain = (type(pool), type(upsample)) in _RESIZINGS and not (is_hooked(pool) or is_hooked(upsample))
        if not plain or getattr(upsample, "scale_factor", (1, 1)) != self.pooling:
            return f"it pools by {type(pool).__name__} and upsamples by {type(upsample).__name__}, or these have hooks"
        return None

    @property
    def pooling(self) -> tuple[int, int]:
        """Pixels of a token, `(height, width)`."""
        size = self.pool.kernel_size if isinstance(self.pool, nn.AvgPool2d) else 1
        return (size[0], size[1]) if isinstance(size, tuple) else (size, size)

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

    def take_formulations(self, formulation: tuple[str | None, ...]) -> None:
        """Force a formulation, or None, for each transformer."""
        self.formulation = formulation
        self._steps = self._plan()

    def planned(self, *, shared_cls_token: bool, last: bool = False) -> tuple[Step, Step]:
        """What `steps` gave when the block was built or resized."""
        return self._steps[shared_cls_token, last]

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
            widths = read_widths(transformer) or self._steps[False, False][position].shape.widths
            shape = TransformerShape(
                axis=axis,
                rows=width if axis == "height" else height,
                length=height if axis == "height" else width,
                dim=self.dim,
                heads=widths[0],
                dim_head=widths[1],
                mlp_dim=widths[2],
                channels=self.channels if self.project and position == 0 and shared_cls_token else None,
                last=last and position == 1,
            )
            steps.append(Step(f"{name}, {axis}", shape, choose(shape, self.formulation[position])))
        return steps[0], steps[1]

    def possible(self, steps: Sequence[Step]) -> list[Step]:
        """`steps` but for what the modules do not allow as they are now: those run as written, or less folded."""
        return [
            self._possible(step, transformer, position)
            for position, (step, (_, transformer, _)) in enumerate(zip(steps, self._order(), strict=True))
        ]

    @property
    def weighs(self) -> bool:
        """Whether small work may run as written: not where a formulation, a backend or little memory is asked for."""
        return self.backend == "auto" and not self.recompute and not any(self.formulation)

    def _possible(self, step: Step, transformer: nn.Module, position: int) -> Step:
        if step.formulation == WRITTEN:
            return step
        reason = why_written(transformer)
        if reason is not None:
            backends.log_once(f"the transformer along the {step.shape.axis} runs as written: {reason}")
            return Step(step.name, step.shape, WRITTEN, reason)
        reason = why_not_linear("projection", self.projection) if step.formulation == "low-rank" else None
        if reason is not None:
            backends.log_once(f"the first transformer is not low-rank: {reason}")
            shape = older_torch.replace(step.shape, channels=None)
            return Step(step.name, step.shape, choose(shape, self.formulation[position]), reason)
        return step

    def transform(
        self,
        grid: Tensor,
        cls_token: Tensor,
        steps: Sequence[Step],
        lengths: Lengths | None = None,
        observe: Observer | None = None,
        dtype: torch.dtype | None = None,
        *,
        compared: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run both transformers as planned.

        Args:
            grid: tokens `(batch, height, width, dim)`, or pixels `(…, channels)` with `project`.
            cls_token: `(1 or batch, dim)`.
            steps: what `steps` returned.
            lengths: valid tokens of each sample; None for all.
            observe: called with what enters each transformer; not with a low-rank step, whose grid holds pixels.
            dtype: of the products; None for that of autocast, or of the parameters.
            compared: whether a comparison of what `kept` gives was asked for.

        Returns:
            The grid `(batch, height, width, dim)` (as it came in to a class-only pass, which makes
            none) and the class token `(batch, dim)`.
        """
        if grid.is_cpu and lengths is None and observe is None and self.weighs and not records():
            steps = [step.for_batch(len(grid), trains=torch.is_grad_enabled()) for step in steps]
        steps = self.possible(steps)
        device_type, low_rank = grid.device.type, steps[0].formulation == "low-rank"
        autocast = autocasts(device_type)
        parameter_dtype = self.pos_embedding_h.dtype
        autocast_dtype = torch.get_autocast_dtype(device_type) if autocast else parameter_dtype
        rounded = autocast and parameter_dtype != torch.float64
        compute_dtype = dtype or (autocast_dtype if rounded else parameter_dtype)
        if not low_rank:
            grid = call(self.projection, grid)
        owned = self.project
        with torch.autocast(device_type, enabled=False) if autocast else nullcontext():
            folded = self._folded(steps, cls_token, compute_dtype, compared)
            cls_token = cls_token.expand(grid.shape[0], -1)
            for (axis, transformer, pos_embedding), step, weights in zip(self._order(), steps, folded, strict=True):
                positions = pos_embedding[0, 0]
                if observe is not None:
                    observe(axis, transformer, grid, cls_token, positions)
                if weights is None:
                    with torch.autocast(device_type, autocast_dtype) if autocast else nullcontext():
                        how = {"recompute": self.recompute, "last": step.shape.last}
                        grid, cls_token = written_pass(grid, cls_token, positions, transformer, axis, lengths, **how)
                    owned = False  # A hook of the transformer may have kept it.
                    continue
                settings = Settings(
                    axis=axis,
                    dropout=read_dropout(transformer),
                    recompute=self.recompute,
                    lengths=lengths,
                    dtype=parameter_dtype,
                    in_place=owned,
                    backend=self.backend,
                )
                if step.formulation == "low-rank":
                    grid, cls_token = dispatch.low_rank_pass(grid, weights, settings)
                elif step.formulation == "class-only":
                    cls_token = dispatch.class_only_pass(grid, cls_token, positions, weights, settings)
                else:
                    grid, cls_token = dispatch.axis_pass(grid, cls_token, positions, weights, settings)
                owned = True
        return grid, cls_token

    def _plan(self) -> Planned:
        """Steps of the block wherever it may stand."""
        either = (False, True)
        return {(shared, last): self.steps(shared_cls_token=shared, last=last) for shared in either for last in either}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._steps = self._plan()  # Version 0.1.0 pickled them by other keys.

    def _order(self) -> list[tuple[str, Transformer, nn.Parameter]]:
        """Axis, transformer and positions, in the order in which they run."""
        along_height = ("height", self.transformer_h, self.pos_embedding_h)
        along_width = ("width", self.transformer_w, self.pos_embedding_w)
        return [along_height, along_width] if self.first_axis == "height" else [along_width, along_height]

    def kept(self, cls_token: Tensor, shared_cls_token: bool, last: bool) -> tuple[FoldCache[Any], list[Tensor]] | None:
        """Where folded weights are kept, and what they are made of; arguments are those of `transform` and `steps`.

        None where none are kept, where other code than this package's runs, or where dropout draws: then a pass must
        not be run twice.
        """
        steps = self.possible(self.planned(shared_cls_token=shared_cls_token, last=last))
        own = is_plain(self.projection) or not (self.project or is_hooked(self.projection))
        if not own or any(step.formulation == WRITTEN for step in steps):
            return None
        if any(read_dropout(transformer) != NO_DROPOUT for _, transformer, _ in self._order()):
            return None
        parameters = self._sources(steps, cls_token)
        return None if differentiates(*parameters) else (self._cache, parameters)

    def _sources(self, steps: Sequence[Step], cls_token: Tensor) -> list[Tensor]:
        """What folded weights are made of."""
        low_rank = any(step.formulation == "low-rank" for step in steps)
        return [*tensors_below(self), *([cls_token] if low_rank else [])]

    def _folded(
        self, steps: Sequence[Step], cls_token: Tensor, dtype: torch.dtype, compared: bool
    ) -> list[Folded | None]:
        """The weights of both transformers as `steps` need them, for products in `dtype`; None where one is called.

        They are part of the graph where gradients can reach the parameters, otherwise kept across calls.
        """
        formulations, order = tuple(step.formulation for step in steps), self._order()

        def folded() -> list[Folded | None]:
            low_rank = formulations[0] == "low-rank"
            tokens = Tokens(cast(nn.Linear, self.projection), cls_token[0], order[0][2][0, 0]) if low_rank else None
            return [
                None if formulation == WRITTEN else fold(transformer, formulation, dtype, tokens)
                for formulation, (_, transformer, _) in zip(formulations, order, strict=True)
            ]

        if records() or set(formulations) == {WRITTEN}:
            return folded()
        parameters = self._sources(steps, cls_token)
        if differentiates(*parameters):
            return folded()
        read = [entry[1] for entry, formulation in zip(order, formulations, strict=True) if formulation != WRITTEN]
        norms = [sublayer.norm for transformer in read for sublayer in transformer.sublayers]
        key = (formulations, dtype, *(norm.eps for norm in norms))
        return self._cache.get(key, parameters, folded, compared=compared)
