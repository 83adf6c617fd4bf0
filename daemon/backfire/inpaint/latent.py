"""Latent inpainting: encode the masked picture, fill its latents, decode, composite.

Today's editors work like this: Stable Diffusion, FLUX and Qwen-Image all encode the masked picture first.

* `Encoder` and `Decoder` have the architecture of the tiny autoencoder (residual blocks of three 3x3
  convolutions, 1/8 of the size). Parameter names and arithmetic equal those of diffusers' `AutoencoderTiny`,
  so a state dict fits both. They are written here because importing diffusers costs seconds and hundreds of
  megabytes. Ours take and return [0,1], diffusers' [-1,1].
* `InpaintNet` is a small U-Net with attention that fills latents in one step. It is conditioned as in
  SD-inpainting, on the latents of the masked picture and on the mask. latent-taef2 uses it.
* `ShiftMapNet` does the same with texture that is copied from elsewhere in the picture. latent-mini uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backfire.errors import Code, ModelError
from backfire.inpaint import shiftmap
from backfire.inpaint.base import ModelEditor
from backfire.inpaint.tensors import read_state
from backfire.inpaint.texture import CELL, FEATURES, described

LATENT_CHANNELS = 16
DOWNSCALE = CELL
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
        return latents + self._painted(self._seen(latents, mask))

    def _seen(self, latents: Tensor, mask: Tensor) -> Tensor:
        """The features N,outer,h,w of the surroundings and the mask."""
        skip = self.enter(self.conv_in(torch.cat([latents, mask], dim=1)))
        deep = self.middle(self.down(skip))
        deep = self.up(F.interpolate(deep, size=skip.shape[-2:], mode="nearest"))
        out: Tensor = self.merge(torch.cat([skip, deep], dim=1))
        return out

    def _painted(self, x: Tensor) -> Tensor:
        """The change of the latents, N,latent,h,w, from features."""
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.leave(x))))
        return out


class Draft(NamedTuple):
    """What `ShiftMapNet` derives from the surroundings, N,...,h,w.

    Attributes:
        seen: features of the network's outer width.
        hole: N,1,h,w bool, the cells that are filled.
        rough: latents, with a first guess in the hole.
        have: the texture of the cells, see `texture.described`.
        want: the texture that they should have, which outside the hole is the same.
    """

    seen: Tensor
    hole: Tensor
    rough: Tensor
    have: Tensor
    want: Tensor


class ShiftMapNet(InpaintNet):
    """An `InpaintNet` that fills the hole with latents from elsewhere in the picture (see `shiftmap`).

    The network predicts which texture is wanted at each cell, the shift-map copies it, and the last blocks
    blend it in. The grain is therefore the picture's own, however wide the hole is. The forward also takes
    the texture of the masked picture, N,13,h,w.
    """

    def __init__(self, latent: int = LATENT_CHANNELS, width: Sequence[int] = (128, 192)) -> None:
        super().__init__(latent, width)
        outer = width[0]
        self.wanted = nn.Conv2d(outer, FEATURES, 1)
        self.rough = nn.Conv2d(outer, latent, 1)
        self.blend = nn.Conv2d(2 * latent + FEATURES, outer, 1)
        # The logarithms of the parameters of `shiftmap.filled`.
        self.rings = nn.Parameter(torch.tensor([0.01, 7e-4, 1.2e-5]).log())
        self.trust = nn.Parameter(torch.tensor(0.3).log())
        nn.init.zeros_(self.conv_out.weight)  # training starts from the result of the shift-map

    def forward(self, latents: Tensor, mask: Tensor, texture: Tensor) -> Tensor:  # type: ignore[override]
        draft = self.draft(latents, mask, texture)
        return self.blended(self.taken(draft.rough, draft), draft)

    def draft(self, latents: Tensor, mask: Tensor, texture: Tensor) -> Draft:
        """The draft of the fill; see `Draft`."""
        seen = self._seen(latents, mask)
        # The latents next to a hole depend on it, so they are filled, too.
        hole = F.max_pool2d((mask > 0).to(latents.dtype), 3, 1, 1) > 0
        rough = torch.where(hole, self.rough(seen), latents)
        want = torch.where(hole, self.wanted(seen), texture)
        return Draft(seen, hole, rough, texture, want)

    def taken(self, planes: Tensor, draft: Draft) -> Tensor:
        """Planes float32 N,c,h,w with the hole filled from elsewhere, as the draft demands."""
        return shiftmap.filled(planes, draft.have, draft.want, draft.hole, self.rings.exp(), self.trust.exp())

    def blended(self, taken: Tensor, draft: Draft) -> Tensor:
        """The latents of the filled picture, from those that were copied."""
        extra = self.blend(torch.cat([taken, draft.rough, draft.want], dim=1))
        return taken + self._painted(draft.seen + extra)


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
        out: Tensor = self.decoder(self._filled(image, F.avg_pool2d(mask, DOWNSCALE)))
        return out

    def _filled(self, image: Tensor, cells: Tensor) -> Tensor:
        """The latents of the filled picture, from the masked picture and the masked share of each cell."""
        out: Tensor = self.net(self.encoder(image), cells)
        return out


class ShiftMapEditor(LatentEditor):
    """A `LatentEditor` with a `ShiftMapNet`, such as latent-mini."""

    @classmethod
    def from_file(cls, name: str, path: Path) -> ShiftMapEditor:
        """Load `encoder.*`, `net.*` and `decoder.*` from a safetensors file.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        parts = nn.ModuleDict({"encoder": Encoder(), "net": ShiftMapNet(), "decoder": Decoder()})
        state, digest = read_state(name, path)
        try:
            parts.load_state_dict(state)
        except RuntimeError as error:
            reason = "another architecture" if "size mismatch" in str(error) else "other parts"
            message = f"editor {name}: weights {path} are of {reason} than latent-mini; reinstall backfire"
            raise ModelError(Code.MODEL, message, retryable=False) from error
        return cls(name, digest, parts["encoder"], parts["net"], parts["decoder"])

    def _filled(self, image: Tensor, cells: Tensor) -> Tensor:
        out: Tensor = self.net(self.encoder(image), cells, described(image))
        return out
