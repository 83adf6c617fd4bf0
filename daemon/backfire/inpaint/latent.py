"""Latent inpainting: encode the masked picture, fill its latents, decode, composite.

Today's editors work like this: Stable Diffusion, FLUX and Qwen-Image all encode the masked picture first.

* `Encoder` and `Decoder` have the architecture of the tiny autoencoder (residual blocks of three 3x3
  convolutions, 1/8 of the size). Parameter names and arithmetic equal those of diffusers' `AutoencoderTiny`,
  so a state dict fits both. They are written here because importing diffusers costs seconds and hundreds of
  megabytes. Ours take and return [0,1], diffusers' [-1,1].
* `InpaintNet` is a small U-Net with attention that fills latents in one step. It is conditioned as in
  SD-inpainting, on the latents of the masked picture and on the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backfire.inpaint.base import ModelEditor

LATENT_CHANNELS = 16
DOWNSCALE = 8
"""The side of a latent cell in pixels."""
HOLE = 0.5
"""The value of the pixels under the mask before encoding: 0 in [-1,1], as in SD-inpainting."""


class Block(nn.Module):
    """Three 3x3 convolutions around a skip connection; N,C,H,W in and out.

    `pooled` adds a branch in front whose group norm covers the whole plane, as in the deepest blocks of
    FLUX.2's tiny autoencoder.
    """

    def __init__(self, channels: int, *, pooled: bool = False) -> None:
        super().__init__()
        self.pool = _pooled(channels) if pooled else None
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [nn.Conv2d(channels, channels, 3, padding=1)]
            layers += [nn.ReLU()] if i < 2 else []
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        out: Tensor = F.relu(self.conv(x) + x)
        return out


def _pooled(channels: int) -> nn.Sequential:
    wide = 4 * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=False),
        nn.GroupNorm(4, wide),
        nn.ReLU(),
        nn.Conv2d(wide, channels, 1, bias=False),
    )


class Encoder(nn.Module):
    """N,3,H,W in [0,1] -> N,latent,H/8,W/8. H and W are multiples of 8."""

    def __init__(
        self,
        channels: int = 48,
        blocks: Sequence[int] = (0, 1, 2, 3),
        latent: int = LATENT_CHANNELS,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        last = len(blocks) - 1
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for level, count in enumerate(blocks):
            if level:
                layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False))
            layers += [Block(channels, pooled=pooled and level == last) for _ in range(count)]
        layers.append(nn.Conv2d(channels, latent, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layers(image)
        return out


class Decoder(nn.Module):
    """N,latent,h,w -> N,3,8h,8w, meant for [0,1] but not clamped, because clamping removes gradients."""

    def __init__(
        self,
        channels: int = 48,
        blocks: Sequence[int] = (3, 2, 1, 0),
        latent: int = LATENT_CHANNELS,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent, channels, 3, padding=1), nn.ReLU()]
        last = len(blocks) - 1
        for level, count in enumerate(blocks):
            layers += [Block(channels, pooled=pooled and level == 0) for _ in range(count)]
            if level < last:
                layers += [
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                ]
        layers.append(nn.Conv2d(channels, 3, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        # As in TAESD, latents are softly limited to [-3,3].
        out: Tensor = self.layers(torch.tanh(latents / 3) * 3)
        return out

    def under(self, latents: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, but right only where the mask is set, which is all of an edit that anybody sees.

        The blocks before the first enlargement see the whole plane. Those behind it, which take nearly all of
        the time, are computed for the smallest window around the mask from which its pixels follow.

        Args:
            latents: N,latent,h,w.
            mask: N,1,8h,8w, positive where the result is wanted.

        Returns:
            N,3,8h,8w, zero outside of the window.
        """
        first = next(i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Upsample))
        deep, shallow = self.layers[:first], self.layers[first:]
        plane = deep(torch.tanh(latents / 3) * 3)
        height, width = plane.shape[-2:]
        scale = mask.shape[-1] // width
        wanted = F.max_pool2d(mask.amax(dim=0), scale)[0] > 0
        margin = -(-_reach(shallow, scale) // scale)
        (top, bottom), (left, right) = (_span(wanted.any(dim=axis), margin) for axis in (1, 0))
        out = shallow(plane[..., top:bottom, left:right])
        beside = left, width - right, top, height - bottom
        return F.pad(out, [scale * side for side in beside])


def _reach(layers: nn.Module, scale: int) -> int:
    """How many pixels of the result a cell influences beyond its own, where `scale` pixels are a cell."""
    reach = 0
    for layer in layers.modules():
        if isinstance(layer, nn.Upsample):
            scale //= 2
        elif isinstance(layer, nn.Conv2d):
            reach += scale * (layer.kernel_size[0] // 2)
    return reach


def _span(wanted: Tensor, margin: int) -> tuple[int, int]:
    """The first and the last place plus one that are set, with a margin; all of it where none is set."""
    places = wanted.nonzero()
    if not len(places):
        return 0, len(wanted)
    return max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, len(wanted))


class ResBlock(nn.Module):
    """Pre-activation residual block with group norm; N,C,h,w in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(16, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(16, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = x + h
        return out


class Attention(nn.Module):
    """Self-attention over all positions, for holes that are wider than the reach of the convolutions."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(16, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(mixed.transpose(-1, -2).reshape(n, c, h, w))
        return out


class InpaintNet(nn.Module):
    """Latents of the masked picture and the mask -> latents of the filled picture, in one step.

    Args of the forward: latents N,16,h,w of any h and w; mask N,1,h,w in [0,1], the repainted share of each
    cell. Returns N,16,h,w.
    """

    def __init__(self, latent: int = LATENT_CHANNELS, width: Sequence[int] = (128, 192)) -> None:
        super().__init__()
        outer, inner = width
        self.conv_in = nn.Conv2d(latent + 1, outer, 3, padding=1)
        self.enter = nn.Sequential(ResBlock(outer), ResBlock(outer))
        self.down = nn.Conv2d(outer, inner, 3, stride=2, padding=1)
        self.middle = nn.Sequential(
            ResBlock(inner), Attention(inner), ResBlock(inner), Attention(inner), ResBlock(inner)
        )
        self.up = nn.Conv2d(inner, outer, 3, padding=1)
        self.merge = nn.Conv2d(2 * outer, outer, 1)
        self.leave = nn.Sequential(ResBlock(outer), ResBlock(outer))
        self.norm_out = nn.GroupNorm(16, outer)
        self.conv_out = nn.Conv2d(outer, latent, 3, padding=1)

    def forward(self, latents: Tensor, mask: Tensor) -> Tensor:
        skip = self.enter(self.conv_in(torch.cat([latents, mask], dim=1)))
        deep = self.middle(self.down(skip))
        deep = self.up(F.interpolate(deep, size=skip.shape[-2:], mode="nearest"))
        out = self.leave(self.merge(torch.cat([skip, deep], dim=1)))
        change: Tensor = self.conv_out(F.silu(self.norm_out(out)))
        return latents + change


class LatentEditor(ModelEditor):
    """Encodes the masked picture, fills its latents by a network, and decodes: like Stable Diffusion in one
    step.
    """

    multiple = DOWNSCALE
    hole = HOLE

    def __init__(
        self, name: str, weights_sha256: str, encoder: nn.Module, net: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__(weights_sha256, encoder, net, decoder)
        self.name = name
        self.encoder, self.net, self.decoder = encoder, net, decoder

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """See `Latent.encode`."""
        seen, _ = self._ready(image, mask)
        with self._computing(image.device):
            latents: Tensor = self.encoder(seen)
        return latents.to(image.dtype)

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        filled = self.net(self.encoder(image), F.avg_pool2d(mask, DOWNSCALE))
        if isinstance(self.decoder, Decoder):
            return self.decoder.under(filled, mask)
        out: Tensor = self.decoder(filled)
        return out
