"""Stand-ins for the original class: its structure and its names, written from the mathematics, nothing shared with us.

What a published fork or an unlucky variant does differently is a subclass or an argument.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Normed(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        alone = heads == 1 and dim_head == dim
        self.to_out = nn.Identity() if alone else nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.to_qkv.out_features // 3 // round(self.scale**-2)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in self.to_qkv(x).chunk(3, dim=-1))
        weights = self.attend(q @ k.transpose(-1, -2) * self.scale)
        return self.to_out((weights @ v).transpose(-2, -3).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Layers(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, hidden: int, dropout: float) -> None:
        super().__init__()
        attention = Normed(dim, SelfAttention(dim, heads, dim_head, dropout))
        self.layers = nn.ModuleList([nn.ModuleList([attention, Normed(dim, Mlp(dim, hidden, dropout))])])

    def forward(self, x: Tensor) -> Tensor:
        for attention, mlp in self.layers:
            x = attention(x) + x
            x = mlp(x) + x
        return x


class Block(nn.Module):
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        heads: int,
        hidden: int,
        dim_head: int,
        pool: tuple[int, int] | None,
        dim: int,
        dropout: float,
        project: bool,
    ) -> None:
        super().__init__()
        height, width = (side // factor for side, factor in zip(size, pool or (1, 1), strict=True))
        self.transformer_h = Layers(dim, heads, dim_head, hidden, dropout)
        self.transformer_w = Layers(dim, heads, dim_head, hidden, dropout)
        if project:
            self.projection = nn.Linear(channels, dim)
        self.pos_embedding_w = nn.Parameter(torch.randn(1, 1, width + 1, dim))
        self.pos_embedding_h = nn.Parameter(torch.randn(1, 1, height + 1, dim))
        self.down = None if pool is None else nn.AvgPool2d(pool)
        self.up = None if pool is None else nn.UpsamplingNearest2d(scale_factor=pool)

    def forward(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        x = (x if self.down is None else self.down(x)).permute(0, 3, 2, 1)
        x = self.projection(x) if hasattr(self, "projection") else x
        x, token = self.along(x, token, self.pos_embedding_h, self.transformer_h)
        x, token = self.along(x.transpose(1, 2), token, self.pos_embedding_w, self.transformer_w)
        x = x.permute(0, 3, 1, 2)
        return x if self.up is None else self.up(x), token

    def along(self, x: Tensor, token: Tensor, positions: Tensor, layers: nn.Module) -> tuple[Tensor, Tensor]:
        front = token.expand(x.shape[0], x.shape[1], 1, x.shape[3])
        x = layers(torch.cat([front, x], dim=2) + positions)
        return x[:, :, 1:], x[:, :, :1].mean(dim=1, keepdim=True)


class SeparableTr(nn.Module):
    """The constructor's arguments in the original's order; `dropout_tr` as forks add it."""

    def __init__(
        self,
        channels: int = 1,
        input_size: tuple[int, int] = (128, 128),
        num_classes: int = 35,
        depth: int = 3,
        heads: int = 5,
        mlp_dim: int = 256,
        dim_head: int = 256,
        down_sample_input: tuple[int, int] | None = None,
        dim: int = 256,
        dropout_tr: float = 0.0,
    ) -> None:
        super().__init__()
        settings: tuple[Any, ...] = (heads, mlp_dim, dim_head, down_sample_input, dim, dropout_tr)
        self.transformer = nn.ModuleList(
            Block(channels, input_size, *settings, project=index == 0) for index in range(depth)
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, 1, dim))
        self.fc = nn.Linear(dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        token = self.cls_token
        for block in self.transformer:
            x, token = block(x, token)
        return token.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class WithClassToken(SeparableTr):
    """A fork: the class token comes beside the logits."""

    def forward(self, img: Tensor) -> tuple[Tensor, Tensor]:
        token = self.features(img)
        return self.fc(token), token


CONFIG: dict[str, Any] = {
    "channels": 2,
    "input_size": (6, 9),
    "num_classes": 3,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 8,
    "dim_head": 4,
    "dim": 8,
}
"""A small model's."""


def original(**changes: Any) -> SeparableTr:
    """A small model in float64."""
    return SeparableTr(**{**CONFIG, **changes}).double()


def attention(model: Any) -> Any:
    """The first attention of a model."""
    return model.transformer[0].transformer_h.layers[0][0].fn
