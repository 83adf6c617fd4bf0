"""Faults of the operating system, for code that runs in the test process: calls of `os` that fail or die.

Each of these replaces functions of the module `os` until its `with` statement ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backfire.files import safe_paths

When = Callable[..., bool]
"""Tells by the positional arguments of a call whether a fault meets it."""


class Died(BaseException):
    """The process has ended, as SIGKILL ends it: no handler of exceptions takes this for an error."""


@contextmanager
def calling(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Have `function` called in place of `os.<name>`, with the real function before the arguments."""
    real = getattr(os, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, lambda *given, **more: function(real, *given, **more))
        yield


@contextmanager
def failing(*names: str, number: int, when: When = lambda *_: True) -> Iterator[None]:
    """Have calls of `os` fail with an error number; it is an error of the test if none of them is made."""
    failed = 0

    def call(real: Callable[..., Any], *given: Any, **more: Any) -> Any:
        nonlocal failed
        if when(*given):
            failed += 1
            raise OSError(number, os.strerror(number))
        return real(*given, **more)

    with _each(names, call):
        yield
    assert failed, f"nothing has met the fault of {names}"


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Have the file system of a folder be full: below it nothing can be named, written or synced."""
    with failing("link", "rename", "mkdir", "fsync", "write", number=errno.ENOSPC, when=below(folder)):
        yield


@contextmanager
def without_links() -> Iterator[None]:
    """Have the file system know neither hard links nor renames that refuse to replace a file."""

    def refused(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with pytest.MonkeyPatch.context() as patch, failing("link", number=errno.EPERM):
        patch.setattr(safe_paths, "rename_noreplace", refused)  # renameat2, which is not in `os`
        yield


@contextmanager
def short_names(most: int) -> Iterator[None]:
    """Have the file system take names of at most so many bytes, as eCryptfs takes 143."""

    def too_long(real: Callable[..., Any], *given: Any, **more: Any) -> Any:
        if any(len(os.path.basename(_path(one))) > most for one in given):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return real(*given, **more)

    with (
        calling("pathconf", lambda real, place, what: real(place, what) and most),
        _each(("open", "link", "rename", "replace", "mkdir"), too_long),
    ):
        yield


@contextmanager
def dying(*names: str, after: int) -> Iterator[None]:
    """Have the process die in place of one of these calls, once so many of them were made.

    A dead process makes none of these calls any more, for example to clean up.
    """
    left = after

    def call(real: Callable[..., Any], *given: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Died
        return real(*given, **more)

    with _each(names, call):
        yield


def below(folder: Path) -> When:
    """Whether one of a call's arguments, paths or the descriptor of a file, leads below a folder."""
    top = os.fsencode(folder) + b"/"
    return lambda *given: any(_path(one).startswith(top) for one in given)


def named(*endings: str) -> When:
    """Whether one of a call's arguments, paths or the descriptor of a file, ends in one of these."""
    return lambda *given: any(_path(one).endswith(tuple(map(os.fsencode, endings))) for one in given)


def _path(argument: object) -> bytes:
    """The path that an argument is, or that a descriptor has; empty for any other argument."""
    if isinstance(argument, str | bytes | os.PathLike):
        return os.fsencode(argument)
    try:
        return os.readlink(f"/proc/self/fd/{argument}".encode())
    except OSError:
        return b""


@contextmanager
def _each(names: tuple[str, ...], call: Callable[..., Any]) -> Iterator[None]:
    if not names:
        yield
        return
    with calling(names[0], call), _each(names[1:], call):
        yield
