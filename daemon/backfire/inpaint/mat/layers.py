"""The layers of MAT: equalised, masked and modulated convolutions, resampling, window attention.

Three ideas recur, all from StyleGAN2 (arXiv 1912.04958), on which MAT builds:

* *Equalised learning rate*: weights are stored at unit variance and scaled by 1/sqrt(fan-in) when used.
* *Modulation*: a style vector scales a convolution's input channels, and the output is scaled back to unit
  variance. We scale the activations, not the weights: the same sums, with one shared kernel for the batch.
* *Resampling* through the low-pass filter [1, 3, 3, 1], so that strides do not alias.

Activations are leaky ReLUs of slope 0.2 and gain sqrt(2). A leaky ReLU commutes with a positive factor, so
the gain is folded into weights and biases, and the ReLU works in place: both save a plane of memory a layer.

Parameter names are those of the published network (see the package docstring). Convolutions take and return
N,C,H,W; attention takes and returns N,H,W,C. Masks are N,1,H,W with 1 = known, the network's own polarity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN = math.sqrt(2)
SLOPE = 0.2
BLOCKED = -100.0
"""Added to a logit so that its token is not attended to: finite, because a window may hold none other."""


class Linear(nn.Module):
    """An equalised linear layer: ...,inputs -> ...,outputs.

    Args:
        inputs, outputs: features.
        active: whether a leaky ReLU follows.
        rate: the learning rate multiplier it was trained with, which scales its stored weights.
    """

    def __init__(self, inputs: int, outputs: int, *, active: bool = False, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.active = active
        self.bias_gain = rate * (GAIN if active else 1)
        self.gain = self.bias_gain / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight * self.gain, self.bias * self.bias_gain)
        return F.leaky_relu_(out, SLOPE) if self.active else out


def low_pass() -> Tensor:
    """The 4,4 filter that all resampling uses; sums to one."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / taps.sum() ** 2


def smooth(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    """Filter every channel by the same 4,4 taps: N,C,H,W -> N,C,H + 2 padding - 3,W + 2 padding - 3."""
    channels = x.shape[1]
    return F.conv2d(x, taps.expand(channels, 1, -1, -1), padding=padding, groups=channels)


def enlarge(x: Tensor, taps: Tensor) -> Tensor:
    """Twice the size through the low-pass filter: N,C,H,W -> N,C,2H,2W."""
    channels = x.shape[1]
    # The factor restores the brightness, because three quarters of the pixels are zeros.
    kernel = (4 * taps).expand(channels, 1, -1, -1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)


def convolve_up(x: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
    """A 3x3 convolution (weight O,I,3,3) of the picture at twice the size: N,I,H,W -> N,O,2H,2W."""
    wide = F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=2)
    return smooth(wide, 4 * taps, padding=1)


class Conv(nn.Module):
    """An equalised convolution with a leaky ReLU, optionally to half or twice the size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, up: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", low_pass())
        self.up, self.down = up, down
        self.gain = GAIN / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * self.gain, self.bias * GAIN
        if self.up:
            out = convolve_up(x, weight, self.resample_filter) + bias.to(x.dtype)[:, None, None]
        elif self.down:
            out = F.conv2d(smooth(x, self.resample_filter, padding=2), weight, bias, stride=2)
        else:
            out = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        return F.leaky_relu_(out, SLOPE)


class PartialConv(nn.Module):
    """A 3x3 convolution over known pixels only: its result is divided by the share of known pixels.

    Without any known pixel the result is zero, and the position stays unknown.
    """

    def __init__(self, inputs: int, outputs: int, *, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, up=up, down=down)
        self.stride = 2 if down else 1

    def forward(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out: Tensor = self.conv(x)
        if known is None:
            return out, None
        with torch.no_grad():
            seen = F.avg_pool2d(known, 3, self.stride, padding=1, divisor_override=1)
            known = seen.clamp(max=1)
            weight = known * 9 / seen.clamp(min=1)
        return out * weight.to(out.dtype), known


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style (N,C,H,W and N,style).

    The published file gives `weight` a leading axis of one; the loader drops it.

    Args:
        inputs, outputs, kernel: of the convolution.
        style: features of the style.
        up: to twice the size.
        demodulate: scale the output back to unit variance.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style: int, *, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = Linear(style, inputs)
        nn.init.ones_(self.affine.bias)
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", low_pass())
        self.up, self.demodulate = up, demodulate
        self.gain = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor | None]:
        """The convolution N,O,H,W, and the factor N,O,1,1 float32 that is to scale it (None: no factor)."""
        # In float32 even under autocast, because the factor is the inverse root of a long sum of squares.
        scale = self.affine(style).float() * self.gain
        factor = None
        if self.demodulate:
            energy = self.weight.square().sum(dim=(2, 3))
            factor = ((energy * scale.square()[:, None]).sum(dim=2) + 1e-8).rsqrt()[:, :, None, None]
        x = x * scale.to(x.dtype)[:, :, None, None]
        if self.up:
            return convolve_up(x, self.weight, self.resample_filter), factor
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2), factor


class StyleConv(nn.Module):
    """A modulated 3x3 convolution, noise (where the network was trained with it), a leaky ReLU.

    Args:
        inputs, outputs, style, up: of the modulated convolution.
        noise: side of the stored plane of noise; None for none.
    """

    def __init__(
        self, inputs: int, outputs: int, style: int, *, up: bool = False, noise: int | None = None
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_const: Tensor | None
        self.register_buffer("noise_const", None if noise is None else torch.randn(noise, noise))
        self.noise_strength = None if noise is None else nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x, factor = self.conv(x, style)
        assert factor is not None
        bias = self.bias[:, None, None]
        if self.noise_const is not None and self.noise_strength is not None:
            # White noise may be tiled: pictures larger than the trained size get the same draw each time.
            tiles = x.shape[2] // self.noise_const.shape[0], x.shape[3] // self.noise_const.shape[1]
            bias = bias + self.noise_const.repeat(tiles) * self.noise_strength
        out = torch.addcmul((GAIN * bias).to(x.dtype), x, (GAIN * factor).to(x.dtype))
        return F.leaky_relu_(out, SLOPE)


class ToRGB(nn.Module):
    """Features N,C,H,W and a picture N,3,H/2,W/2 so far (or None) -> the picture N,3,H,W."""

    def __init__(self, inputs: int, style: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", low_pass())

    def forward(self, x: Tensor, style: Tensor, picture: Tensor | None) -> Tensor:
        out: Tensor = self.conv(x, style)[0] + self.bias[:, None, None]
        return out if picture is None else out + enlarge(picture, self.resample_filter)


def to_windows(x: Tensor, side: int) -> Tensor:
    """Split into square windows: N,H,W,C -> N * windows,side * side,C. H and W are multiples of the side."""
    n, h, w, c = x.shape
    tiles = x.reshape(n, h // side, side, w // side, side, c).transpose(2, 3)
    return tiles.reshape(-1, side * side, c)


def from_windows(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: N * windows,side * side,C -> N,height,width,C."""
    tiles = x.reshape(-1, height // side, width // side, side, side, x.shape[-1]).transpose(2, 3)
    return tiles.reshape(-1, height, width, x.shape[-1])


def seams(height: int, width: int, side: int, shift: int) -> Tensor:
    """Marks the tokens of a shifted window that were not neighbours before the shift wrapped them around.

    Returns:
        windows,side * side,side * side: 0 for neighbours, `BLOCKED` for pairs that lie across the seam.
    """
    rows, columns = (
        (torch.arange(length) >= length - side).int() + (torch.arange(length) >= length - shift).int()
        for length in (height, width)
    )
    part = to_windows((3 * rows[:, None] + columns)[None, :, :, None], side)
    return (part != part.transpose(1, 2)).float() * BLOCKED


class Attention(nn.Module):
    """Multi-head attention inside windows, with normalised tokens for queries and keys.

    Args of the forward: tokens M,L,C; bias M,1,1 or L,L, added to the logits of every head.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(channels, channels)
        self.k = Linear(channels, channels)
        self.v = Linear(channels, channels)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        unit = F.normalize(x, dim=-1)
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, unit), (self.k, unit), (self.v, x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Attention in (shifted) windows among known tokens, fused with its input; no layer norm.

    Afterwards all tokens of a window that held a known one are known.

    Args:
        channels, heads: of the attention.
        grid: side of the token grid at the trained size.
        side: of a window.
        shift: by which the windows are displaced; 0 for none.
    """

    def __init__(self, channels: int, heads: int, grid: int, side: int, shift: int) -> None:
        super().__init__()
        self.side, self.shift = side, shift
        self.attn = Attention(channels, heads)
        self.fuse = Linear(2 * channels, channels, active=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", Linear(channels, 2 * channels, active=True))
        self.mlp.add_module("fc2", Linear(2 * channels, channels))
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", seams(grid, grid, side, shift) if shift else None)

    def forward(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """N,H,W,C and N,H,W,1 (or None: all known) -> the same shapes."""
        windows = to_windows(self._roll(x, -self.shift), self.side)
        bias = self._seams(x)
        if bias is not None:
            bias = bias.repeat(len(x), 1, 1)[:, None]
        if known is not None:
            seen = to_windows(self._roll(known, -self.shift), self.side)
            blocked = ((1 - seen) * BLOCKED)[:, None].transpose(2, 3)
            bias = blocked if bias is None else bias + blocked
            seen = seen.amax(dim=1, keepdim=True).expand_as(seen)
            known = self._roll(from_windows(seen, self.side, *x.shape[1:3]), self.shift)
        mixed = from_windows(self.attn(windows, bias), self.side, *x.shape[1:3])
        mixed = self._roll(mixed, self.shift)
        return self.mlp(self.fuse(torch.cat([x, mixed], dim=-1))), known

    def _roll(self, x: Tensor, by: int) -> Tensor:
        return x.roll((by, by), dims=(1, 2)) if by else x

    def _seams(self, x: Tensor) -> Tensor | None:
        if self.attn_mask is None:
            return None
        height, width = x.shape[1:3]
        if height * width == self.attn_mask.shape[0] * self.side**2:
            return self.attn_mask
        return seams(height, width, self.side, self.shift).to(self.attn_mask)
