"""Methods: each optimises a perturbation for regions against surrogates.

A method only proposes a perturbation: the caller projects it with `Task.project` once more, so that no
method can exceed the budget or leave the area it was given. To add a method: a file with a class that has
the `Method` protocol, or that derives from `IterativeMethod` and says what it looks at of an edit, and one
line in `METHODS`; the contract tests find it there. Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfire import inpaint
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.registry import Entry, Registry

if TYPE_CHECKING:
    from backfire.inpaint.base import Editor
    from backfire.perturb.methods.base import Method


@dataclass(frozen=True)
class Known(Entry):
    """A method, as the registry knows it.

    Attributes:
        needs: the capability that each of its surrogates must have, see `inpaint.capabilities`.
        because: what such a surrogate does, for messages.
    """

    needs: str = "inpaint"
    because: str = ""


METHODS = Registry(
    "protect.method",
    {
        "implant": Known("backfire.perturb.methods.implant:Implant"),
        "encoder": Known("backfire.perturb.methods.encoder:Encoder", "encode", "encodes the masked picture"),
        "first-step": Known(
            "backfire.perturb.methods.first_step:FirstStep", "first_step", "paints by denoising"
        ),
        "attention": Known(
            "backfire.perturb.methods.attention:Attention", "attention_entropy", "denoises by a transformer"
        ),
        "baseline": Known("backfire.perturb.methods.baseline:Baseline"),
    },
)
NAMES = tuple(METHODS)
"""What `protect.method` may be."""


def get(name: str, surrogates: Sequence[Editor] = ()) -> Method:
    """The method of that name, for those surrogates.

    Raises:
        ConfigError: there is no method of that name (the nearest one is named), or it cannot use a surrogate.
    """
    known = METHODS.require(name, "method")
    for surrogate in surrogates:
        _require_fit(name, surrogate.name, fits=hasattr(surrogate, known.needs))
    method: Method = known.resolve()()
    return method


def with_surrogates(settings: Settings) -> Settings:
    """The settings with the names that `protect.surrogates: auto` stands for here, now; others as they are.

    Raises:
        ConfigError: there is no method of that name, or it can use none of the editors that are there.
    """
    if settings.protect.surrogates != "auto":
        return settings
    method = settings.protect.method
    needs = METHODS.require(method).needs
    present = inpaint.present(settings)
    names = tuple(name for name in present if needs in inpaint.capabilities(name, settings))
    if not names:
        _require_fit(method, ", ".join(present) or "no editor that is not held out", fits=False)
    protect = settings.protect.model_copy(update={"surrogates": names})
    return settings.model_copy(update={"protect": protect})


def require_fit(settings: Settings) -> None:
    """Check what the configuration says of methods, without loading one or reading weights.

    Raises:
        ConfigError: there is no method of that name, or it cannot use a surrogate.
    """
    name = settings.protect.method
    known = METHODS.require(name)
    for surrogate in with_surrogates(settings).protect.surrogates:
        _require_fit(name, surrogate, fits=known.needs in inpaint.capabilities(surrogate, settings))


def _require_fit(method: str, surrogate: str, *, fits: bool) -> None:
    if fits:
        return
    known = METHODS[method]
    kinds = ", ".join(name for name, kind in inpaint.KINDS.items() if known.needs in kind.capabilities)
    raise ConfigError(
        f"protect.method {method}: needs surrogates of which each one {known.because}; {surrogate} does not; "
        f"name editors of kind {kinds}, or set protect.method: implant"
    )
