"""Methods: each optimises a perturbation for regions against surrogates.

A method proposes; the caller disposes: `Task.project` is applied again by the caller after the
method returns, so no method can exceed the budget or leave the area (DESIGN invariant 3).
To add one: a file with a class that has the `Method` protocol, one line in `_LOADERS`.
Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon.errors import require

if TYPE_CHECKING:
    from daemon.methods.base import Method


def _implant() -> Method:
    from daemon.methods.implant import Implant

    return Implant()


def _recipe() -> Method:
    from daemon.methods.recipe import Recipe

    return Recipe()


_LOADERS: dict[str, Callable[[], Method]] = {"implant": _implant, "recipe": _recipe}
NAMES = tuple(_LOADERS)


def get(name: str) -> Method:
    """The method of that name; raises ConfigError naming the nearest valid one."""
    require(name, NAMES, "method")
    return _LOADERS[name]()
