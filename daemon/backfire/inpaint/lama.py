"""LaMa: inpainting in pixel space by a ResNet whose convolutions also use the spectrum of the whole picture.

Written after "Resolution-robust Large Mask Inpainting with Fourier Convolutions" (Suvorov et
al., WACV 2022, arXiv 2109.07161) and "Fast Fourier Convolution" (Chi et al., NeurIPS 2020).

The masked picture and the mask pass through a stem, downsamplings, residual blocks, upsamplings and a
sigmoid. Deep layers have two groups of channels: a local one with 3x3 convolutions, and a global one that is
also mixed frequency by frequency, so that one layer sees the whole picture.

Parameters are named and numbered as in the published checkpoints (`model.5.conv1.ffc.convl2g.weight`),
so one state dict fits both; big-LaMa and lama-mini are one class with two configurations.

The Fourier transforms run in float32 even under autocast, because half precision on a GPU supports only
powers of two. Sides that are powers of two (256, 512, 1024) are the fastest on a GPU in any precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backfire.errors import Code, ModelError
from backfire.inpaint.base import ModelEditor
from backfire.inpaint.tensors import read_state

Pair = tuple[Tensor, Tensor | None]
"""The local and the global channels, N,C,H,W each; there are no global ones before the last downsampling."""

STEM = "model.1.ffc.convl2l.weight"


@dataclass(frozen=True)
class Config:
    """The numbers of a LaMa generator.

    Attributes:
        base: channels after the stem; each downsampling doubles them.
        downsamplings: halvings of the sides.
        blocks: residual blocks at the smallest size.
        ratio: share of the deepest channels that is global, in (0, 1).
    """

    base: int = 64
    downsamplings: int = 3
    blocks: int = 18
    ratio: float = 0.75

    def channels(self, level: int) -> int:
        return self.base << level

    @property
    def deep(self) -> tuple[int, int]:
        """Local and global channels of the blocks."""
        total = self.channels(self.downsamplings)
        glob = round(total * self.ratio)
        return total - glob, glob

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Config:
        """The configuration that follows from the names and shapes of a state dict.

        Raises:
            KeyError: names of the architecture are missing.
        """
        layers = {int(key.split(".")[1]) for key in state if ".ffc." in key and ".conv" in key}
        blocks = {int(key.split(".")[1]) for key in state if key.endswith(".conv1.ffc.convl2l.weight")}
        last = f"model.{max(layers - blocks)}.ffc"
        local, glob = (state[f"{last}.conv{to}.weight"].shape[0] for to in ("l2l", "l2g"))
        return cls(
            base=state[STEM].shape[0],
            downsamplings=len(layers - blocks) - 1,
            blocks=len(blocks),
            ratio=glob / (local + glob),
        )


BIG = Config()
"""big-LaMa, 51 M parameters."""
MINI = Config(base=24, blocks=9)
"""lama-mini, 3.8 M parameters: what two CPU cores can train."""


class FourierUnit(nn.Module):
    """Mixes the channels of every frequency; real N,C,H,W in and out, any H and W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_layer = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.view_as_real(torch.fft.rfft2(x.float(), norm="ortho"))
        # Each channel's real and imaginary part become neighbouring channels.
        parts = spectrum.movedim(-1, 2).flatten(1, 2)
        parts = F.relu(self.bn(self.conv_layer(parts)), inplace=True)
        n, c, h, w = parts.shape
        mixed = torch.view_as_complex(parts.float().reshape(n, c // 2, 2, h, w).movedim(2, -1).contiguous())
        out: Tensor = torch.fft.irfft2(mixed, s=x.shape[-2:], norm="ortho")
        return out.to(x.dtype)


class SpectralTransform(nn.Module):
    """The path of the global channels: halves their number, adds their mixed spectrum, and doubles it
    again.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)
        )
        self.fu = FourierUnit(half)
        self.conv2 = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out: Tensor = self.conv2(x + self.fu(x))
        return out


class FourierConv(nn.Module):
    """The four paths between local and global channels, without those whose channel count is zero."""

    def __init__(self, into: tuple[int, int], out: tuple[int, int], kernel: int, stride: int) -> None:
        super().__init__()
        self.padding = (kernel // 2,) * 4

        def conv(channels_in: int, channels_out: int) -> nn.Module:
            return nn.Conv2d(channels_in, channels_out, kernel, stride, bias=False)

        self.convl2l = conv(into[0], out[0])
        self.convl2g = conv(into[0], out[1]) if out[1] else None
        self.convg2l = conv(into[1], out[0]) if into[1] else None
        self.convg2g = SpectralTransform(out[1]) if into[1] and out[1] else None

    def forward(self, pair: Pair) -> Pair:
        local, glob = pair
        near = F.pad(local, self.padding, mode="reflect")  # padded once for both convolutions
        out_local = self.convl2l(near)
        out_glob = self.convl2g(near) if self.convl2g is not None else None
        if glob is not None and self.convg2l is not None:
            out_local = out_local + self.convg2l(F.pad(glob, self.padding, mode="reflect"))
        if glob is not None and self.convg2g is not None:
            out_glob = out_glob + self.convg2g(glob)
        return out_local, out_glob


class Layer(nn.Module):
    """Fourier convolution, batch norm, ReLU."""

    def __init__(
        self, into: tuple[int, int], out: tuple[int, int], *, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.ffc = FourierConv(into, out, kernel, stride)
        self.bn_l = nn.BatchNorm2d(out[0])
        self.bn_g = nn.BatchNorm2d(out[1]) if out[1] else None

    def forward(self, pair: Pair) -> Pair:
        local, glob = self.ffc(pair)
        local = F.relu(self.bn_l(local), inplace=True)
        return local, F.relu(self.bn_g(glob), inplace=True) if self.bn_g is not None else None


class Block(nn.Module):
    """Two layers around a skip connection."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = Layer(channels, channels)
        self.conv2 = Layer(channels, channels)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        local, glob = self.conv2(self.conv1(pair))
        return pair[0] + local, pair[1] + glob


class Split(nn.Module):
    """A plain tensor becomes a pair without global channels."""

    def forward(self, x: Tensor) -> Pair:
        return x, None


class Join(nn.Module):
    """The pair becomes one tensor again, local channels first."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(pair, dim=1)


class Generator(nn.Module):
    """N,4,H,W, masked RGB in [0,1] and mask (1 = repaint) -> N,3,H,W in [0,1].

    H and W are multiples of 2**downsamplings and at least twice that.

    Attributes:
        kept_max: blocks that would keep more bytes than this for the backward pass are recomputed in it,
            which takes a third more time and a fraction of the memory.
    """

    kept_max = 4 * 2**30

    def __init__(self, config: Config = BIG) -> None:
        super().__init__()
        self.config = config
        deepest = config.downsamplings
        layers: list[nn.Module] = [Split(), Layer((4, 0), (config.base, 0), kernel=7)]
        for level in range(deepest):
            out = config.deep if level == deepest - 1 else (config.channels(level + 1), 0)
            layers.append(Layer((config.channels(level), 0), out, stride=2))
        layers += [Block(config.deep) for _ in range(config.blocks)]
        layers.append(Join())
        for level in reversed(range(deepest)):
            wide, narrow = config.channels(level + 1), config.channels(level)
            layers += [
                nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1),
                nn.BatchNorm2d(narrow),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(config.base, 3, 7)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        lean = torch.is_grad_enabled() and self._kept_bytes(x) > self.kept_max
        value: Any = x
        for layer in self.model:
            if lean and isinstance(layer, Block):
                value = checkpoint(layer, value, use_reentrant=False, preserve_rng_state=False)
            else:
                value = layer(value)
        # In float32, because near 1 the steps of bfloat16 are larger than one level of 255.
        return torch.sigmoid(value.float())

    def _kept_bytes(self, x: Tensor) -> int:
        """The bytes that the blocks keep for the backward pass, measured as 8 per pixel, base channel and
        block.
        """
        return 8 * x.shape[0] * x.shape[2] * x.shape[3] * self.config.base * self.config.blocks


class LamaEditor(ModelEditor):
    """LaMa as an editor: pixels under the mask are set to zero, and the mask is the fourth channel."""

    def __init__(self, name: str, weights_sha256: str, net: Generator) -> None:
        super().__init__(weights_sha256, net)
        self.name = name
        self.net = net
        self.multiple = 2**net.config.downsamplings
        # The reflection padding at the smallest size needs two pixels.
        self.smallest = 2 * self.multiple

    @classmethod
    def load(cls, name: str, path: Path) -> Self:
        """Load big-LaMa, lama-mini or any size between; the configuration follows from the shapes.

        Args:
            name: the editor's name in the configuration and the receipt.
            path: the original Lightning checkpoint (`generator.*` in its `state_dict`), the
                TorchScript archive `big-lama.pt` (only its tensors are read, its code never
                runs), or safetensors; any floating type.

        Raises:
            ModelError: the file is missing, damaged or of another architecture; not retryable.
        """
        state, digest = read_state(name, path)
        # A checkpoint may also hold an averaged copy of the generator, and a discriminator.
        prefixes = sorted((key.removesuffix(STEM) for key in state if key.endswith(STEM)), key=len)
        prefix = next((p for p in prefixes if p.endswith("generator.")), prefixes[0] if prefixes else None)
        try:
            if prefix is None:
                raise KeyError(f"no {STEM}")
            own = {
                key.removeprefix(prefix): value.float() if value.is_floating_point() else value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            with torch.device("meta"):  # the file's tensors are assigned, so none are initialised
                net = Generator(Config.of(own))
            net.load_state_dict(own, assign=True)
        except (KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:
            reason = str(error).replace("\n\t", " ")[:300]
            message = (
                f"editor {name}: weights {path} are not LaMa's ({reason}); expected the Fourier generator of "
                "big-LaMa or lama-mini; name its checkpoint, its big-lama.pt or a safetensors file"
            )
            raise ModelError(Code.MODEL, message, retryable=False) from error
        return cls(name, digest, net)

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        out: Tensor = self.net(torch.cat([image, (mask > 0.5).to(image.dtype)], dim=1))
        return out
