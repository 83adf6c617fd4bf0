"""A fault double: the first release's daemon, which cannot finish what some pictures' names say.

    python live.py CHECKOUT run|once …

`CHECKOUT` holds the package `daemon` of the first release. A picture named `publishing` cannot be put into
the outbox, one named `published` not into the archive, and one named `set_aside` not into the failed folder,
as when a disk is full. The daemon keeps trying, so that their jobs stay in those states.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def full(function: Callable[..., Any], *names: bytes) -> Callable[..., Any]:
    """The function, which fails where one of its arguments is a picture of one of these names."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        for argument in arguments:
            path = getattr(argument, "path", argument)
            if isinstance(path, bytes) and os.path.splitext(os.path.basename(path))[0] in names:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments, **options)

    return wrapped


def main() -> None:
    """Run a command of the first release."""
    sys.path.insert(0, sys.argv.pop(1))
    outbox: Any = importlib.import_module("daemon.outbox")
    publish: Any = importlib.import_module("daemon.publish")
    outbox.place = full(outbox.place, b"publishing")
    publish.Publisher._put_away = full(publish.Publisher._put_away, b"published", b"set_aside")
    importlib.import_module("daemon.cli").main()


if __name__ == "__main__":  # not in the worker, which starts from this file, too
    main()
