"""MAT, the Mask-Aware Transformer (Li et al., CVPR 2022, arXiv 2203.15270), run as IOPaint runs it.

**Licence.** The code here is Backfire's own, written from the paper and from facts about the published
network (names, shapes, constants), under Backfire's licence. The published *weights* are CC BY-NC 4.0: for
non-commercial use only. Backfire does not ship them; whoever asks `models fetch` for them, or names such a
file in the configuration, opts in and answers for keeping to its terms.

**Weights.** A plain state dict, as `.pth` or safetensors: `Places_512_FullData_G.pth`, as distributed for
IOPaint, or one taken from the authors' snapshots (Places, CelebA-HQ, FFHQ; 512 and 256 pixels). Snapshots
themselves are pickles, which run code when opened, and are refused with the command that converts them.

**As an attacker runs it.** The picture is mirrored out to a square multiple of 512, and the latent is
IOPaint's fixed one. The network also drops half of its smallest features at random, at every edit; here a
generator draws which, or a constant seed where none is given. All members of a batch share one draw.

**Cost.** A pass costs the padded square, so a crop of 520 pixels costs one of 1024. Where gradients are
needed, each block keeps its inputs only and is computed twice.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from backfire.errors import Code, ModelError
from backfire.inpaint.base import ModelEditor
from backfire.inpaint.mat.network import Config, MatNet

__all__ = ["Config", "MatEditor", "MatNet"]

CONVERSION = (
    "convert it once, if you trust its source (opening a pickle runs its code): in a checkout of "
    'github.com/fenglinglwb/MAT, python -c "import legacy, torch; '
    "torch.save(legacy.load_network_pkl(open('IN.pkl', 'rb'))['G_ema'].state_dict(), 'OUT.pth')\""
)

SEED = 240
"""The seed of the fixed latent, as in IOPaint and in the authors' script, and of draws without a
generator."""


class MatEditor(ModelEditor):
    """MAT as an editor; see the package docstring.

    Args:
        name: in the configuration and the receipt.
        weights_sha256: digest of the weights file.
        net: the network.
    """

    square = True

    def __init__(self, name: str, weights_sha256: str, net: MatNet) -> None:
        super().__init__(weights_sha256, net)
        self.name = name
        self.multiple = net.config.resolution
        self.net = net
        # numpy's legacy generator, because the latent must be the one that IOPaint draws.
        latent = np.random.RandomState(SEED).standard_normal((1, net.config.latent))
        self.latent = torch.from_numpy(latent).float()

    @classmethod
    def load(cls, name: str, path: Path, config: Config | None = None) -> Self:
        """Load a state dict from a .pth or .safetensors file; nothing in it is executed.

        Args:
            name: of the editor.
            path: of the file.
            config: sizes of the network; None: the published ones, resolution and noise told by the file.

        Raises:
            ModelError: the file is missing, damaged, a pickle, or of another network.
        """
        try:
            data = path.read_bytes()
            state = _state(data, path)
            net = _build(state, config)
        except OSError as error:
            raise _refusal(name, path, f"cannot be read ({error.strerror}); correct the path") from error
        except _Foreign as error:
            raise _refusal(name, path, str(error)) from error
        return cls(name, hashlib.sha256(data).hexdigest(), net)

    def _fill(self, image: Tensor, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            generator = torch.Generator().manual_seed(SEED)
        draw = self.net.draw(self.latent.to(image.device), image.shape[-1], generator)
        known = (mask <= 0.5).to(image.dtype)
        filled: Tensor = self.net(image * 2 - 1, known, draw)
        return (filled + 1) / 2


class _Foreign(Exception):
    """The file holds something else; says what, what was expected, and the remedy."""


def _refusal(name: str, path: Path, reason: str) -> ModelError:
    return ModelError(Code.MODEL, f"editor {name}: weights {path}: {reason}", retryable=False)


def _state(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    if path.suffix == ".pkl":
        raise _Foreign(f"got a pickled snapshot, expected a state dict; {CONVERSION}")
    if path.suffix == ".safetensors":
        try:
            content: object = load_safetensors(data)
        except SafetensorError as error:
            raise _Foreign(f"no whole safetensors file ({error}); get it again") from error
    else:
        content = _unzip(data)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _Foreign(f"got {type(content).__name__} of other things than tensors, expected a state dict")
    # Modulated weights are stored with a leading axis of one, for a batch of kernels that we do not make.
    return {str(key): value.squeeze(0) if value.ndim == 5 else value for key, value in content.items()}


def _unzip(data: bytes) -> object:
    """What torch.save wrote, if it holds tensors only."""
    try:
        with warnings.catch_warnings():
            # The warnings of torch about a file that it refuses are repeated in the error.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _Foreign(f"holds more than tensors, or is damaged; get it again, or {CONVERSION}") from error
    except Exception as error:  # torch raises anything for damaged bytes
        reason = str(error).partition("\n")[0]
        raise _Foreign(f"no whole file of torch.save ({reason}); get it again") from error


def _build(state: dict[str, Tensor], config: Config | None) -> MatNet:
    """The network that these tensors are the weights of."""
    if config is None:
        blocks = (re.match(r"synthesis\.enc\.EncConv_Block_(\d+)x", key) for key in state)
        resolution = max((int(block[1]) for block in blocks if block), default=512)
        if resolution not in (256, 512):
            raise _Foreign(f"got a network for {resolution} pixels, expected one for 256 or 512")
        config = Config(resolution=resolution, noise=any(key.endswith(".noise_const") for key in state))
    net = MatNet(config)
    expected = {key: value.shape for key, value in net.state_dict().items()}
    got = {key: value.shape for key, value in state.items()}
    differing = sorted(set(expected.items()) ^ set(got.items()))
    if differing:
        key = differing[0][0]
        told, wanted = (
            "nothing" if key not in shapes else str(tuple(shapes[key])) for shapes in (got, expected)
        )
        raise _Foreign(
            f"not MAT's generator: {len({name for name, _ in differing})} names or shapes differ, the first "
            f"at {key}: got {told}, expected {wanted}; name a state dict of its generator (G or G_ema)"
        )
    # Only now: a few bytes can claim to be a tensor of any size.
    net.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    return net
