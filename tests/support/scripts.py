"""Tiny networks saved as TorchScript or as exported programs."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """An editor of any size: takes a picture and a mask, returns a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        deep = torch.relu(self.enter(torch.cat([image, mask], dim=1)))
        return torch.sigmoid(self.leave(deep))


class Boxes(nn.Module):
    """A detector that takes 1,3,64,64 and always returns the same rows of boxes."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__()
        self.rows: Tensor
        self.register_buffer("rows", torch.from_numpy(rows))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows + 0 * image.reshape(3, 64, 64).sum(), image


def save(
    path: Path,
    *,
    exported: bool = False,
    module: nn.Module | None = None,
    example: tuple[Tensor, ...] | None = None,
) -> tuple[Path, str]:
    """Write a network to a file; returns the path and the file's SHA-256.

    Args:
        exported: write an exported program instead of TorchScript.
        module: the network; `Tiny` if not given.
        example: inputs to export with; the program then accepts their sizes only.
    """
    torch.manual_seed(0)
    module = (module or Tiny()).eval()
    if exported:
        any_size = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        sizes = None if example else (any_size, any_size)
        example = example or (torch.rand(2, 3, 16, 24), torch.zeros(2, 1, 16, 24))
        program = torch.export.export(module, example, dynamic_shapes=sizes)
        path = path.with_suffix(".pt2")
        torch.export.save(program, path)
    else:
        path = path.with_suffix(".pt")
        with warnings.catch_warnings():  # TorchScript is deprecated, but users still have such files
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            script = torch.jit.script(module)
            torch.jit.save(script, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
