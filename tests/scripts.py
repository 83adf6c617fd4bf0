"""A tiny inpainting network written as TorchScript or as an exported program."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Picture and mask in, picture out; any size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        deep = torch.relu(self.enter(torch.cat([image, mask], dim=1)))
        return torch.sigmoid(self.leave(deep))


def save(path: Path, *, exported: bool = False, module: nn.Module | None = None) -> tuple[Path, str]:
    """Write it; returns the path and the file's SHA-256."""
    torch.manual_seed(0)
    module = (module or Tiny()).eval()
    if exported:
        any_size = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        example = torch.rand(2, 3, 16, 24), torch.zeros(2, 1, 16, 24)
        program = torch.export.export(module, example, dynamic_shapes=(any_size, any_size))
        path = path.with_suffix(".pt2")
        torch.export.save(program, path)
    else:
        path = path.with_suffix(".pt")
        with warnings.catch_warnings():  # deprecated, and still what people have
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            script = torch.jit.script(module)
            torch.jit.save(script, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
