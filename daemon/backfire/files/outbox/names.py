"""The names of the files that are put in place. Paths are bytes relative to a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from backfire.errors import PublishError
from backfire.files import safe_paths
from backfire.types import EXTENSIONS, shown

_daemon = b""
"""What the hidden names of this process have of their own; see `hide_as`."""
NAME_MAX = 255
"""Bytes that most file systems allow in a file name; some allow fewer, such as eCryptfs with 143."""


def names(folder: Path, path: bytes, *, key: str, sha256: str = "") -> list[bytes]:
    """The paths that content may get in `folder`, in the order in which they are tried.

    A step that is repeated finds its file by them. The second has the job's key and the third the content's
    digest, because a job that was worked on two devices may have left two different results.
    """
    path = around(folder, path)
    return [path, *(keyed(folder, path, tag) for tag in (key, sha256) if tag)]


def around(folder: Path, path: bytes) -> bytes:
    """The path with other folders where files have their names: `a/b.png` is `a.d/b.png` if `a` is a file.

    Raises:
        PublishError: it is not a plain relative path, or files have all names of a folder.
    """
    try:
        *parents, last = safe_paths.parts(path)
    except OSError:
        message = f"{shown(path)}: is not a plain relative path; it would leave {folder}"
        raise PublishError(message) from None
    place = os.fsencode(folder)
    if os.path.isdir(os.path.join(place, *parents)):
        return path
    free: list[bytes] = []
    for part in parents:
        name, ending, most = part, b"", name_max(place)
        while os.path.lexists(os.path.join(place, name)) and not os.path.isdir(os.path.join(place, name)):
            ending += b".d"
            if len(ending) >= most:
                message = f"{shown(path)}: files in {folder} have all names of its folders; move them away"
                raise PublishError(message, lasting=True)
            name = _fitted(part, ending, most)
        free.append(name)
        place = os.path.join(place, name)
    return os.path.join(*free, last)


def name_max(folder: bytes | int) -> int:
    """How many bytes a file name may have in a folder, given by its path or descriptor.

    The nearest folder above answers for one that is not made yet. Where the file system says nothing, or more
    than `NAME_MAX` because it counts characters, it is `NAME_MAX`.
    """
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except (FileNotFoundError, NotADirectoryError):
        above = b"" if isinstance(folder, int) else os.path.dirname(folder)
        return name_max(above) if above and above != folder else NAME_MAX
    except OSError:
        return NAME_MAX
    return min(most, NAME_MAX) if most > 0 else NAME_MAX


def keyed(folder: Path | int, path: bytes, key: str) -> bytes:
    """The path with the first eight digits of a key before the extension: `a.1f2e3d4c.jpg`.

    Args:
        folder: where the path begins, or its descriptor; a name too long for its file system is shortened.
    """
    stem, extension = os.path.splitext(path)
    return _fitted(stem, b"." + key[:8].encode() + extension, _room(folder, path))


def beside(folder: Path, path: bytes, suffix: bytes, key: str) -> bytes:
    """The path with a suffix; a name in `folder` that is too long for it is shortened and gets the key."""
    most = _room(folder, path)
    if len(os.path.basename(path)) + len(suffix) <= most:
        return path + suffix
    return _fitted(path, b"." + key[:8].encode() + suffix, most)


def _room(folder: Path | int, path: bytes) -> int:
    """How many bytes the last name of `folder`/`path` may have."""
    if isinstance(folder, int):
        return name_max(folder)
    return name_max(os.path.dirname(os.path.join(os.fsencode(folder), path)))


def _fitted(stem: bytes, ending: bytes, most: int) -> bytes:
    folder, name = os.path.split(stem)
    return os.path.join(folder, name[: most - len(ending)] + ending)


def hidden(target: bytes, key: str) -> bytes:
    """The temporary name, beside the final one, under which a job writes a file."""
    return _temporary(target, hidden_by(key))


def hidden_by(key: str) -> bytes:
    """How all names begin under which a job writes files."""
    return _of_job(key) + _daemon


def leaving_as(target: bytes, key: str) -> bytes:
    """The temporary name under which a file that is to leave its folder is checked."""
    return _temporary(target, _of_job(key))


def _of_job(key: str) -> bytes:
    return f".backfire-{key[:16]}-".encode()


def _temporary(target: bytes, beginning: bytes) -> bytes:
    # A digest and not the name itself, because the longest name has no room for more. These 53 bytes fit
    # into any file system that Linux can write to.
    tag = hashlib.sha256(os.path.basename(target)).hexdigest()[:12]
    return os.path.join(os.path.dirname(target), beginning + f"{tag}.part".encode())


def hide_as(daemon: str) -> None:
    """Give this process hidden names of its own, so that two daemons may write into one folder.

    The same picture has the same key in both, and one would go on writing where the other has finished.

    Args:
        daemon: eight hex digits that stay the same after a restart, which finds by them what a crash left.
    """
    global _daemon
    _daemon = f"{daemon}-".encode()


def renamed(folder: Path, path: bytes, extension: str) -> bytes:
    """The path with the extension of what was written; another extension of the same format stays.

    Args:
        folder: where the path begins; a name too long for its file system is shortened.
        path, extension: the path and, with its dot, the extension of the format.
    """
    stem, own = os.path.splitext(path)
    wanted = extension.lower()
    same = next((several for several in EXTENSIONS.values() if wanted in several), (wanted,))
    if own.lower() in map(os.fsencode, same):
        return path
    return _fitted(stem, os.fsencode(wanted), _room(folder, path))
