"""SepTr written out plainly: the oracle for every test and the baseline of every benchmark.

This follows the mathematics of Ristea, Ionescu and Khan, "SepTr: Separable Transformer for Audio
Spectrogram Processing" (INTERSPEECH 2022), step by step and in their order: separate queries, keys
and values, the class token joined to every sequence, pooling and upsampling in every block. It does
all the work that `septr_fast.SepTr` avoids, calls nothing else of this package, and holds the
parameters under the names that published checkpoints use.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from operator import index
from typing import Any, SupportsIndex, cast

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

AXES = ("height", "width")


def size_pair(value: int | tuple[int, int] | list[int], name: str) -> tuple[int, int]:
    """Read `value`, an int or two ints, as `(height, width)`; raise `ValueError` naming `name` otherwise."""
    pair = (value, value) if whole(value) is not None else value
    sizes = [whole(size) for size in pair] if isinstance(pair, (tuple, list)) else []
    if len(sizes) != 2 or not all(sizes):
        raise ValueError(f"{name}: expected a positive int or two of them (height, width), got {value!r}")
    return cast("tuple[int, int]", tuple(sizes))


def check_sizes(**sizes: int) -> tuple[int, ...]:
    """`sizes` as Python's ints; raise `ValueError`, naming the argument, unless every one is a positive int."""
    for name, value in sizes.items():
        if not whole(value):
            raise ValueError(f"{name}: expected a positive int, got {value!r}")
    return tuple(map(int, sizes.values()))


def whole(value: object) -> int | None:
    """`value` as a Python int where it is one, of NumPy or a tensor with one value too, and not negative."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        found = index(cast(SupportsIndex, value))
    except (TypeError, RuntimeError):
        return None
    return found if found >= 0 else None


def as_python(value: Any) -> Any:
    """Numbers of NumPy, and tensors `()`, as Python's numbers; those in lists, tuples and dictionaries too."""
    if isinstance(value, Mapping):
        return {name: as_python(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_python, value))
    return value.item() if getattr(value, "shape", None) == () else value


def check_classes(num_classes: int) -> int:
    """`num_classes` as a Python int; raise `ValueError` unless it is positive, or 0 for features alone."""
    classes = whole(num_classes)
    if classes is None:
        raise ValueError(f"num_classes: expected a positive int, or 0 for features, got {num_classes!r}")
    return classes


def classifier(dim: int, num_classes: int) -> nn.Module:
    """The head of a model with tokens of `dim`; nothing for 0 classes."""
    classes = check_classes(num_classes)
    return nn.Linear(dim, classes) if classes else nn.Identity()


def is_number(value: object) -> bool:
    """Whether `value` is a real number, of Python or NumPy."""
    return isinstance(value, Real)


class Attention(nn.Module):
    """Multi-head self-attention over sequences `(..., tokens, dim)`, softmax(q k^T / sqrt(dim_head)) v."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        single_full_head = heads == 1 and dim_head == dim
        projection = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(dropout))
        self.to_out = nn.Identity() if single_full_head else projection

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token of `x` attends to, in the shape of `x`."""
        query, key, value = rearrange(self.to_qkv(x), "... n (qkv h d) -> qkv ... h n d", qkv=3, h=self.heads)
        scores = torch.matmul(query, key.transpose(-1, -2)) * self.dim_head**-0.5
        attended = torch.matmul(scores.softmax(dim=-1), value)
        out: Tensor = self.to_out(rearrange(attended, "... h n d -> ... n (h d)"))
        return out


class FeedForward(nn.Module):
    """Linear, exact GELU, Linear over `(..., dim)`."""

    def __init__(self, dim: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP of every token of `x`, in the shape of `x`."""
        out: Tensor = self.net(x)
        return out


class PreNorm(nn.Module):
    """`fn(LayerNorm(x))`."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return `fn` of the normalized tokens."""
        out: Tensor = self.fn(self.norm(x))
        return out


class Transformer(nn.Module):
    """One pre-norm transformer layer over sequences `(..., tokens, dim)`."""

    def __init__(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        attention = PreNorm(dim, Attention(dim, heads, dim_head, dropout))
        feed_forward = PreNorm(dim, FeedForward(dim, mlp_dim, dropout))
        self.layers = nn.ModuleList([nn.ModuleList([attention, feed_forward])])

    @property
    def sublayers(self) -> tuple[PreNorm, PreNorm]:
        """The attention and the MLP, each with its norm."""
        attention, feed_forward = cast(nn.ModuleList, self.layers[0])
        return cast(PreNorm, attention), cast(PreNorm, feed_forward)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` after both sublayers, in its shape."""
        for sublayer in self.sublayers:
            x = sublayer(x) + x
        return x


class SepTrBlock(nn.Module):
    """Two transformers in sequence, one along each axis of the token grid; see `septr_fast.SepTrBlock`."""

    def __init__(
        self,
        channels: int,
        input_size: int | tuple[int, int] | list[int],
        heads: int = 3,
        mlp_dim: int = 128,
        dim_head: int = 32,
        down_sample_input: int | tuple[int, int] | list[int] | None = None,
        project: bool = False,
        reconstruct: bool = False,
        dim: int = 128,
        dropout_tr: float = 0.0,
        *,
        first_axis: str = "height",
    ) -> None:
        super().__init__()
        channels, heads, mlp_dim, dim_head, dim = check_sizes(
            channels=channels, heads=heads, mlp_dim=mlp_dim, dim_head=dim_head, dim=dim
        )
        if first_axis not in AXES:
            raise ValueError(f"first_axis: expected one of {', '.join(AXES)}, got {first_axis!r}")
        if not is_number(dropout_tr) or not 0 <= dropout_tr <= 1:
            raise ValueError(f"dropout_tr: expected a probability, got {dropout_tr!r}")
        dropout_tr = float(dropout_tr)
        height, width = self.input_size = size_pair(input_size, "input_size")
        pool = None if down_sample_input is None else size_pair(down_sample_input, "down_sample_input")
        if pool is not None:
            height, width = height // pool[0], width // pool[1]
            if not (height and width):
                raise ValueError(f"down_sample_input: pooling {pool} leaves nothing of input_size {self.input_size}")
        self.channels, self.dim, self.project = channels, dim, project
        self.first_axis = first_axis
        self.pool = nn.Identity() if pool is None else nn.AvgPool2d(pool)
        self.upsample = nn.Identity() if pool is None else nn.UpsamplingNearest2d(scale_factor=pool)
        self.projection = nn.Linear(channels, dim) if project else nn.Identity()
        self.pos_embedding_w = nn.Parameter(torch.randn(1, 1, width + 1, dim))
        self.pos_embedding_h = nn.Parameter(torch.randn(1, 1, height + 1, dim))
        self.transformer_w = Transformer(dim, heads, dim_head, mlp_dim, dropout_tr)
        self.transformer_h = Transformer(dim, heads, dim_head, mlp_dim, dropout_tr)
        self.reconstruct = nn.Linear(dim, channels) if reconstruct else None

    def forward(self, x: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` `(batch, channels, height, width)` and `cls_token` `(1 or batch, 1, 1, dim)` through the block."""
        grid = self.projection(rearrange(self.pool(x), "b c h w -> b h w c"))
        if self.first_axis == "height":
            grid, cls_token = self.along_height(grid, cls_token)
            grid, cls_token = self.along_width(grid, cls_token)
        else:
            grid, cls_token = self.along_width(grid, cls_token)
            grid, cls_token = self.along_height(grid, cls_token)
        if self.reconstruct is not None:
            grid = self.reconstruct(grid)
        return self.upsample(rearrange(grid, "b h w c -> b c h w")), cls_token

    def along_height(self, grid: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor]:
        """Attend inside each column of `grid` `(batch, height, width, dim)`."""
        columns = rearrange(grid, "b h w d -> b w h d")
        columns, cls_token = attend(columns, cls_token, self.pos_embedding_h, self.transformer_h)
        return rearrange(columns, "b w h d -> b h w d"), cls_token

    def along_width(self, grid: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor]:
        """Attend inside each row of `grid` `(batch, height, width, dim)`."""
        return attend(grid, cls_token, self.pos_embedding_w, self.transformer_w)


def attend(
    sequences: Tensor, cls_token: Tensor, pos_embedding: Tensor, transformer: nn.Module
) -> tuple[Tensor, Tensor]:
    """Run `transformer` over `sequences` `(batch, rows, length, dim)`, each with the class token in front.

    Returns the sequences and the class token `(batch, 1, 1, dim)`, averaged over the rows.
    """
    batch, rows = sequences.shape[:2]
    cls_token = cls_token.expand(batch, -1, -1, -1)
    tokens = torch.cat([repeat(cls_token, "b 1 1 d -> b r 1 d", r=rows), sequences], dim=2)
    tokens = transformer(tokens + pos_embedding)
    return tokens[:, :, 1:], reduce(tokens[:, :, :1], "b r 1 d -> b 1 1 d", "mean")


class SepTr(nn.Module):
    """The classifier; see `septr_fast.SepTr` for the arguments."""

    block_type: type[SepTrBlock] = SepTrBlock

    def __init__(
        self,
        channels: int = 1,
        input_size: int | tuple[int, int] | list[int] = (128, 128),
        num_classes: int = 35,
        depth: int = 3,
        heads: int = 5,
        mlp_dim: int = 256,
        dim_head: int = 256,
        down_sample_input: int | tuple[int, int] | list[int] | None = None,
        dim: int = 256,
        *,
        dropout_tr: float = 0.0,
        return_cls: bool = False,
        first_axis: str = "height",
    ) -> None:
        super().__init__()
        depth, dim = check_sizes(depth=depth, dim=dim)
        check_classes(num_classes)
        self.return_cls = return_cls
        self.transformer = nn.ModuleList(
            self.block_type(
                channels,
                input_size,
                heads,
                mlp_dim,
                dim_head,
                down_sample_input,
                project=block == 0,
                dim=dim,
                dropout_tr=dropout_tr,
                first_axis=first_axis,
            )
            for block in range(depth)
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, 1, dim))
        self.fc = classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify spectrograms `(batch, channels, height, width)`: logits `(batch, num_classes)`."""
        cls_token = self.cls_token
        for block in self.transformer:
            x, cls_token = block(x, cls_token)
        features = rearrange(cls_token, "b 1 1 d -> b d")
        return (self.fc(features), features) if self.return_cls else self.fc(features)
