"""Reads a file's metadata, without anything that shows the *unprotected* picture.

Left out are EXIF thumbnails, maker notes with a preview, XMP thumbnails, Photoshop's thumbnail and layers,
and further pictures of the file. A C2PA manifest is left out too, since its signature would no longer
match. Broken EXIF is dropped, and named; the picture is not refused because of it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Any

from PIL import Image

from backfire.imaging import cleaning, containers, isobmff, previews, tags, uncarried
from backfire.imaging.metadata import (
    C2PA,
    ELSEWHERE,
    EXTENDED_DIGEST,
    EXTENDED_XMP,
    ICC,
    ICC_HEAD,
    JPEG_XR,
    LAYERS,
    ORIENTATION,
    PHOTOSHOP,
    PNG_CARRIED,
    RESOLUTION,
    STORAGE,
    SUBFILES,
    UUID_EXIFS,
    UUID_XMP,
    XMP,
    XMP_HEAD,
    Metadata,
    Part,
)
from backfire.imaging.tags import Directory

C2PA_TAG = 52545
MOST_NAMED = 20
"""The most tags of unknown types that are named: broken EXIF may have thousands."""
PROFILED = (b"\2", b"\3")
"""The methods of a JPEG 2000's box on colours that hold a profile: a restricted one, and any."""


def read(image: Image.Image, data: bytes, kind: str) -> Metadata:
    """The metadata of a loaded picture in the file `data` that may be written again."""
    info = image.info
    found = Metadata(
        icc=_bytes(info.get("icc_profile")),
        xmp=_bytes(info.get("xmp")) or _bytes(info.get("XML:com.adobe.xmp")),
        dpi=_dpi(info.get("dpi")),
        left_out=(*((C2PA,) if containers.has_c2pa(data, kind) else ()), *uncarried.parts(data, kind)),
    )
    found = _with_exif(found, _bytes(info.get("exif")))
    match kind:
        case "JPEG":
            found = _with_segments(found, data)
            if not info.get("jfif_unit") and RESOLUTION[0] not in found.exif.entries:
                found = replace(found, dpi=None)  # Pillow gives 72 for a file without a resolution
        case "PNG":
            found = _with_chunks(found, data)
        case "JPEG2000":
            found = _with_boxes(found, data)
        case "GIF":
            packet, comment = containers.gif_texts(data)
            found = replace(found, xmp=packet or None, parts=((b"!\xfe", comment),) if comment else ())
        case "AVIF" | "HEIF":
            items = isobmff.read(data)
            found = replace(found, cicp=_cicp(items), turned=items.orientation if kind == "HEIF" else None)
            found = _with_exif_of_avif(found, items) if kind == "AVIF" else found
        case "TIFF":
            return of_tiff(tags.parse(data))
    return _clean(found)


def of_tiff(first: Directory) -> Metadata:
    """The metadata in the first directory of a TIFF file."""
    exif = first.without(STORAGE | {XMP, PHOTOSHOP, ICC, C2PA_TAG})
    hidden = [tag for tag in (SUBFILES, LAYERS, JPEG_XR) if tag in first.entries]
    said = [C2PA] if C2PA_TAG in first.entries else []
    said += [f"the tag {tag}: it could hold the unprotected picture" for tag in hidden]
    resolution = [first.raw(tag) for tag in RESOLUTION[:2]]
    dpi = None
    if (
        all(value is not None and len(value) == 8 for value in resolution)
        and first.number(RESOLUTION[2], 2) > 1
    ):
        pairs = [struct.unpack(f"{first.order}II", value) for value in resolution if value]
        scale = 2.54 if first.number(RESOLUTION[2], 2) == 3 else 1.0
        dpi = _dpi([above * scale / below if below else 0 for above, below in pairs])
    icc, packet, resources = (first.raw(tag) for tag in (ICC, XMP, PHOTOSHOP))
    return _clean(Metadata(exif=exif, icc=icc, xmp=packet, photoshop=resources, dpi=dpi, left_out=(*said,)))


def _clean(found: Metadata) -> Metadata:
    found = replace(found, xmp=_trimmed(found.xmp), extended=_trimmed(found.extended))
    packets = tuple(packet for packet in (found.xmp, found.extended) if packet is not None)
    exif = found.exif
    if ORIENTATION in exif.entries and not 1 <= exif.number(ORIENTATION) <= 8:
        exif = exif.without({ORIENTATION})
    strange = ", ".join(map(str, _strange(exif)[:MOST_NAMED]))
    said = [f"the tags {strange}: their types are unknown"] if strange else []
    left_out = tuple(dict.fromkeys((*found.left_out, *said)))
    found = cleaning.without_stale(replace(found, exif=exif, packets=packets, left_out=left_out))
    return cleaning.without_pictures(found)


def _strange(exif: Directory) -> list[int]:
    """The tags of unknown types in all directories."""
    return [*exif.strange, *(tag for one in exif.below.values() for tag in _strange(one))]


def _trimmed(packet: bytes | None) -> bytes | None:
    """A packet without the zeros that some programs put around it, and which no XML parser takes.

    With other zeros in it, it is in UTF-16 or UTF-32, of which they are a part.
    """
    if packet is None or b"\0" not in packet:
        return packet
    bare = packet.strip(b"\0 \t\r\n")
    return packet if b"\0" in bare else bare or None


def _with_exif(found: Metadata, block: bytes | None) -> Metadata:
    """The metadata with the tags of an EXIF block in place of others; with none if it is broken."""
    if block is None:
        return found
    try:
        return replace(found, exif=tags.parse(block.removeprefix(b"Exif\0\0")))
    except ValueError:
        return replace(found, exif=Directory(), left_out=(*found.left_out, "EXIF: it cannot be read"))


def _with_segments(found: Metadata, data: bytes) -> Metadata:
    """The metadata with the segments of a JPEG that are carried; those that belong to none are named."""
    resources, parts, extended, further, pieces = b"", list[Part](), list[bytes](), 0, 0
    for marker, segment in containers.jpeg_segments(data):
        body = bytes(segment)
        if marker == b"\xed" and body.startswith(b"Photoshop 3.0\0"):
            resources += body[14:]
        elif marker == b"\xfe":
            parts.append((marker, body))
        elif marker == b"\xe1" and body.startswith(EXTENDED_XMP):
            extended.append(body.removeprefix(EXTENDED_XMP))
        elif marker == b"\xe1" and body.startswith(XMP_HEAD) and body != XMP_HEAD + (found.xmp or b""):
            further += len(body) - len(XMP_HEAD)
        elif marker == b"\xe2" and body.startswith(ICC_HEAD):
            pieces += len(body) - len(ICC_HEAD) - 2  # its number, and how many there are
    packet, unnamed = _extended(extended, found.xmp or b"")
    said = _further(further)
    said += [f"extended XMP ({unnamed} bytes): the file's main XMP does not name it"] if unnamed else []
    if pieces and found.icc is None:
        said.append(f"the colour profile ({pieces} bytes): its segments do not make a whole")
    said = [*found.left_out, *said]
    return replace(found, photoshop=resources or None, parts=(*parts,), extended=packet, left_out=(*said,))


def _further(size: int) -> list[str]:
    """A phrase about so many bytes of XMP beside the packet that is read; none of none."""
    return [f"further XMP ({size} bytes): one packet of a file is read"] if size else []


def _with_chunks(found: Metadata, data: bytes) -> Metadata:
    """The metadata with the chunks of a PNG that are carried, and with EXIF and XMP in raw profiles.

    A raw profile counts where the file has no chunk that was made for its content. Further XMP, and a colour
    profile that cannot be read, are named.
    """
    parts, packets = list[Part](), list[bytes]()
    for kind, view in containers.png_chunks(data):
        body = bytes(view) if kind in PNG_CARRIED else b""
        if body.startswith(ELSEWHERE):
            if body.startswith(previews.RAW_PROFILE):
                found = _with_profile(found, previews.unpacked(kind, body).removeprefix(XMP_HEAD))
            else:
                packets.append(body)
        elif kind in PNG_CARRIED:
            parts.append((kind, body))
        if kind == b"cICP" and len(body) == 4:
            found = replace(found, cicp=(body[0], body[1]))
        if kind == b"iCCP" and found.icc is None:
            unread = f"the colour profile ({len(view)} bytes): it cannot be read"
            found = replace(found, left_out=(*found.left_out, unread))
    further = sum(len(packet) for packet in packets if packet != packets[-1])  # the last one is read
    return replace(found, parts=tuple(parts), left_out=(*found.left_out, *_further(further)))


def _with_profile(found: Metadata, profile: bytes) -> Metadata:
    if profile.startswith((b"Exif\0\0", b"II", b"MM")):
        return found if found.exif else _with_exif(found, profile)
    if b"<" in profile and not profile.startswith(previews.RAW_PROFILE):  # that could not be unpacked
        return replace(found, xmp=found.xmp or profile)
    return replace(found, left_out=(*found.left_out, "a raw profile in a PNG text: it cannot be read"))


def _extended(segments: list[bytes], xmp: bytes) -> tuple[bytes | None, int]:
    """The extended packet that the main packet names, None without one, and the bytes of any other.

    It is assembled from its JPEG segments. Behind a signature, each consists of the packet's digest (32
    hexadecimal digits), its length, the offset of this piece in it, and the piece (XMP Specification Part 3,
    1.1.3.1). Gaps are not checked for here: they leave invalid XML, which the parser reports.
    """
    named = EXTENDED_DIGEST.search(xmp)
    pieces, others = dict[int, bytes](), 0
    for segment in segments:
        if named is not None and segment[:32] == named[1]:
            pieces[int.from_bytes(segment[36:40], "big")] = segment[40:]
        else:
            others += len(segment[40:])
    return b"".join(piece for _, piece in sorted(pieces.items())) or None, others


def _with_exif_of_avif(found: Metadata, items: isobmff.Items) -> Metadata:
    """The metadata with the file's own EXIF, since Pillow rewrites that of a rotated picture as ASCII.

    Its orientation is replaced by the container's, which is the one that readers obey.
    """
    block = next(items.of_kind(b"Exif"), None)
    orientation = found.orientation
    if block is not None:
        found = _with_exif(found, block[4 + int.from_bytes(block[:4], "big") :])
    exif = found.exif.without({ORIENTATION})
    exif = exif.having({ORIENTATION: (tags.SHORT, [orientation])}) if orientation != 1 else exif
    return replace(found, exif=exif)


def _cicp(items: isobmff.Items) -> tuple[int, int] | None:
    for kind, body in items.items[items.primary].properties:
        if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 10 and body[4] == body[6] == 0:
            return body[5], body[7]  # two bytes each, of which H.273 uses one
    return None


def _with_boxes(found: Metadata, data: bytes) -> Metadata:
    parts, further = list[Part](), 0
    for kind, view in containers.boxes(data):
        body = bytes(view) if kind in (b"uuid", b"xml ", b"jp2h") else b""
        if kind == b"uuid" and body.startswith(UUID_EXIFS):
            found = found if found.exif else _with_exif(found, body[16:])
        elif kind == b"uuid" and body.startswith(UUID_XMP):
            further += len(found.xmp or b"")
            found = replace(found, xmp=body[16:])
        elif kind in (b"uuid", b"xml "):
            parts.append((kind, body))
        elif kind == b"jp2h":
            parts += [(name, bytes(inner)) for name, inner in containers.boxes(body) if name == b"res "]
    colours = next(filter(is_known_colour, containers.jp2_headers(data, b"colr")), b"")
    icc = colours[3:] if colours[:1] in PROFILED else None
    left_out = (*found.left_out, *_further(further))
    return replace(found, icc=icc or found.icc, parts=tuple(parts), left_out=left_out)


def is_known_colour(box: bytes) -> bool:
    """Whether a JPEG 2000's box on colours holds a profile, or says sRGB, grey or sYCC, which become sRGB."""
    return box[:1] in PROFILED or (box[:1] == b"\1" and int.from_bytes(box[3:7], "big") in (16, 17, 18))


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
