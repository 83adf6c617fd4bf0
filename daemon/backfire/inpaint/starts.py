"""The file of stored starts that a declared editor names; what they are says `backfire.perturb.starts`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backfire.errors import Code, ModelError

SIDE = 64
"""The side of a tile in pixels; a multiple of the 8 px of a latent cell, so that a crop's cells and a tile's
fall together."""
MADE_FOR = "weights_sha256"
"""Which metadata of the file hold the digest of the weights that it was made for."""


def read(path: Path, name: str, weights_sha256: str) -> Tensor:
    """The tiles of a file, float32 K,3,h,w in [-1,1] of the budget.

    Args:
        path: the file.
        name: the editor, for messages.
        weights_sha256: the digest of its weights. Tiles of others break less, which nobody would notice.

    Raises:
        ModelError: the file is missing, holds something else, or was made for other weights.
    """
    subject, remedy = f"editor {name}: start {path}", "make it anew with python -m training start"
    try:
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get(MADE_FOR, "no weights that it names")
            tiles = file.get_tensor("tiles").float() if "tiles" in file.keys() else torch.zeros(0)  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _error(f"{subject}: cannot be read ({error}); {remedy}, or take start out") from error
    if tiles.dim() != 4 or tiles.shape[1:] != (3, SIDE, SIDE) or not len(tiles):
        got = f"got tiles of shape {tuple(tiles.shape)}, expected some of 3 x {SIDE} x {SIDE}"
        raise _error(f"{subject}: {got}; {remedy}")
    if made_for != weights_sha256:
        wrong = f"was made for {made_for[:24]}, expected the editor's weights {weights_sha256[:24]}"
        raise _error(f"{subject}: {wrong}; {remedy}")
    return tiles


def write(tiles: Tensor, path: Path, weights_sha256: str) -> None:
    """Write tiles as `read` takes them, in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"tiles": tiles.half().cpu().contiguous()}, path, {MADE_FOR: weights_sha256})


def _error(message: str) -> ModelError:
    return ModelError(Code.MODEL, message, retryable=False)
