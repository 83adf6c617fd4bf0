"""Photoshop's image resources in JPEG and TIFF: blocks that have a number and a body."""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEAD = b"8BIM"
THUMBNAILS, IIM, EXIF_COPIES = (1033, 1036), 0x0404, (1058, 1059)
"""The numbers of thumbnails, of the IPTC record, and of copies of the EXIF block."""

NAMED = frozenset({1039, *range(2000, 2999)})
"""The numbers of large resources that hold no picture: the colour profile and vector paths."""


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


def body_of(whole: bytes) -> bytes:
    """The body of a resource without its head."""
    name = (whole[6] + 2) // 2 * 2
    size = int.from_bytes(whole[6 + name : 10 + name], "big")
    return whole[10 + name : 10 + name + size]


def value_of(dataset: bytes) -> bytes:
    """The value of a dataset, without its head."""
    size = int.from_bytes(dataset[3:5], "big")
    return dataset[5 + (size & 0x7FFF if size & 0x8000 else 0) :]


def datasets(record: bytes) -> Iterator[bytes]:
    """All bytes of each dataset of an IPTC record (IIM 4.2, 1.5), up to the first broken one."""
    at = 0
    while at + 5 <= len(record) and record[at] == 0x1C:
        size, head = int.from_bytes(record[at + 3 : at + 5], "big"), 5
        if size & 0x8000:  # the number of bytes that the size takes
            head += size & 0x7FFF
            size = int.from_bytes(record[at + 5 : at + head], "big")
        if at + head + size > len(record):
            return
        yield record[at : at + head + size]
        at += head + size


def resource(kind: int, body: bytes) -> bytes:
    """A resource with an empty name, as bytes."""
    return HEAD + struct.pack(">HHI", kind, 0, len(body)) + body + b"\0" * (len(body) % 2)
