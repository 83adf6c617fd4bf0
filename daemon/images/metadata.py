"""What a file says about its picture, and what of it may go on.

Everything goes on as the bytes it came in, so that what is not understood survives, except what
shows the *unprotected* picture: EXIF thumbnails, maker notes with a preview, XMP thumbnails,
Photoshop's thumbnail and layers, further pictures of the file. What describes the storage of the
samples is written anew. A C2PA manifest is not carried: its signature would no longer fit. EXIF
that is broken is dropped; it never costs the picture.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from daemon.images import containers, isobmff, previews, tags
from daemon.images.tags import GPS, MAKER_NOTE, Directory

ORIENTATION = 0x0112
RESOLUTION = (0x011A, 0x011B, 0x0128)
XMP, IPTC, PHOTOSHOP, ICC = 700, 33723, 34377, 34675
LAYERS, SUBFILES, JPEG_XR = 37724, 330, 50341

STORAGE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289}
    | {290, 291, 292, 293, 317, 320, 321, 322, 323, 324, 325, SUBFILES, 338, 339, 340, 341, 347, 400}
    | {*range(512, 522), 529, 530, 531, 532, 559, LAYERS, JPEG_XR}
)
"""Tags of a TIFF's first directory that say how the samples lie in the file, or hold more pictures."""

PNG_COLOUR = frozenset({b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI"})
PNG_CARRIED = PNG_COLOUR | previews.PNG_TEXT | {b"tIME", b"oFFs", b"pHYs"}
ELSEWHERE = (
    b"XML:com.adobe.xmp\0",
    b"Raw profile type exif\0",
    b"Raw profile type APP1\0",
    b"Raw profile type xmp\0",
)
"""Keywords of PNG text whose content is carried as EXIF or XMP."""

UUID_EXIF = b"JpgTiffExif->JP2"
UUID_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
THUMBNAILS, IIM, EXIF_COPIES = (1033, 1036), 0x0404, (1058, 1059)
"""Photoshop image resources: the thumbnails, the IPTC record, and what was the EXIF block."""

PLACES = frozenset({GPS, MAKER_NOTE, XMP, PHOTOSHOP, 33550, 33922, 34264, 34735, 34736, 34737})
"""Tags that say where a picture was taken, or may: maker notes are opaque; the last ones are GeoTIFF's."""

_XMP_ORIENTATION = re.compile(rb"\s*tiff:Orientation=[\"']\d[\"']|<tiff:Orientation>\d</tiff:Orientation>")
_EXTENDED = re.compile(rb"HasExtendedXMP(?:\s*=\s*[\"']|[^<>]{0,200}>\s*)([0-9A-Fa-f]{32})")

Part = tuple[bytes, bytes]


@dataclass(frozen=True)
class Metadata:
    """What is carried from file to file.

    Attributes:
        exif: the tags, orientation among them where the file had one.
        icc: the colour profile's bytes.
        xmp: the XMP packet's bytes.
        photoshop: image resources, the IPTC-IIM record among them.
        dpi: horizontal and vertical.
        cicp: of a HEIC or AVIF its colour primaries and transfer by number (H.273), which phones give
            instead of a profile.
        parts: what only the same kind of file holds, as (kind, body): JPEG segments, PNG chunks,
            JPEG 2000 boxes.
        packets: all XMP as the file holds it, extended packets and what may not go on included: to be
            read for its regions, never written.
        turned: of pixels that the reader has turned upright already, how the file stores them, 1..8 as
            in EXIF: what `packets` speak of; None elsewhere.
    """

    exif: Directory = field(default_factory=Directory)
    icc: bytes | None = None
    xmp: bytes | None = None
    photoshop: bytes | None = None
    dpi: tuple[float, float] | None = None
    cicp: tuple[int, int] | None = None
    parts: tuple[Part, ...] = ()
    packets: tuple[bytes, ...] = field(default=(), repr=False, compare=False)
    turned: int | None = field(default=None, compare=False)

    @property
    def orientation(self) -> int:
        """1..8 as in EXIF; 1 where the file says nothing."""
        value = self.exif.number(ORIENTATION, 1)
        return value if 1 <= value <= 8 else 1

    def reduced(self, policy: str) -> Metadata:
        """What `keep`, `strip-gps` or `strip-all` leaves; orientation and profile always stay."""
        if policy == "keep":
            return self
        if policy == "strip-all":
            colour = tuple(part for part in self.parts if part[0] in PNG_COLOUR)
            return replace(self.bare(), icc=self.icc, cicp=self.cicp, parts=colour)
        if policy == "strip-gps":
            resources = b"".join(
                body
                for kind, body in _resources(self.photoshop or b"")
                if kind not in EXIF_COPIES and not previews.locates(body)
            )
            return replace(
                self,
                exif=_placeless(self.exif),
                xmp=None if self.xmp is not None and previews.locates(self.xmp) else self.xmp,
                photoshop=resources or None,
                parts=tuple(part for part in self.parts if not previews.locates(previews.unpacked(*part))),
            )
        raise ValueError(f"metadata: got {policy!r}, expected keep, strip-gps or strip-all")

    def bare(self) -> Metadata:
        """Nothing but an orientation that matters."""
        turned = Directory().having({ORIENTATION: (tags.SHORT, [self.orientation])})
        return Metadata(exif=turned if self.orientation != 1 else Directory())

    def upright(self) -> Metadata:
        """For pixels that are stored upright: no tag and no XMP that would turn them."""
        xmp = None if self.xmp is None else _XMP_ORIENTATION.sub(b"", self.xmp)
        return replace(self, exif=self.exif.without({ORIENTATION}), xmp=xmp)

    def with_resolution(self) -> Metadata:
        """The resolution in EXIF too, for files that have no other place for it."""
        if self.dpi is None or RESOLUTION[0] in self.exif.entries:
            return self
        across, down = ([(round(one * 1000), 1000)] for one in self.dpi)
        values = zip(
            RESOLUTION, [(tags.RATIONAL, across), (tags.RATIONAL, down), (tags.SHORT, [2])], strict=True
        )
        return replace(self, exif=self.exif.having(dict(values)))

    def exif_block(self) -> bytes | None:
        """The tags as an EXIF block that starts with `Exif`, or None where there is no tag."""
        exif = self.exif.without({IPTC})  # a TIFF's own place for it
        return b"Exif\0\0" + exif.block() if exif else None

    def resources(self) -> bytes | None:
        """Photoshop's image resources, with the IPTC record of a TIFF that has it in a tag."""
        iptc, block = self.exif.raw(IPTC), self.photoshop or b""
        if iptc is not None and not any(kind == IIM for kind, _ in _resources(block)):
            block += _resource(IIM, iptc)
        return block or None


def read(image: Image.Image, data: bytes, kind: str) -> Metadata:
    """The metadata of a loaded picture in the file `data`, less what may not go on."""
    info = image.info
    found = Metadata(
        icc=_bytes(info.get("icc_profile")),
        xmp=_bytes(info.get("xmp")) or _bytes(info.get("XML:com.adobe.xmp")),
        exif=_exif(_bytes(info.get("exif"))),
        dpi=_dpi(info.get("dpi")),
    )
    match kind:
        case "JPEG":
            found = _with_segments(found, data)
            if not info.get("jfif_unit") and RESOLUTION[0] not in found.exif.entries:
                found = replace(found, dpi=None)  # Pillow answers 72 for a file that says nothing
        case "PNG":
            chunks = [
                (name, bytes(body)) for name, body in containers.png_chunks(data) if name in PNG_CARRIED
            ]
            found = replace(found, parts=tuple(part for part in chunks if not part[1].startswith(ELSEWHERE)))
        case "JPEG2000":
            found = _with_boxes(found, data)
        case "AVIF" | "HEIF":
            items = isobmff.read(data)
            found = replace(found, cicp=_cicp(items), turned=items.orientation if kind == "HEIF" else None)
            found = _with_exif_of_avif(found, items) if kind == "AVIF" else found
        case "TIFF":
            return of_tiff(tags.parse(data))
    return _clean(found)


def of_tiff(first: Directory) -> Metadata:
    """The metadata in the first directory of a TIFF file."""
    exif = first.without(STORAGE | {XMP, PHOTOSHOP, ICC})
    resolution = [first.raw(tag) for tag in RESOLUTION[:2]]
    dpi = None
    if (
        all(value is not None and len(value) == 8 for value in resolution)
        and first.number(RESOLUTION[2], 2) > 1
    ):
        pairs = [struct.unpack(f"{first.order}II", value) for value in resolution if value]
        scale = 2.54 if first.number(RESOLUTION[2], 2) == 3 else 1.0
        dpi = _dpi([above * scale / below if below else 0 for above, below in pairs])
    return _clean(
        Metadata(exif=exif, icc=first.raw(ICC), xmp=first.raw(XMP), photoshop=first.raw(PHOTOSHOP), dpi=dpi)
    )


def _clean(found: Metadata) -> Metadata:
    xmp = None if found.xmp is None else previews.cut_from(found.xmp)
    packets = found.packets if found.xmp is None else (found.xmp, *found.packets)
    photoshop = found.photoshop and b"".join(
        body
        for kind, body in _resources(found.photoshop)
        if kind not in THUMBNAILS and not previews.shows(body)
    )
    parts = tuple(part for part in found.parts if not previews.shows(previews.unpacked(*part)))
    return replace(
        found,
        exif=_quiet(found.exif),
        xmp=xmp,
        photoshop=photoshop or None,
        parts=parts,
        packets=packets,
    )


def _exif(block: bytes | None) -> Directory:
    """An EXIF block's tree; empty where it is broken."""
    if block is None:
        return Directory()
    try:
        return tags.parse(block.removeprefix(b"Exif\0\0"))
    except ValueError:
        return Directory()


def _quiet(exif: Directory) -> Directory:
    """The tree less values that hold a JPEG, and less an orientation that is none."""
    odd = {tag for tag, entry in exif.entries.items() if previews.shows(entry.data)}
    if ORIENTATION in exif.entries and not 1 <= exif.number(ORIENTATION) <= 8:
        odd.add(ORIENTATION)
    below = {tag: _quiet(directory) for tag, directory in exif.below.items()}
    return replace(exif.without(odd), below={tag: one for tag, one in below.items() if one})


def _placeless(exif: Directory) -> Directory:
    """The tree less every place, at whatever depth it lies."""
    below = {tag: _placeless(directory) for tag, directory in exif.below.items()}
    return replace(exif, below={tag: one for tag, one in below.items() if one}).without(PLACES)


def _with_segments(found: Metadata, data: bytes) -> Metadata:
    photoshop, parts, extended = b"", [], []
    for marker, segment in containers.jpeg_segments(data):
        body = bytes(segment)
        if marker == b"\xed" and body.startswith(b"Photoshop 3.0\0"):
            photoshop += body[14:]
        elif marker == b"\xfe":
            parts.append((marker, body))
        elif marker == b"\xe1" and body.startswith(EXTENDED_XMP):
            extended.append((marker, body))
    # A preview may be spread over the segments, so they go together or not at all.
    if not previews.shows(b"".join(body[len(EXTENDED_XMP) + 40 :] for _, body in extended)):
        parts += extended
    packets = _extended([body for _, body in extended], found.xmp or b"")
    return replace(found, photoshop=photoshop or None, parts=tuple(parts), packets=packets)


def _extended(segments: list[bytes], xmp: bytes) -> tuple[bytes, ...]:
    """The extended packet that the main one names, put together from its JPEG segments.

    After its signature a segment has the packet's digest in 32 letters, its length, and where in it
    the rest belongs (XMP Specification Part 3, 1.1.3.1). Of a packet with gaps no XML is left, and
    whoever reads it will say so.
    """
    named = _EXTENDED.search(xmp)
    if named is None:
        return ()
    start = len(EXTENDED_XMP)
    pieces = {
        int.from_bytes(segment[start + 36 : start + 40], "big"): segment[start + 40 :]
        for segment in segments
        if segment[start : start + 32] == named[1]
    }
    return (b"".join(piece for _, piece in sorted(pieces.items())),) if pieces else ()


def _with_exif_of_avif(found: Metadata, items: isobmff.Items) -> Metadata:
    """The tags as they lie in the file: where the picture is turned Pillow writes them anew, as ASCII."""
    block = next(items.of_kind(b"Exif"), None)
    orientation = (tags.SHORT, [found.orientation])
    exif = found.exif if block is None else _exif(block[4 + int.from_bytes(block[:4], "big") :])
    # The container's turn counts, not the tag's.
    exif = exif.having({ORIENTATION: orientation}) if found.orientation != 1 else exif.without({ORIENTATION})
    return replace(found, exif=exif)


def _cicp(items: isobmff.Items) -> tuple[int, int] | None:
    for kind, body in items.items[items.primary].properties:
        if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 10:
            return int.from_bytes(body[4:6], "big"), int.from_bytes(body[6:8], "big")
    return None


def _with_boxes(found: Metadata, data: bytes) -> Metadata:
    parts: list[Part] = []
    for kind, view in containers.boxes(data):
        body = bytes(view) if kind in (b"uuid", b"xml ", b"jp2h") else b""
        if kind == b"uuid" and body.startswith(UUID_EXIF):
            found = replace(found, exif=_exif(body[16:]))
        elif kind == b"uuid" and body.startswith(UUID_XMP):
            found = replace(found, xmp=body[16:])
        elif kind in (b"uuid", b"xml "):
            parts.append((kind, body))
        elif kind == b"jp2h":
            for name, inner in containers.boxes(body, 0):
                if name == b"res ":
                    parts.append((name, bytes(inner)))
                elif name == b"colr" and bytes(inner[:1]) == b"\2":
                    found = replace(found, icc=bytes(inner[3:]))
    return replace(found, parts=tuple(parts))


def _resources(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and whole bytes of each of Photoshop's image resources."""
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


def _resource(kind: int, body: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", kind, 0, len(body)) + body + b"\0" * (len(body) % 2)


def _bytes(value: object) -> bytes | None:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
    return value if isinstance(value, bytes) and value else None


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = float(value[0]), float(value[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (across, down) if all(math.isfinite(d) and 1 <= d < 65536 for d in (across, down)) else None
