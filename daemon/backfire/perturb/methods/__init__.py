"""Methods: each optimises a perturbation for regions against surrogates.

A method proposes; the caller disposes: `Task.project` is applied again by the caller after the
method returns, so no method can exceed the budget or leave the area (DESIGN invariant 3).
To add one: a file with a class that has the `Method` protocol, or that derives from `Descent` and
says what it looks at of an edit, and one line in `_METHODS`; the contract tests find it there.
Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from backfire import inpaint
from backfire.config import Settings
from backfire.errors import ConfigError, require

if TYPE_CHECKING:
    from backfire.inpaint.base import Editor
    from backfire.perturb.methods.base import Method


class _Known(NamedTuple):
    """Where a method lies, and the door that it needs its surrogates to have."""

    module: str
    loads: str
    door: str = "inpaint"


_METHODS = {
    "implant": _Known("implant", "Implant"),
    "encoder": _Known("encoder", "Encoder", "encode"),
    "first-step": _Known("first_step", "FirstStep", "first_step"),
    "baseline": _Known("baseline", "Baseline"),
}
NAMES = tuple(_METHODS)
_WHAT = {"encode": "encodes the masked picture", "first_step": "paints by denoising"}


def get(name: str, surrogates: Sequence[Editor] = ()) -> Method:
    """The method of that name, for those surrogates.

    Raises:
        ConfigError: no method of that name (the nearest valid one is named), or a surrogate that
            it cannot use.
    """
    require(name, NAMES, "method")
    known = _METHODS[name]
    for surrogate in surrogates:
        _require_door(name, surrogate.name, open_=hasattr(surrogate, known.door))
    method: Method = getattr(import_module(f"backfire.perturb.methods.{known.module}"), known.loads)()
    return method


def require_fit(settings: Settings) -> None:
    """Check what the configuration says of methods, without loading one or reading weights.

    Raises:
        ConfigError: an unknown method, or one that cannot use a surrogate.
    """
    name = settings.protect.method
    require(name, NAMES, "protect.method")
    for surrogate in settings.protect.surrogates:
        _require_door(name, surrogate, open_=_METHODS[name].door in inpaint.doors(surrogate, settings))


def _require_door(method: str, surrogate: str, *, open_: bool) -> None:
    if open_:
        return
    door = _METHODS[method].door
    kinds = ", ".join(kind for kind, known in inpaint.KINDS.items() if door in known.doors)
    raise ConfigError(
        f"protect.method {method}: needs surrogates of which each one {_WHAT[door]}; {surrogate} does not; "
        f"name editors of kind {kinds}, or set protect.method: implant"
    )
