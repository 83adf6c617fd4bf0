"""Inserts metadata into encoded files, in the form that each format has for it. Pixels are not touched.

Sources: JPEG (T.81 annex B) with the conventions of EXIF, ICC.1 and XMP part 3; PNG 3rd edition;
JPEG 2000 part 1 annex I.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from backfire.imaging import cleaning, containers, photoshop, xmp
from backfire.imaging.metadata import (
    EXTENDED_DIGEST,
    EXTENDED_XMP,
    ICC_HEAD,
    ORIENTATION,
    PNG_COLOUR,
    RESOLUTION,
    UUID_EXIF,
    UUID_XMP,
    XMP_HEAD,
    Metadata,
    Part,
)
from backfire.imaging.tags import Directory

SEGMENT = 65_533
"""The most bytes that the body of a JPEG segment can hold."""

SPARE = 256
"""Bytes of EXIF that are kept free for the resolution, which is added later."""

ICC_PIECE = SEGMENT - 14
EXTENDED_PIECE = 65_400
"""The most bytes of extended XMP in a segment (XMP Specification Part 3, 1.1.3.1)."""
PHOTOSHOP_HEAD = b"Photoshop 3.0\0"
WITH_RESOURCES, BARE = frozenset({"JPEG", "TIFF"}), frozenset({"BMP"})
"""The formats that hold Photoshop's resources, and those that hold nothing but the resolution."""
NUMBERED = frozenset({"PNG", "HEIF", "AVIF"})
"""The formats that can name their colour space by the numbers of H.273."""
REDUNDANT = frozenset({b"cICP", b"sRGB", b"pHYs", b"res "})
"""The parts whose content is also carried otherwise, or which say what holds without them."""


def _fitting_jpeg(about: Metadata) -> Metadata:
    """The metadata that a JPEG can hold, whose segments are short.

    Of EXIF the largest tags are left out, and large properties of XMP are moved into an extended packet.
    """
    exif, said = about.exif, list(about.left_out)
    while len(replace(about, exif=exif).exif_block() or b"") > SEGMENT - SPARE:
        tag, size, exif = _without_largest(exif)
        said.append(f"the tag {tag} ({size} bytes): EXIF in a JPEG holds {SEGMENT} bytes in all")
    packet, extended = about.xmp, about.extended
    if packet is not None and len(XMP_HEAD + packet) > SEGMENT:
        halves = xmp.split(packet, SEGMENT - len(XMP_HEAD))
        packet, extended = halves or (None, None)
        if halves is None:
            said.append(f"XMP ({len(about.xmp or b'')} bytes): it cannot be split for a JPEG")
    return replace(about, exif=exif, xmp=packet, extended=extended, left_out=tuple(said))


def fitting(about: Metadata, kind: str, *, same: bool) -> Metadata:
    """The metadata that a format has a place for; what it has none for is named.

    Args:
        same: whether the picture came in that format, so that its parts can stay.
    """
    lost = [] if same else [cleaning.name_of(part) for part, _ in about.parts if part not in REDUNDANT]
    resources = {number for number, _ in photoshop.resources(about.resources() or b"")}
    if kind not in WITH_RESOURCES:
        lost += ["the IPTC record"] if photoshop.IIM in resources else []
        lost += ["Photoshop's resources"] if resources - {photoshop.IIM} else []
    if kind not in NUMBERED and about.numbered is not None:
        primaries, transfer = about.numbered
        lost.append(
            f"the colour space ({primaries}, {transfer} in H.273), without which colours look different"
        )
    if kind in BARE:
        lost += ["EXIF"] if about.exif.without({ORIENTATION, *RESOLUTION}) else []
        lost += [] if about.xmp is None else ["XMP"]
        about = replace(about, exif=Directory(), xmp=None)
    said = [f"{what}: {kind} has no place for it" for what in dict.fromkeys(lost)]
    about = replace(about, left_out=(*about.left_out, *said))
    return _fitting_jpeg(about) if kind == "JPEG" else _without_extended(about, kind)


def _without_extended(about: Metadata, kind: str) -> Metadata:
    """The metadata without the extended XMP of a JPEG, which no other format has."""
    if about.extended is None:
        return about
    said = f"extended XMP ({len(about.extended)} bytes): {kind} has no place for it"
    packet = about.xmp and xmp.without(about.xmp, lambda one: one.namespace == xmp.NOTE)
    return replace(about, xmp=packet, extended=None, left_out=(*about.left_out, said))


def _without_largest(exif: Directory) -> tuple[int, int, Directory]:
    """The number and the size of the largest tag of a tree, and the tree without it."""
    candidates = [(len(entry.data), tag, None) for tag, entry in exif.entries.items()]
    below = {tag: _without_largest(one) for tag, one in exif.below.items()}
    size, tag, pointer = max(
        [*candidates, *((size, one, at) for at, (one, size, _) in below.items())], key=lambda one: one[0]
    )
    if pointer is None:
        return tag, size, exif.without({tag})
    rest = {**exif.below, pointer: below[pointer][2]}
    return tag, size, replace(exif, below={at: one for at, one in rest.items() if one})


def jpeg(about: Metadata, *, same: bool) -> bytes:
    """The metadata segments for the start of a JPEG.

    Args:
        about: what `fitting` gave.
        same: whether `about.parts` come from a JPEG and so can be written to one.
    """
    exif = about.exif_block()
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
            heads = (ICC_HEAD + bytes((number, count)) for number in range(1, count + 1))
            segments += [(b"\xe2", head + part) for head, part in zip(heads, parts, strict=True)]
    if same:
        segments += about.parts
    return b"".join(
        b"\xff" + marker + struct.pack(">H", len(body) + 2) + body
        for marker, body in segments
        if len(body) <= SEGMENT
    )


def _packets(packet: bytes | None, extended: bytes | None) -> Iterator[bytes]:
    """The bodies of the segments of XMP: the main packet, and the pieces of the extended one.

    The main packet names the digest of the extended one, which is made anew because a preview may have been
    taken out of it.
    """
    if packet is None:
        return
    named = EXTENDED_DIGEST.search(packet)
    if extended is None or named is None:
        yield XMP_HEAD + packet
        return
    digest = hashlib.md5(extended, usedforsecurity=False).hexdigest().upper().encode()
    yield XMP_HEAD + packet[: named.start(1)] + digest + packet[named.end(1) :]
    for at in range(0, len(extended), EXTENDED_PIECE):
        place = struct.pack(">II", len(extended), at)
        yield EXTENDED_XMP + digest + place + extended[at : at + EXTENDED_PIECE]


def png(data: bytes, about: Metadata, *, same: bool) -> bytes:
    """An encoded PNG with the metadata's chunks inserted before its pixels."""
    parts = about.parts if same else ()
    first = [part for part in parts if part[0] in PNG_COLOUR]
    later = [part for part in parts if part[0] not in PNG_COLOUR]
    if about.numbered is not None and not any(kind == b"cICP" for kind, _ in first):
        first.append((b"cICP", bytes((*about.numbered, 0, 1))))  # RGB of full range
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


def jp2(data: bytes, about: Metadata, *, same: bool, alpha: bool = False) -> bytes:
    """An encoded JP2 with the profile in its header and the other boxes inserted before its codestream.

    Args:
        alpha: whether the last channel is alpha, which the encoder does not say.
    """
    parts = about.parts if same else ()
    boxes: list[Part] = []
    for kind, body in containers.boxes(data):
        if kind == b"jp2c":
            boxes += [part for part in parts if part[0] != b"res "]
            if (exif := about.exif_block()) is not None:
                boxes.append((b"uuid", UUID_EXIF + exif[6:]))
            if about.xmp is not None:
                boxes.append((b"uuid", UUID_XMP + about.xmp))
        head = kind == b"jp2h"
        boxes.append((kind, _jp2_header(bytes(body), about, parts, alpha=alpha) if head else bytes(body)))
    return _boxed(boxes)


def _jp2_header(body: bytes, about: Metadata, parts: Iterable[Part], *, alpha: bool) -> bytes:
    boxes = [(kind, bytes(inner)) for kind, inner in containers.boxes(body)]
    if alpha:
        channels = int.from_bytes(dict(boxes)[b"ihdr"][8:10], "big")
        # Of each channel its number, what it is (0 colour, 1 opacity), and which colour (0 for all of them).
        rows = [(one, 0, one + 1) for one in range(channels - 1)] + [(channels - 1, 1, 0)]
        count = struct.pack(">H", channels)
        boxes.append((b"cdef", count + b"".join(struct.pack(">3H", *row) for row in rows)))
    if about.icc is not None:
        # Method 2 is meant for restricted profiles only, but readers accept any profile there and do not
        # look at the other methods.
        boxes = [(kind, b"\2\0\0" + about.icc if kind == b"colr" else inner) for kind, inner in boxes]
    return _boxed(boxes + [part for part in parts if part[0] == b"res "])


def _boxed(boxes: Iterable[Part]) -> bytes:
    return b"".join(struct.pack(">I", len(body) + 8) + kind + body for kind, body in boxes)
