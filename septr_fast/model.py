"""`SepTr`: the original's constructor, checkpoints and results, computed by the plan.

The data's way: a spectrogram is pooled once and laid out as pixels `(batch, height, width, channels)`.
The first transformer turns them into the token grid `(batch, height, width, dim)` and the class token
`(batch, dim)`, which stay apart to the end; every further transformer walks the grid along its axis.
The upsampling at the end of a block and the pooling at the start of the next undo each other exactly,
so the model does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from septr_fast import reference
from septr_fast.algebra import fold_cache
from septr_fast.algebra.plan import Plan, Step, per_transformer
from septr_fast.block import SepTrBlock, Size
from septr_fast.loading import as_a_whole
from septr_fast.passes import backend as backends
from septr_fast.passes.attention_maps import AttentionMaps, MapRecorder, check_queries
from septr_fast.passes.inputs import check_input, check_placement
from septr_fast.passes.lengths import Lengths, check_axis, clear, one_by_one
from septr_fast.passes.observers import records
from septr_fast.passes.torch.linear import call_head

__all__ = ["AttentionMaps", "Features", "SepTr", "SepTrBlock", "SeparableTr", "Size"]


class Features(NamedTuple):
    """What a block gives.

    Attributes:
        grid: `(batch, dim, height, width)`, the sizes rounded down to multiples of the pooling.
        cls_token: `(batch, dim)`.
    """

    grid: Tensor
    cls_token: Tensor


class SepTr(reference.SepTr):
    """Separable Transformer: a classifier of spectrograms.

    Ristea, Ionescu and Khan, "SepTr: Separable Transformer for Audio Spectrogram Processing",
    INTERSPEECH 2022. Constructor, state dict, initialization and results are those of the original
    `SeparableTr`; the arithmetic is that of `septr_fast.algebra`.

    Args:
        channels: channels of a spectrogram, 1 for a magnitude.
        input_size: `(height, width)` of a spectrogram, in frequency bins and frames, or one int for both.
        num_classes: number of classes, or 0 for the class token in place of logits: `fc` is an `nn.Identity` then.
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
    batch_invariant = False

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
        formulations = per_transformer(formulation, 2 * depth)
        for index, block in enumerate(self.blocks):
            block.take_formulations(formulations[2 * index : 2 * index + 2])
            block.backend = backends.check_name(backend)

    @property
    def blocks(self) -> list[SepTrBlock]:
        """The blocks in order."""
        return [cast(SepTrBlock, block) for block in self.transformer]

    def _why_called(self) -> list[str | None]:
        """Why each block is called as it is written, its transformers apart; None for one that is not."""
        blocks = list(self.transformer)
        if not blocks:
            raise ValueError("transformer: expected at least one block, there is none")
        reasons = [
            block.why_called() if isinstance(block, SepTrBlock) else f"it is {type(block).__name__}" for block in blocks
        ]
        if len({block.pooling for block in blocks if isinstance(block, SepTrBlock)}) > 1:
            reasons = [reason or "other blocks pool otherwise" for reason in reasons]
        for reason in [reason for reason in reasons if reason]:
            backends.log_once(f"a block is called as it is written: {reason}")
        return reasons

    def forward(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None = None, lengths_axis: str = "width"
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
        return self._forward(x, lengths, lengths_axis, self)

    def forward_features(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None = None, lengths_axis: str = "width"
    ) -> list[Features]:
        """Token grid and class token after every block, as the blocks of the original return them; differentiable.

        Arguments and errors are those of `forward`. The head on the last class token, `fc`, gives the logits, up to
        rounding: here the last transformer computes its whole grid.

        Returns:
            One pair for each block. With pooling the grid is upsampled again; in padding it holds zeros.
        """
        features: list[Features] = []
        self._through(*self._enter(x, lengths, lengths_axis), features)
        return features

    @torch.no_grad()
    def attention_maps(
        self,
        x: Tensor,
        lengths: Sequence[int] | Tensor | None = None,
        *,
        lengths_axis: str = "width",
        queries: str = "class",
    ) -> list[AttentionMaps]:
        """The probabilities with which tokens attend to one another, of every block, axis and head.

        They are computed from the weights with a softmax in float32 at least, exactly those that the formulations
        stand for, a chunk of rows at a time: besides the result and what `forward` holds there is only a chunk. For
        all queries the default model's result has 43 MB a transformer and sample, 256 MB in all; for the class
        token's alone 2 MB. No gradients are computed. In training mode dropout acts on what later transformers see:
        put the model into evaluation mode.

        Args:
            x: as in `forward`.
            lengths: as in `forward`.
            lengths_axis: as in `forward`.
            queries: "class" for what the class token attends to, "all" for every token.

        Returns:
            For each block the maps along the height, `(batch, width, heads, queries, 1 + height)`, and along the
            width, `(batch, height, heads, queries, 1 + width)`, with sizes in tokens and one query for "class",
            otherwise as many as keys. Query 0 and key 0 are the class token. Each row sums to one; padding has zeros,
            as a key, as a query and as a sequence.

        Raises:
            ValueError: as `forward` does, and for other queries.
            TypeError: as `forward` does.
        """
        check_queries(queries)
        x, cls_token, valid = self._enter(x, lengths, lengths_axis)
        for index, block in enumerate(self.transformer):
            if not isinstance(block, SepTrBlock):
                raise TypeError(f"attention_maps: expected a SepTrBlock as block {index}, got {type(block).__name__}")
        grid, maps = self.blocks[0].pixels(x, valid), []
        for index, block in enumerate(self.blocks):
            recorder = MapRecorder(queries, valid)
            steps = block.planned(shared_cls_token=False, last=index == len(self.blocks) - 1)
            grid, cls_token = block.transform(grid, cls_token, steps, valid, recorder)
            maps.append(recorder.maps())
        return maps

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As that of `nn.Module`, but where it raises, parameters and buffers are what they were before."""
        with as_a_whole(self, assign=assign):
            return super().load_state_dict(state_dict, strict, assign)

    def resize_positions(self, input_size: Size) -> None:
        """Take spectrograms of another size from now on, the positions interpolated; in place.

        The positions of the tokens are interpolated linearly along their axis (`septr_fast.resizing.resize_table`),
        that of the class token is kept. They are stretched over the new size: a model for longer clips at the same
        rate of frames has to be trained on, or takes windows (`predict_long`). Where the number of tokens along an
        axis does not change, the Parameter stays the same object, and so do all other parameters. The new ones are
        unknown to an optimizer that was built before, which holds the old ones: build it after, and resize before
        wrappers like DistributedDataParallel too.

        Args:
            input_size: `(height, width)` of a spectrogram before pooling, or one int for both.

        Raises:
            ValueError: for a size that is not positive or of which pooling leaves nothing; nothing is changed then.
        """
        resized = [block.resized_positions(input_size) for block in self.blocks]
        for block, positions in zip(self.blocks, resized, strict=True):
            block.take_positions(positions)

    def reset_classifier(self, num_classes: int) -> None:
        """Take a new head for other classes, initialized as by the constructor; in place, as models of timm do.

        Its Parameters are unknown to an optimizer that was built before; all others stay the same objects.

        Args:
            num_classes: number of classes, or 0 for the class token in place of logits.

        Raises:
            ValueError: for another number; nothing is changed then.
        """
        self.fc = reference.classifier(self.cls_token.shape[-1], num_classes).to(self.cls_token)

    def _enter(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None, lengths_axis: str
    ) -> tuple[Tensor, Tensor, Lengths | None]:
        """Spectrograms, class token and valid tokens of checked arguments of `forward`."""
        check_axis(lengths_axis)
        first = self.transformer[0] if len(self.transformer) else None
        if not isinstance(first, SepTrBlock):
            if lengths is not None:
                raise ValueError(f"lengths: expected none for a first block that is {type(first).__name__}, got some")
            check_placement(self, x, "x")
            return x, self.cls_token[0, 0], None
        check_input(self, x, first.features, first.input_size)
        return x, self.cls_token[0, 0], None if lengths is None else first.lengths(lengths, lengths_axis, x)

    def _forward(
        self, x: Tensor, lengths: Sequence[int] | Tensor | None, lengths_axis: str, by: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What `forward` returns, `by` whose `_compare` and `_through`; a GPU has work while it compares weights."""
        entered = [self._enter(x, lengths, lengths_axis)]
        if self.batch_invariant and len(x) > 1:
            entered = [self._enter(sample, length, lengths_axis) for sample, length in one_by_one(x, lengths)]
        differ = by._compare()
        cls_tokens = [by._through(*one, compared=differ is not None) for one in entered]
        if differ is not None and differ():
            cls_tokens = [by._through(*one, compared=False) for one in entered]
        each = [call_head(self.fc, cls_token) for cls_token in cls_tokens]
        if len(each) > 1:
            each, cls_tokens = [torch.cat(each)], [torch.cat(cls_tokens)]
        return (each[0], cls_tokens[0]) if self.return_cls else each[0]

    def _compare(self) -> Callable[[], bool] | None:
        """Ask whether parameters differ from what is kept of them; None where every block sees for itself."""
        kept = self._kept()
        return None if kept is None else fold_cache.compare(kept)

    def _kept(self) -> list[Any] | None:
        """What is compared, of each block; None on a CPU, and where other code runs or must not run twice."""
        if not fold_cache.is_waited_for(self.cls_token) or records() or any(self._why_called()):
            return None
        last, cls_token = len(self.blocks) - 1, self.cls_token[0, 0]
        return [block.kept(cls_token, index == 0, index == last) for index, block in enumerate(self.blocks)]

    def _through(
        self,
        x: Tensor,
        cls_token: Tensor,
        valid: Lengths | None,
        features: list[Features] | None = None,
        *,
        compared: bool = False,
    ) -> Tensor:
        """The class token `(batch, dim)` after all blocks; what each gives is added to `features`.

        Between blocks goes the token grid, but before and after a block that is called the feature map.
        """
        called = self._why_called()
        grid: Tensor | None = None
        for index, block in enumerate(self.blocks):
            last = index == len(called) - 1
            if called[index] is None:
                grid = block.pixels(x, valid) if grid is None else grid
                steps = block.planned(shared_cls_token=index == 0, last=last and features is None)
                grid, cls_token = block.transform(grid, cls_token, steps, valid, compared=compared)
                if features is not None or (not last and called[index + 1] is not None):
                    shown = grid if valid is None else clear(grid, valid)
                    x = block.upsample(shown.permute(0, 3, 1, 2))
            else:
                x, four = block(x, cls_token[:, None, None], *_given(valid, block, index))
                grid, cls_token = None, four[:, 0, 0]
            if features is not None:
                features.append(Features(x, cls_token))
        return cls_token

    def plan(self) -> Plan:
        """The formulation of every transformer and what it costs; `print` it for a table.

        A transformer with a layer that cannot be folded is called as the original is written, and so is a block that
        is no `SepTrBlock` or has hooks, whose work is not counted: `notes` say which and why.
        """
        called, steps, notes = self._why_called(), list[Step](), list[str]()
        for index, (block, reason) in enumerate(zip(self.transformer, called, strict=True)):
            place = {"shared_cls_token": index == 0, "last": index == len(called) - 1 and reason is None}
            if reason is not None:
                notes.append(f"block {index} is called as it is: {reason}")
            if isinstance(block, SepTrBlock):
                found = zip(block.steps(**place, name=f"block {index}"), block.planned(**place), strict=True)
                own = block.possible([Step(now.name, now.shape, planned.formulation) for now, planned in found])
                notes += [f"{step.name} runs {step.formulation}: {step.reason}" for step in own if step.reason]
                steps += own
        outputs = self.fc.out_features if isinstance(self.fc, nn.Linear) else 0
        weighs = all(block.weighs for block in self.transformer if isinstance(block, SepTrBlock))
        return Plan(tuple(steps), outputs, self.cls_token.element_size(), tuple(notes), weighs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute in the backward pass: a tenth of the memory of the original for about a third more work."""
        for block in self.blocks:
            block.recompute = enable

    def set_batch_invariant(self, enable: bool = True) -> None:
        """Compute every sample of a batch by itself: its bits depend on no neighbour and not on how many there are.

        That holds for what `forward` returns and for the gradients of the input, in training and in evaluation, on
        every backend, for the same model, device and number of threads. It costs speed where one sample does not
        keep the device busy; in training the weights are folded, and kept folded, for each sample. A compiled or
        exported graph then serves one batch size.

        Otherwise products run over whole batches, and their kernels are chosen by size: neighbours still change
        nothing, but the number of samples may change the last bits. Without gradients on a CPU it does not where each
        pass over a sample has at least 4 MiB of intermediate results, unless `fc` has hooks or is no plain `nn.Linear`.
        """
        self.batch_invariant = enable

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


def _given(valid: Lengths | None, block: nn.Module, index: int) -> tuple[Lengths, ...]:
    """The further arguments of a block that is called."""
    if valid is None:
        return ()
    if not isinstance(block, SepTrBlock):
        raise ValueError(f"lengths: expected none for block {index}, which is {type(block).__name__}, got some")
    return (valid,)


SeparableTr = SepTr
