"""What in metadata shows the *unprotected* picture or says where it was taken, however it is packed."""

from __future__ import annotations

import re
import zlib

JPEG, JPEG_IN_BASE64 = b"\xff\xd8\xff", b"/9j/"
PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
RAW_PROFILE = b"Raw profile type "
MOST_TEXT = 1 << 24
"""Bytes of a compressed text that are looked at; Pillow has refused longer ones."""

_THUMBNAILS = re.compile(rb"<(\w+):Thumbnails\b")
_PICTURE = re.compile(rb"/9j/(?:[A-Za-z0-9+/=\s]|&#x?[0-9A-Fa-f]{1,4};)*")


def shows(data: bytes) -> bool:
    """Whether bytes hold a JPEG, plain or in base64; text may be UTF-16."""
    return JPEG in data or JPEG_IN_BASE64 in data.replace(b"\0", b"")


def locates(text: bytes) -> bool:
    """Whether text speaks of a position: a packet may be UTF-16 and may call the namespace as it likes."""
    return b"GPS" in text.replace(b"\0", b"")


def cut_from(xmp: bytes) -> bytes | None:
    """A packet less its thumbnails and what else holds a JPEG; all else stays, regions of people above all.

    A packet in UTF-16 with one is None: its letters are not those looked for.
    """
    if b"\0" in xmp:
        return None if shows(xmp) else xmp
    kept, at = [], 0
    # By hand: a pattern of both tags would search the whole packet for the end of each beginning.
    while start := _THUMBNAILS.search(xmp, at):
        kept.append(xmp[at : start.start()])
        opened = xmp.find(b">", start.end()) + 1
        end = b"</" + start[1] + b":Thumbnails>"
        at = opened if xmp[opened - 2 : opened] == b"/>" else xmp.find(end, opened) + len(end)
        if not opened or at < opened:  # without an end: no XML, which whoever reads it shall find
            return b"".join(kept)
    return _PICTURE.sub(b"", b"".join([*kept, xmp[at:]]))


def unpacked(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk's text, inflated, and out of the hexadecimals of a raw profile; other parts as they are."""
    if kind not in PNG_TEXT:
        return body
    keyword, _, text = body.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    text = text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text[packed:]
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_TEXT)
        except zlib.error:
            return body
    if keyword.startswith(RAW_PROFILE):  # its name and its length stand on lines of their own
        try:
            return bytes.fromhex(text.strip().split(b"\n", 2)[-1].decode("ascii"))
        except ValueError:
            return text
    return text
