"""Inserts metadata into encoded files, in the form that each format has for it. Pixels are not touched.

Sources: JPEG (T.81 annex B) with the conventions of EXIF, ICC.1 and XMP part 3; PNG 3rd edition;
JPEG 2000 part 1 annex I.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator

from backfire.imaging import containers
from backfire.imaging.metadata import (
    EXTENDED_DIGEST,
    EXTENDED_XMP,
    PNG_COLOUR,
    UUID_EXIF,
    UUID_XMP,
    Metadata,
    Part,
)

SEGMENT = 65_533
"""The most bytes that the body of a JPEG segment can hold."""

ICC_PIECE = SEGMENT - 14
EXTENDED_PIECE = 65_400
"""The most bytes of extended XMP in a segment (XMP Specification Part 3, 1.1.3.1)."""
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
PHOTOSHOP_HEAD = b"Photoshop 3.0\0"


def jpeg(about: Metadata, *, same: bool) -> bytes:
    """The metadata segments for the start of a JPEG.

    EXIF that is too long for one segment is reduced to the orientation; an XMP packet that is too long is
    left out.

    Args:
        same: whether `about.parts` come from a JPEG and so can be written to one.
    """
    exif = about.exif_block()
    if exif is not None and len(exif) > SEGMENT:
        exif = about.bare().exif_block()
    segments: list[Part] = []
    if exif is not None:
        segments.append((b"\xe1", exif))
    segments += ((b"\xe1", body) for body in _packets(about.xmp, about.extended))
    resources = about.resources()
    if resources is not None:
        size = SEGMENT - len(PHOTOSHOP_HEAD)
        pieces = (resources[at : at + size] for at in range(0, len(resources), size))
        segments += [(b"\xed", PHOTOSHOP_HEAD + piece) for piece in pieces]
    if about.icc is not None:
        parts = [about.icc[at : at + ICC_PIECE] for at in range(0, len(about.icc), ICC_PIECE)]
        if len(parts) < 256:
            count = len(parts)
            heads = (b"ICC_PROFILE\0" + bytes((number, count)) for number in range(1, count + 1))
            segments += [(b"\xe2", head + part) for head, part in zip(heads, parts, strict=True)]
    if same:
        segments += about.parts
    return b"".join(
        b"\xff" + marker + struct.pack(">H", len(body) + 2) + body
        for marker, body in segments
        if len(body) <= SEGMENT
    )


def _packets(xmp: bytes | None, extended: bytes | None) -> Iterator[bytes]:
    """The bodies of the segments of XMP: the main packet, and the pieces of the extended one.

    The main packet names the digest of the extended one, which is made anew because a preview may have been
    taken out of it.
    """
    if xmp is None:
        return
    named = EXTENDED_DIGEST.search(xmp)
    if extended is None or named is None:
        yield XMP_HEAD + xmp
        return
    digest = hashlib.md5(extended, usedforsecurity=False).hexdigest().upper().encode()
    yield XMP_HEAD + xmp[: named.start(1)] + digest + xmp[named.end(1) :]
    for at in range(0, len(extended), EXTENDED_PIECE):
        place = struct.pack(">II", len(extended), at)
        yield EXTENDED_XMP + digest + place + extended[at : at + EXTENDED_PIECE]


def png(data: bytes, about: Metadata, *, same: bool) -> bytes:
    """An encoded PNG with the metadata's chunks inserted before its pixels."""
    parts = about.parts if same else ()
    first = [part for part in parts if part[0] in PNG_COLOUR]
    later = [part for part in parts if part[0] not in PNG_COLOUR]
    if about.icc is not None:
        first.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(about.icc)))
    if about.dpi is not None and not any(kind == b"pHYs" for kind, _ in later):
        later.append((b"pHYs", struct.pack(">IIB", *(round(one / 0.0254) for one in about.dpi), 1)))
    if about.xmp is not None:
        later.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + about.xmp))
    if (exif := about.exif_block()) is not None:
        later.append((b"eXIf", exif[6:]))
    head = 33  # signature and IHDR
    return data[:head] + b"".join(_chunk(*part) for part in [*first, *later]) + data[head:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jp2(data: bytes, about: Metadata, *, same: bool) -> bytes:
    """An encoded JP2 with the profile in its header and the other boxes inserted before its codestream."""
    parts = about.parts if same else ()
    boxes: list[Part] = []
    for kind, body in containers.boxes(data):
        if kind == b"jp2c":
            boxes += [part for part in parts if part[0] != b"res "]
            if (exif := about.exif_block()) is not None:
                boxes.append((b"uuid", UUID_EXIF + exif[6:]))
            if about.xmp is not None:
                boxes.append((b"uuid", UUID_XMP + about.xmp))
        boxes.append((kind, _jp2_header(bytes(body), about, parts) if kind == b"jp2h" else bytes(body)))
    return _boxed(boxes)


def _jp2_header(body: bytes, about: Metadata, parts: Iterable[Part]) -> bytes:
    boxes = [(kind, bytes(inner)) for kind, inner in containers.boxes(body)]
    if about.icc is not None:
        # Method 2 is meant for restricted profiles only, but readers accept any profile there and do not
        # look at the other methods.
        boxes = [(kind, b"\2\0\0" + about.icc if kind == b"colr" else inner) for kind, inner in boxes]
    return _boxed(boxes + [part for part in parts if part[0] == b"res "])


def _boxed(boxes: Iterable[Part]) -> bytes:
    return b"".join(struct.pack(">I", len(body) + 8) + kind + body for kind, body in boxes)
