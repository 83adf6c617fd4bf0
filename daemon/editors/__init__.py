"""Editors: the inpainting models that are attacked while optimising and replayed to verify.

To add one: a file with a class that has the `Editor` protocol (deriving from `ModelEditor`
saves the padding and compositing), one line in `_LOADERS`; the contract tests find it there.
Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon.errors import require

if TYPE_CHECKING:
    import torch

    from daemon.editors.base import Editor


def _latent_mini() -> Editor:
    from daemon.editors.latent import LatentEditor

    return LatentEditor.embedded()


_LOADERS: dict[str, Callable[[], Editor]] = {"latent-mini": _latent_mini}
NAMES = tuple(_LOADERS)
_loaded: dict[tuple[str, str], Editor] = {}


def get(name: str, device: torch.device | str = "cpu") -> Editor:
    """The editor of that name on a device, loaded once per process.

    Raises:
        ConfigError: no editor of that name; the nearest valid one is named.
        ModelError: its weights are missing or damaged.
    """
    require(name, NAMES, "editor")
    key = name, str(device)
    if key not in _loaded:
        editor = _LOADERS[name]()
        editor.to(device)
        _loaded[key] = editor
    return _loaded[key]
