"""Files that are no pictures, and which of them belong to a picture beside them. Paths are bytes."""

from __future__ import annotations

import os
import re

from backfire.files.inbox.names import folded
from backfire.types import EXTENSIONS

COMPANIONS = (
    b".xmp", b".aae", b".pp3", b".dop", b".on1", b".cos", b".nks", b".arp", b".rws", b".nksc",
    b".mov", b".mp4", b".m4v", b".3gp", b".lrv", b".thm", b".wav", b".mp3", b".m4a", b".txt", b".gpx",
)  # fmt: skip
"""Endings of files that cameras, telephones and photo programs lay beside pictures: metadata and settings of
editors, the film of a live photo, a spoken note, a caption."""
RAW = (
    b".3fr", b".arw", b".cr2", b".cr3", b".crw", b".dcr", b".dng", b".erf", b".fff", b".gpr", b".iiq",
    b".kdc", b".mef", b".mos", b".mrw", b".nef", b".nrw", b".orf", b".pef", b".raf", b".raw", b".rw2",
    b".rwl", b".sr2", b".srf", b".srw", b".x3f",
)  # fmt: skip
"""Endings of camera raw files."""
_PICTURES = tuple(ending.encode() for endings in EXTENSIONS.values() for ending in endings)
_ZONE = re.compile(rb"(?P<of>.+?)[:._]?zone\.identifier(:\$data)?", re.DOTALL | re.IGNORECASE)
"""What Windows knows of a file's origin, as Samba and WSL write it beside the file."""


def is_companion(path: bytes) -> bool:
    """Whether a file is no picture by its name, but may belong to one."""
    lower = path.lower()
    return lower.endswith(COMPANIONS) or (b"zone.identifier" in lower and bool(_ZONE.fullmatch(path)))


def is_raw(path: bytes) -> bool:
    """Whether a file is a camera raw file by its name."""
    return path.lower().endswith(RAW)


def has_ending_of_picture(path: bytes) -> bool:
    """Whether a name ends like that of a picture that can be protected."""
    return path.lower().endswith(_PICTURES)


def owner(path: bytes) -> bytes:
    """What the name of a companion's picture begins with, `folded`: `a` or `a.jpg` of a.xmp, a.jpg.xmp."""
    zone = _ZONE.fullmatch(path)
    return folded(zone["of"] if zone else os.path.splitext(path)[0])


def belongs(path: bytes, picture: bytes) -> bool:
    """Whether a companion, or a raw file, is that of a picture: it has its name, with ending or without."""
    return owner(path) in claims(picture)


def claims(picture: bytes) -> tuple[bytes, bytes]:
    """The names, `folded`, by which companions belong to a picture."""
    name = folded(picture)
    return name, os.path.splitext(name)[0]
