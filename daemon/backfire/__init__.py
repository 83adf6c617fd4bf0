"""Backfire: make AI edits of protected regions backfire, in a watch folder, on the command line, from Python.

    import backfire

    result = backfire.protect("me.jpg", mask="me.mask.png")

See `backfire.api` for `protect`, `verify` and `detect`, and `backfire.errors` for what they raise. Importing
this package loads neither of them, nor anything heavy: they come when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backfire.api import Detection, Result, detect, protect, verify

    __version__: str

__all__ = ["Detection", "Result", "__version__", "detect", "protect", "verify"]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # it takes as long as all else here

    try:
        return version("backfire")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in __all__:
        return getattr(import_module("backfire.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
