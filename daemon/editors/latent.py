"""Latent inpainting: encode the masked picture, fill its latents, decode, composite.

This is the family today's editors belong to (Stable Diffusion, FLUX, Qwen-Image all
encode the masked picture first). Two parts:

* `Encoder` / `Decoder`: the tiny-autoencoder architecture (residual blocks of three 3x3
  convolutions, 8x down). Parameter names and arithmetic equal diffusers'
  `AutoencoderTiny`, so a state dict moves freely between the two; we keep our own forty
  lines because importing diffusers costs a daemon seconds and hundreds of megabytes.
  Ours take and return [0,1]; diffusers' wrap theirs in [-1,1].
* `InpaintNet`: a small U-Net with attention on the latents, conditioned like
  SD-inpainting: latents of the masked picture, plus the mask, in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daemon.editors.base import ModelEditor
from daemon.editors.tensors import read_state
from daemon.errors import Code, ModelError

LATENT_CHANNELS = 16
DOWNSCALE = 8
HOLE = 0.5
"""What the pixels under the mask become before encoding: zero on [-1,1], as in SD-inpainting."""


class Block(nn.Module):
    """Three 3x3 convolutions around a skip connection; N,C,H,W in and out.

    `pooled` adds a branch in front whose group norm sees the whole plane: what the tiny
    autoencoder of FLUX.2 has in its deepest blocks.
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
    """N,latent,h,w -> N,3,8h,8w, meant for [0,1] but not clamped (clamping kills gradients)."""

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
        # Latents beyond +-3 mean nothing to the decoder (the TAESD convention).
        out: Tensor = self.layers(torch.tanh(latents / 3) * 3)
        return out


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
    """Self-attention over all positions: what fills a hole wider than the convolutions see."""

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
    """Latents of the masked picture + mask -> latents of the filled picture, in one step.

    Args of the forward: latents N,16,h,w; mask N,1,h,w in [0,1], the share of each cell
    that is repainted. Returns N,16,h,w. Any h and w.
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
        x = self.leave(self.merge(torch.cat([skip, deep], dim=1)))
        out: Tensor = latents + self.conv_out(F.silu(self.norm_out(x)))
        return out


class LatentEditor(ModelEditor):
    """Encoder of the masked picture -> `InpaintNet` -> decoder; the family of SD, in one step."""

    multiple = DOWNSCALE
    hole = HOLE

    def __init__(
        self, name: str, weights_sha256: str, encoder: nn.Module, net: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__(weights_sha256, encoder, net, decoder)
        self.name = name
        self.encoder, self.net, self.decoder = encoder, net, decoder

    @classmethod
    def from_file(cls, name: str, path: Path) -> LatentEditor:
        """Load `encoder.*`, `net.*` and `decoder.*` from a safetensors file.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        parts = nn.ModuleDict({"encoder": Encoder(), "net": InpaintNet(), "decoder": Decoder()})
        state, digest = read_state(name, path)
        try:
            parts.load_state_dict(state)
        except RuntimeError as error:
            reason = "another architecture" if "size mismatch" in str(error) else "other parts"
            message = f"editor {name}: weights {path} are of {reason} than latent-mini; reinstall backfire"
            raise ModelError(Code.MODEL, message, retryable=False) from error
        return cls(name, digest, parts["encoder"], parts["net"], parts["decoder"])

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """See `Latent.encode`."""
        seen, _ = self._ready(image, mask)
        with self._computing(image.device):
            latents: Tensor = self.encoder(seen)
        return latents.to(image.dtype)

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        latents = self.net(self.encoder(image), F.avg_pool2d(mask, DOWNSCALE))
        out: Tensor = self.decoder(latents)
        return out
