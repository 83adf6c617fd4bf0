"""Autoencoders as editors, for models such as Stable Diffusion 3, FLUX and Qwen-Image.

These models are too large to run here, but each of them encodes the picture with its autoencoder first. An
edit by `EncoderEditor` is therefore decode(encode(picture)) composited under the mask, which shows what such
a model gets to see of the region. If the latents of the region are broken, so is every editor on that latent
space, whatever its prompt. `PairInpainter` is our own one-step inpainting network on a published latent
space.

Two kinds of files are read, as safetensors or by `torch.load(weights_only=True)`:

* a pair of encoder and decoder in the style of TAESD (https://github.com/madebyollin/taesd), whose
  architecture follows from the names and shapes of the tensors; a diffusers `AutoencoderTiny` is one, too;
* a folder of diffusers with `config.json`, such as the `vae` folder of a pipeline: an `AutoencoderTiny`, or
  one of the classes in `autoencoders`, which diffusers loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backfire import weights
from backfire.errors import Code, ModelError
from backfire.files.durable import file_sha256
from backfire.inpaint import autoencoders, pipelines
from backfire.inpaint.base import ModelEditor
from backfire.inpaint.latent import DOWNSCALE, Decoder, Encoder, InpaintNet, LatentEditor
from backfire.inpaint.tensors import read_state

State = dict[str, Tensor]

FRUGAL_PIXELS = 1 << 19
"""The pixels of a batch from which activations are recomputed for the gradient instead of kept. 64 channels
at full size need 0.3 GB per layer and million pixels."""
REMEDY = "list the encoder and the decoder file of a TAESD-style autoencoder, or name a folder of diffusers"


class EncoderEditor(ModelEditor):
    """decode(encode(picture)) under the mask. The pixels under the mask are not hidden from the encoder.

    Args:
        encoder: N,3,H,W in [0,1] -> N,C,H/f,W/f.
        decoder: the inverse; it need not clamp.
        multiple: the factor f.
    """

    blind = False

    def __init__(
        self, name: str, weights_sha256: str, encoder: nn.Module, decoder: nn.Module, multiple: int = 8
    ) -> None:
        super().__init__(weights_sha256, encoder, decoder)
        self.name = name
        self.multiple = multiple
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def load(cls, name: str, path: Path | Sequence[Path]) -> Self:
        """Load an autoencoder.

        Args:
            name: the editor's name in the configuration.
            path: a folder of diffusers, a folder with one `*encoder*` and one `*decoder*` file, or these two
                files.

        Raises:
            ModelError: a file is missing, damaged, or not of a supported autoencoder.
        """
        return cls(name, *_autoencoder(name, [path] if isinstance(path, Path) else path))

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """See `Latent.encode`; these models encode the picture before they mask it."""
        seen, _ = self._ready(image, mask)
        with self._computing(image.device):
            latents = _run(self.encoder, seen)
        return latents.to(image.dtype)

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        decoder = self.decoder
        decode = partial(decoder.under, mask=mask) if isinstance(decoder, Decoder) else decoder
        return _run(decode, _run(self.encoder, image), self.multiple)


NET_FILE = weights.INSIDE / "flux2-mini.safetensors"
"""The file whose `net.*` fills the latents of FLUX.2's tiny autoencoder, and of students of it."""


class PairInpainter(LatentEditor):
    """A `LatentEditor` on a published autoencoder; only the weights of the inpainting network are our own."""

    @classmethod
    def load(cls, name: str, path: Sequence[Path]) -> Self:
        """Load an encoder and a decoder as `EncoderEditor.load` does, and the network, which is the last
        path.

        Without a network, that of `NET_FILE` is taken, which is for the latents of FLUX.2's tiny autoencoder.

        Raises:
            ModelError: a file is missing or damaged, or the network is for another latent space.
        """
        count = 1 if path[0].is_dir() else 2
        pair, net_path = path[:count], path[count] if len(path) > count else NET_FILE
        if len(pair) < count:
            got = "is one file" if pair[0].exists() else "is not there"
            raise _refused(name, pair[0], f"{got}, expected an autoencoder", "list that first, then the net")
        if len(path) > count + 1:
            got = f"has {len(path) - 1} files beside it, expected the net alone"
            raise _refused(name, pair[0], got, "list a folder and the net, or encoder, decoder and the net")
        of_pair, encoder, decoder, multiple = _autoencoder(name, pair)
        state, net_sha256 = read_state(name, net_path)
        net, latent = _net(name, net_path, below(state, "net.") or state)
        with torch.inference_mode():
            have = encoder(torch.zeros(1, 3, 64, 64)).shape[1]
        if (have, multiple) != (latent, DOWNSCALE):
            wrong = f"fills {latent} channels at 1/{DOWNSCALE}, the autoencoder has {have} at 1/{multiple}"
            raise _refused(name, net_path, wrong, "use the autoencoder that it was trained on")
        return cls(name, _joint([of_pair, net_sha256]), encoder, net, decoder)

    @classmethod
    def from_file(cls, name: str, path: Path) -> Self:
        """Load `encoder.*`, `net.*` and `decoder.*` from one safetensors file, as for a built-in editor.

        The network of a file without `net.*` is that of `NET_FILE`.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        state, digest = read_state(name, path)
        encoder, decoder = (_part(name, path, below(state, role))[0] for role in ("encoder.", "decoder."))
        net = below(state, "net.")
        if not net:
            path = NET_FILE
            shared, net_sha256 = read_state(name, path)
            net, digest = below(shared, "net."), _joint([digest, net_sha256])
        return cls(name, digest, encoder, _net(name, path, net)[0], decoder)


def _net(name: str, path: Path, state: State) -> tuple[InpaintNet, int]:
    """An inpainting network, whose widths follow from the shapes, and the number of its latent channels."""
    try:
        latent = state["conv_out.weight"].shape[0]
        net = InpaintNet(latent, (state["conv_in.weight"].shape[0], state["down.weight"].shape[0]))
        net.load_state_dict(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = "make one with: python -m training inpainter --latents"
        raise _refused(name, path, f"is no inpainting net ({reason})", remedy) from error
    return net, latent


def _run(module: Callable[[Tensor], Tensor], x: Tensor, scale: int = 1) -> Tensor:
    """The module's output. Gradients over many pixels recompute the activations instead of keeping them."""
    pixels = x.shape[0] * x.shape[-2] * x.shape[-1] * scale**2
    frugal = torch.is_grad_enabled() and x.requires_grad and pixels >= FRUGAL_PIXELS
    out: Tensor = checkpoint(module, x, use_reentrant=False) if frugal else module(x)
    return out


_Parts = tuple[str, nn.Module, nn.Module, int]
"""The digest of the files, the encoder, the decoder, and the width of a latent cell in pixels."""


def _autoencoder(name: str, paths: Sequence[Path]) -> _Parts:
    """Load an autoencoder from a folder of diffusers, a folder with a pair of files, or a pair of files."""
    if len(paths) == 1 and (paths[0] / "config.json").is_file():
        return _from_diffusers(name, paths[0])
    pair = _two_in(name, paths[0]) if len(paths) == 1 else list(paths)
    parts = [_part(name, path, _plain(read_state(name, path)[0])) for path in pair]
    return _joined(name, pair, parts)


def _joined(name: str, files: Sequence[Path], parts: Sequence[tuple[nn.Module, int, int]]) -> _Parts:
    """Check that the parts, in any order, are an encoder and a decoder of the same latent space, and join
    them.
    """
    found = {type(module): (module, space) for module, *space in parts}
    spaces = [space for _, space in found.values()]
    if set(found) != {Encoder, Decoder} or spaces[0] != spaces[1]:
        names = " and ".join(path.name for path in files)
        raise _refused(
            name, files[0].parent, f"{names} are no encoder and decoder of one latent space", REMEDY
        )
    return digest(files), found[Encoder][0], found[Decoder][0], 2 ** spaces[0][1]


def _two_in(name: str, folder: Path) -> list[Path]:
    found = [sorted(folder.glob(f"*{role}*")) for role in ("encoder", "decoder")]
    if [len(files) for files in found] != [1, 1]:
        here = (
            ", ".join(path.name for path in sorted(folder.glob("*"))) or "nothing"
            if folder.is_dir()
            else "no folder"
        )
        raise _refused(name, folder, f"got {here}, expected one *encoder* and one *decoder* file", REMEDY)
    return [files[0] for files in found]


def _plain(state: State) -> State:
    """TAESD's names as ours. `0.weight` becomes `layers.0.weight`, and the clamp of its decoder is not
    counted.
    """
    if not all(key[:1].isdigit() for key in state):
        return state
    first = min(int(key.partition(".")[0]) for key in state)
    return {
        f"layers.{int(i) - first}.{rest}": v
        for (i, _, rest), v in ((k.partition("."), v) for k, v in state.items())
    }


def _part(name: str, path: Path, state: State) -> tuple[nn.Module, int, int]:
    """An encoder or decoder, its latent channels and its number of halvings, from names and shapes."""
    try:
        indices = {int(key.split(".")[1]) for key in state}
        plain = sorted(i for i in indices if f"layers.{i}.weight" in state)
        # Each plain convolution except the first and the last lies between two sizes.
        blocks = [sum(a < i < b for i in indices) for a, b in pairwise(plain)]
        pooled = any(".pool." in key for key in state)
        channels, inward = state["layers.0.weight"].shape[:2]
        module: nn.Module
        if inward == 3:
            latent = state[f"layers.{plain[-1]}.weight"].shape[0]
            module = Encoder(channels, blocks, latent, pooled=pooled)
        else:
            latent = inward
            module = Decoder(channels, blocks, latent, pooled=pooled)
        module.load_state_dict(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise _refused(name, path, f"is no part of a TAESD-style autoencoder ({reason})", REMEDY) from error
    return module, latent, len(blocks) - 1


def _from_diffusers(name: str, folder: Path) -> _Parts:
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    try:
        config: dict[str, Any] = json.loads(files[0].read_bytes())
        kind = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(name, files[0], f"cannot be read ({error!r})", REMEDY) from error
    if len(files) != 2:
        wrong = f"got {len(files) - 1} safetensors files beside config.json, expected one"
        raise _refused(name, folder, wrong, "keep one precision; a .bin is not read")
    if kind == "AutoencoderTiny":
        state, _ = read_state(name, files[1])
        parts = [_part(name, files[1], below(state, role)) for role in ("encoder.", "decoder.")]
        return _joined(name, files, parts)
    if kind not in autoencoders.SPACES:
        expected = ", ".join(autoencoders.SPACES)
        raise _refused(name, folder, f"is a {kind}, expected one of {expected}", REMEDY)
    vae = _loaded(name, folder, kind)
    return digest(files), _VaeEncoder(vae), _VaeDecoder(vae), autoencoders.SPACES[kind].factor(vae)


def below(state: State, prefix: str) -> State:
    """The tensors whose names begin with the prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _loaded(name: str, folder: Path, kind: str) -> Any:
    try:
        return pipelines.load_model(name, pipelines.class_named("diffusers", kind), folder)
    except ImportError as error:
        remedy = "pip install 'backfire[diffusion]'"
        raise _refused(name, folder, "needs diffusers, which is not installed", remedy) from error
    except ModelError:
        raise
    except Exception as error:  # diffusers raises anything for a damaged folder
        reason = str(error).strip().partition("\n")[0]
        raise _refused(name, folder, f"cannot be loaded by diffusers ({reason})", REMEDY) from error


class _VaeEncoder(nn.Module):
    """The mean of the distribution of latents, around which an editor samples, normalised."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        return autoencoders.encoded(self.vae, image)


class _VaeDecoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return autoencoders.decoded(self.vae, latents)


def digest(files: Sequence[Path]) -> str:
    """The SHA-256 of one file, or that of the concatenated SHA-256s of several."""
    return _joint([file_sha256(path) for path in files])


def _joint(digests: Sequence[str]) -> str:
    """One digest as it is, or the SHA-256 of several."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _refused(name: str, path: Path, wrong: str, remedy: str) -> ModelError:
    return ModelError(Code.MODEL, f"editor {name}: {path}: {wrong}; {remedy}", retryable=False)
