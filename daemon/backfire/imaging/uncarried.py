"""Names the parts of a file that no published file holds, whatever they are.

What is read of a file is a list; all that is not on it is named here, so that no kind of part is lost without
a word because nobody thought of it. What becomes of the parts on the list is told where they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from backfire.imaging import containers, isobmff
from backfire.imaging.metadata import EXTENDED_XMP, ICC_HEAD, PNG_CARRIED, XMP_HEAD

MOST_NAMED = 20
"""The most parts that are named: a hostile file may have millions of kinds."""

JPEG_SEGMENTS = {
    0xE0: (b"JFIF\0",),
    0xE1: (b"Exif\0\0", XMP_HEAD, EXTENDED_XMP),
    0xE2: (ICC_HEAD,),
    0xED: (b"Photoshop 3.0\0",),
    0xEE: (b"Adobe",),
    0xFE: (b"",),
}
"""By the marker's second byte: how the segments begin that are read."""
PNG_CHUNKS = PNG_CARRIED | {
    *(b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"iDOT"),
    *(b"iCCP", b"eXIf", b"caBX"),
}
WEBP_CHUNKS = frozenset(
    {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ", b"C2PA"}
)
GIF_EXTENSIONS = frozenset({b"NETSCAPE2.0", b"ANIMEXTS1.0", b"XMP DataXMP", b"C2PA_GIF\1\0\0"})
"""The applications whose extensions are read."""
GIF_BLOCKS = frozenset({b",", b";", b"!\xf9", b"!\xfe"})
"""Pictures, the end, how long each is shown, and comments."""
JP2_BOXES = frozenset({b"jP  ", b"ftyp", b"jp2h", b"jp2c", b"uuid", b"xml ", b"free"})
JP2_HEADERS = frozenset({b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef", b"res "})
HEIF_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"free", b"skip"})
ALPHA = re.compile(rb"auxiliary:alpha|auxid:1\0")
"""How HEIF and AVIF name an alpha plane among a picture's auxiliary ones."""


def parts(data: bytes, kind: str) -> list[str]:
    """A phrase about the parts that a published file never holds; none where there are none.

    A TIFF has tags instead of parts, and a BMP has none.
    """
    found = {"JPEG": _segments, "PNG": _chunks, "WEBP": _riff, "GIF": _extensions, "JPEG2000": _jp2_boxes}
    found |= {"HEIF": _items, "AVIF": _items}
    unique = dict[str, None]()
    for name in found[kind](data) if kind in found else ():
        unique[_plain(name)] = None
        if len(unique) > MOST_NAMED:  # the rest would take gigabytes of a hostile file
            break
    names = [*unique][:MOST_NAMED] + (["others"] if len(unique) > MOST_NAMED else [])
    size = len(containers.behind(data, kind).strip(b"\0 \t\r\n"))
    names += [f"{size} bytes behind the picture"] if size else []
    return [f"the file's parts {', '.join(names)}: nothing of these kinds is carried"] if names else []


def _plain(name: bytes) -> str:
    return re.sub(r"[^ -~]", "?", name.decode("latin-1")).strip()


def _segments(data: bytes) -> Iterator[bytes]:
    """The segments of a JPEG by number and the word that they begin with, such as `APP12 Ducky`."""
    # A C2PA manifest is told of by its name.
    read = JPEG_SEGMENTS | ({0xEB: (b"JP",)} if containers.has_c2pa(data, "JPEG") else {})
    for marker, view in containers.jpeg_segments(data):
        number, head = marker[0], bytes(view[:40])
        if not 0xC0 <= number < 0xE0 and not head.startswith(read.get(number, ())):
            word = re.match(rb"[ -~]{0,20}", head)
            name = b"APP%d" % (number - 0xE0) if number < 0xF0 else b"0x%X" % number
            yield name + b" " + (word[0] if word else b"")


def _chunks(data: bytes) -> Iterator[bytes]:
    return (kind for kind, _ in containers.png_chunks(data) if kind not in PNG_CHUNKS)


def _riff(data: bytes) -> Iterator[bytes]:
    return (kind for kind in containers.riff_chunks(data) if kind not in WEBP_CHUNKS)


def _extensions(data: bytes) -> Iterator[bytes]:
    for kind, start, _ in containers.gif_blocks(data):
        name = data[start + 1 : start + 12]
        if kind == b"!\xff" and name not in GIF_EXTENSIONS:
            yield name
        elif kind not in GIF_BLOCKS | {b"!\xff"}:
            yield b"plain text" if kind == b"!\1" else b"extension 0x" + kind[1:].hex().encode()


def _jp2_boxes(data: bytes) -> Iterator[bytes]:
    if data[:1] != b"\0":  # a bare codestream
        return
    for kind, body in containers.boxes(data):
        if kind == b"jp2h":
            yield from (name for name, _ in containers.boxes(bytes(body)) if name not in JP2_HEADERS)
        elif kind not in JP2_BOXES:
            yield kind or b"behind the last box"


def _items(data: bytes) -> Iterator[bytes]:
    """The boxes of a HEIF or AVIF, and the items that are neither the picture, its alpha nor metadata."""
    for kind, body in containers.boxes(data):
        if kind not in HEIF_BOXES and not (kind == b"uuid" and body[:16] == containers.C2PA_UUID):
            yield kind or b"behind the last box"
    found = isobmff.read(data)
    planes = {found.primary} | {
        source
        for kind, source, targets in found.references
        if kind == b"auxl" and found.primary in targets and source in found.items
        if any(name == b"auxC" and ALPHA.search(body) for name, body in found.items[source].properties)
    }
    tiles = {
        target
        for kind, source, targets in found.references
        if kind == b"dimg" and source in planes
        for target in targets
    }
    for number, item in found.items.items():
        metadata = item.kind == b"Exif" or item.content_type == b"application/rdf+xml"
        if number not in planes | tiles and not metadata:
            yield b"item " + item.kind
