"""Photoshop's image resources in JPEG and TIFF: blocks that have a number and a body."""

from __future__ import annotations

import struct
from collections.abc import Iterator

THUMBNAILS, IIM, EXIF_COPIES = (1033, 1036), 0x0404, (1058, 1059)
"""The numbers of thumbnails, of the IPTC record, and of copies of the EXIF block."""


def resources(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The number and all bytes of each resource up to the first broken one."""
    at = 0
    while at + 12 <= len(block) and block[at : at + 4].isalnum():
        name = (block[at + 6] + 2) // 2 * 2
        if at + 10 + name > len(block):
            return
        size = int.from_bytes(block[at + 6 + name : at + 10 + name], "big")
        end = at + 10 + name + size + size % 2
        if at + 10 + name + size > len(block):
            return
        yield int.from_bytes(block[at + 4 : at + 6], "big"), block[at:end]
        at = end


def resource(kind: int, body: bytes) -> bytes:
    """A resource with an empty name, as bytes."""
    return b"8BIM" + struct.pack(">HHI", kind, 0, len(body)) + body + b"\0" * (len(body) % 2)
