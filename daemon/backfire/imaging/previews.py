"""Finds metadata that shows the *unprotected* picture or says where it was taken, in any encoding."""

from __future__ import annotations

import re
import zlib

JPEG, JPEG_IN_BASE64 = b"\xff\xd8\xff", b"/9j/"
PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
RAW_PROFILE = b"Raw profile type "
MOST_TEXT = 1 << 24
"""The most bytes of a compressed text that are searched; Pillow refuses longer ones."""

_THUMBNAILS = re.compile(rb"<(\w+):Thumbnails\b")
_PICTURE = re.compile(rb"/9j/(?:[A-Za-z0-9+/=\s]|&#x?[0-9A-Fa-f]{1,4};)*")


def shows(data: bytes) -> bool:
    """Whether bytes hold a JPEG, plain or in base64, which may be UTF-16 text."""
    return JPEG in data or JPEG_IN_BASE64 in data.replace(b"\0", b"")


def locates(text: bytes) -> bool:
    """Whether text mentions GPS at all, in UTF-8 or UTF-16: XML namespace prefixes are free to choose."""
    return b"GPS" in text.replace(b"\0", b"")


def cut_from(xmp: bytes) -> bytes | None:
    """An XMP packet without thumbnails and other JPEGs; all else stays, such as the regions of people.

    None for a packet in UTF-16 that holds a JPEG, because the search below works on single bytes.
    """
    if b"\0" in xmp:
        return None if shows(xmp) else xmp
    kept, at = [], 0
    # One pattern for both tags would search the rest of the packet from each opening tag: quadratic time.
    while start := _THUMBNAILS.search(xmp, at):
        kept.append(xmp[at : start.start()])
        opened = xmp.find(b">", start.end()) + 1
        end = b"</" + start[1] + b":Thumbnails>"
        at = opened if xmp[opened - 2 : opened] == b"/>" else xmp.find(end, opened) + len(end)
        if not opened or at < opened:  # without a closing tag it is not valid XML, which its parser reports
            return b"".join(kept)
    return _PICTURE.sub(b"", b"".join([*kept, xmp[at:]]))


def unpacked(kind: bytes, body: bytes) -> bytes:
    """The text of a PNG chunk, decompressed, and decoded if it is a raw profile; other bodies unchanged."""
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
    if keyword.startswith(RAW_PROFILE):  # hexadecimal digits after two lines with its name and length
        try:
            return bytes.fromhex(text.strip().split(b"\n", 2)[-1].decode("ascii"))
        except ValueError:
            return text
    return text
