"""The generator of MAT: two stages, a mask-aware transformer and a style-modulated U-Net.

Written from the paper (Li et al., "MAT: Mask-Aware Transformer for Large Hole Image Inpainting", CVPR 2022,
arXiv 2203.15270), with names, shapes and constants of the published network so that its weights load; see
the package docstring for the licence of those weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backfire.inpaint.mat.layers import (
    Conv,
    Linear,
    ModulatedConv,
    PartialConv,
    StyleConv,
    ToRGB,
    TransformerBlock,
)

__all__ = ["Config", "Draw", "MatNet", "ModulatedConv"]

SQUARE = 16
"""The side of the plane that a style writes into the features, and of the second stage's smallest
features."""


@dataclass(frozen=True)
class Config:
    """Sizes of the network; the defaults are the published 512-pixel one.

    Attributes:
        resolution: side of the pictures it was trained on; it takes squares of its multiples.
        channels, heads: of the first stage.
        grid: side of the first stage's finest token grid at that resolution.
        depths, windows: transformer blocks and window side of its five levels: grid, 1/2, 1/4, 1/2, grid.
        latent: features of the latent and of the style made from it.
        budget, most: the second stage has min(budget / side, most) channels at features of that side.
        noise: whether the second stage adds noise; published snapshots hold it, IOPaint's file does not.
    """

    resolution: int = 512
    channels: int = 180
    heads: int = 6
    grid: int = 64
    depths: tuple[int, ...] = (2, 3, 4, 3, 2)
    windows: tuple[int, ...] = (8, 16, 16, 16, 8)
    latent: int = 512
    budget: int = 32768
    most: int = 512
    noise: bool = False

    def width(self, side: int) -> int:
        """Channels of the second stage's features of that side."""
        return min(self.budget // side, self.most)

    @property
    def sides(self) -> list[int]:
        """Sides of the second stage's features, smallest first."""
        return [SQUARE << level for level in range(int(math.log2(self.resolution // SQUARE)) + 1)]


@dataclass(frozen=True, eq=False)
class Draw:
    """Everything random in one pass; shared by the members of a batch.

    Attributes:
        latent: float32 1,latent, normally distributed.
        first: bool 1,channels,h,w: which of the first stage's smallest features are kept; a style replaces
            the others.
        second: bool 1,width,h,w: the same for the second stage.
    """

    latent: Tensor
    first: Tensor
    second: Tensor


def frugal(block: Callable[..., Any], *inputs: Tensor | None) -> Any:
    """Run a block; if gradients are needed, keep only its inputs and recompute it in the backward pass."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        # Nothing inside a block is random.
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)


class Level(nn.Module):
    """One resolution of the transformer: resample, blocks of attention, a convolution, a shortcut."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        channels = config.channels
        grid = config.grid >> min(index, len(config.depths) - 1 - index)
        side = min(config.windows[index], grid)
        # A window as large as the grid cannot be shifted.
        shift = side // 2 if config.windows[index] < grid else 0
        self.downsample: nn.ModuleDict | None = None
        if index:
            falling = index <= len(config.depths) // 2
            conv = PartialConv(channels, channels, down=falling, up=not falling)
            self.downsample = nn.ModuleDict({"conv": conv})
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, config.heads, grid, side, shift if i % 2 else 0)
            for i in range(config.depths[index])
        )
        self.conv = PartialConv(channels, channels)

    def forward(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """N,C,H,W and N,1,H,W (or None: all known) -> the same, resampled."""
        if self.downsample is not None:
            x, known = self.downsample["conv"](x, known)
        tokens = x.permute(0, 2, 3, 1)
        seen = None if known is None else known.permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens, seen = block(tokens, seen)
        out, known = self.conv(tokens.permute(0, 3, 1, 2), None if seen is None else seen.permute(0, 3, 1, 2))
        return out + x, known


class UpBlock(nn.Module):
    """Doubles the size of the features, with the encoder's features of that size, and of the picture so
    far.
    """

    def __init__(self, inputs: int, outputs: int, style: int, noise: int | None = None) -> None:
        super().__init__()
        self.conv0 = StyleConv(inputs, outputs, style, up=True, noise=noise)
        self.conv1 = StyleConv(outputs, outputs, style, noise=noise)
        self.toRGB = ToRGB(outputs, style)

    def forward(
        self, x: Tensor, skip: Tensor, style: Tensor, picture: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """N,C,H,W; N,C',2H,2W; N,style; N,3,H,W -> N,C',2H,2W; N,3,2H,2W."""
        x = self.conv1(self.conv0(x, style) + skip, style)
        return x, self.toRGB(x, style, picture)


class FirstBlock(nn.Module):
    """The start of the second decoder: an `UpBlock` without upsampling and with a plain first convolution."""

    def __init__(self, channels: int, style: int, noise: int | None) -> None:
        super().__init__()
        self.conv0 = Conv(channels, channels)
        self.conv1 = StyleConv(channels, channels, style, noise=noise)
        self.toRGB = ToRGB(channels, style)

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv1(self.conv0(x) + x, style)
        return x, self.toRGB(x, style, None)


class FirstStage(nn.Module):
    """The mask-aware transformer: convolutions down to tokens, five levels of attention, a decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        halvings = int(math.log2(config.resolution // config.grid))
        self.conv_first = PartialConv(4, channels)
        self.enc_conv = nn.ModuleList(PartialConv(channels, channels, down=True) for _ in range(halvings))
        self.tran = nn.ModuleList(Level(config, index) for index in range(len(config.depths)))
        to_pixel = (Conv(channels, channels, down=True) for _ in range(int(math.log2(config.grid // 4))))
        self.down_conv = nn.Sequential(*to_pixel, nn.AdaptiveAvgPool2d(1))
        self.to_style = Linear(channels, 2 * channels, active=True)
        self.ws_style = Linear(config.latent, channels, active=True)
        self.to_square = Linear(channels, SQUARE**2, active=True)
        self.dec_conv = nn.ModuleList(UpBlock(channels, channels, 3 * channels) for _ in range(halvings))

    def forward(self, image: Tensor, known: Tensor, latent: Tensor, keep: Tensor) -> Tensor:
        """The arguments of `MatNet`, the mapped latent and `Draw.first` -> a first picture N,3,H,W."""
        x, seen = frugal(self.conv_first, torch.cat([known - 0.5, image * known], dim=1), known)
        skips = []
        for conv in self.enc_conv:
            skips.append(x)
            x, seen = frugal(conv, x, seen)

        middle = len(self.tran) // 2
        falling = []
        for level in self.tran[:middle]:
            x, seen = frugal(level, x, seen)
            falling.append(x)
        x, _ = frugal(self.tran[middle], x, None)
        painted = self.ws_style(latent)
        # The published network resizes the square as one long row of tokens.
        row = F.interpolate(self.to_square(painted)[:, None], x.shape[2] * x.shape[3], mode="linear")
        x = torch.where(keep, x, row.reshape(1, 1, *x.shape[2:]).to(x.dtype))
        seen_style = self.to_style(self.down_conv(x).flatten(1))
        style = torch.cat([seen_style, painted.expand(len(x), -1)], dim=1)
        for level, skip in zip(self.tran[middle + 1 :], reversed(falling), strict=True):
            x = frugal(level, x, None)[0] + skip

        picture: Tensor | None = None
        for block, skip in zip(self.dec_conv, reversed(skips), strict=True):
            x, picture = frugal(block, x, skip, style, picture)
        assert picture is not None
        return picture


class Pair(nn.Module):
    """Two convolutions, the first one 1x1 or to half the size: a level of the second encoder."""

    def __init__(self, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        self.conv0 = Conv(inputs, outputs, 3 if down else 1, down=down)
        self.conv1 = Conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1(self.conv0(x))
        return out


class ToStyle(nn.Module):
    """The smallest features N,C,h,w -> a style N,2C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(Conv(channels, channels, down=True) for _ in range(3)))
        self.fc = Linear(channels, 2 * channels, active=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.conv(x).mean(dim=(2, 3)))
        return out


class Synthesis(nn.Module):
    """Both stages: the first picture, then a convolutional U-Net that refines it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first_stage = FirstStage(config)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        smallest = config.width(SQUARE)
        style = config.latent + 2 * smallest
        for side in reversed(config.sides):
            finest = side == config.resolution
            block = Pair(7 if finest else config.width(2 * side), config.width(side), down=not finest)
            self.enc[f"EncConv_Block_{side}x{side}"] = block
        for side in config.sides:
            noise = side if config.noise else None
            self.dec[f"Dec_{side}x{side}"] = (
                FirstBlock(smallest, style, noise)
                if side == SQUARE
                else UpBlock(config.width(side // 2), config.width(side), style, noise)
            )
        self.to_square = Linear(config.latent, SQUARE**2, active=True)
        self.to_style = ToStyle(smallest)

    def forward(self, image: Tensor, known: Tensor, latent: Tensor, draw: Draw) -> Tensor:
        """See `MatNet`; `latent` is the mapped one."""
        first = self.first_stage(image, known, latent, draw.first)
        masked = image * known
        x = torch.cat([known - 0.5, torch.where(known > 0.5, image, first.to(image.dtype)), masked], dim=1)
        features = []
        for pair in self.enc.values():
            x = frugal(pair, x)
            features.append(x)
        square = self.to_square(latent).reshape(1, 1, SQUARE, SQUARE)
        square = F.interpolate(square, x.shape[2:], mode="bilinear")
        x = torch.where(draw.second, features.pop(), square.to(x.dtype))

        style = torch.cat([latent.expand(len(x), -1), self.to_style(x)], dim=1)
        start, *blocks = self.dec.values()
        x, picture = frugal(start, x, style)
        for block, skip in zip(blocks, reversed(features), strict=True):
            x, picture = frugal(block, x, skip, style, picture)
        return torch.where(known > 0.5, image, picture.to(image.dtype))


class MatNet(nn.Module):
    """MAT's generator. State dicts of the published network fit, see `ModulatedConv` for the one difference.

    Args of the forward:
        image: float32 N,3,S,S in [-1,1]; S a multiple of `config.resolution`.
        known: float32 N,1,S,S in {0,1}; **1 = known**, MAT's own polarity. Other pixels are ignored.
        draw: what is random; `MatNet.draw` makes one.

    Returns N,3,S,S, meant for [-1,1] but not clamped; known pixels are the image's own.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.synthesis = Synthesis(config)
        self.mapping = nn.Sequential()
        for index in range(8):
            layer = Linear(config.latent, config.latent, active=True, rate=0.01)
            self.mapping.add_module(f"fc{index}", layer)
        # For truncation, which editors do not use; defined because the files hold it.
        self.mapping.register_buffer("w_avg", torch.zeros(config.latent))

    def draw(self, latent: Tensor, size: int, generator: torch.Generator) -> Draw:
        """The random part of a pass for pictures of that size: half of the smallest features are dropped.

        Args:
            latent: float32 1,latent; its device is where the network is.
            size: side S of the pictures.
            generator: on any device.
        """
        config = self.config
        scale = size // config.resolution
        small = scale * config.grid // 4
        first, second = (
            (torch.rand(shape, generator=generator, device=generator.device) < 0.5).to(latent.device)
            for shape in (
                (1, config.channels, small, small),
                (1, config.width(SQUARE), scale * SQUARE, scale * SQUARE),
            )
        )
        return Draw(latent, first, second)

    def forward(self, image: Tensor, known: Tensor, draw: Draw) -> Tensor:
        latent = draw.latent * (draw.latent.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        out: Tensor = self.synthesis(image, known, self.mapping(latent), draw)
        return out
