"""What the bytes themselves say: which format, and whether they are all there. No Pillow.

Decodable is not complete: a JPEG or WebP whose tail is still zeros decodes without a word.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import PurePath

from daemon.errors import Code, InputError

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
OTHERS = {
    b"%PDF": "a PDF document",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"8BPS": "a Photoshop document",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"v/1\x01": "OpenEXR",
    b"FUJIFILM": "a camera raw file",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"MZ": "a program",
    b"\x7fELF": "a program",
}
BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp"})
HEAD = 4096


def sniff(data: bytes, name: str) -> str:
    """The format of a file by its content: `JPEG`, `PNG`, `TIFF` or `WEBP`.

    Raises:
        InputError: EMPTY, TRUNCATED (nothing but zeros, or a signature cut short) or
            UNSUPPORTED, naming what it is instead.
    """
    if not data:
        raise InputError(Code.EMPTY, f"{name}: is empty, expected a picture; copy it again")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if not any(data[:HEAD]) or any(signature.startswith(data) for signature in SIGNATURES):
        raise cut_short(name, "a picture")
    suffix = PurePath(name).suffix.lower()
    says = f"says {suffix}, is" if suffix in SUFFIXES else "is"
    raise InputError(
        Code.UNSUPPORTED,
        f"{name}: {says} {_guess(data)}, expected JPEG, PNG, TIFF or WebP; export it as one of these",
    )


def is_complete(data: bytes, kind: str) -> bool:
    """Whether the container ends as its format demands; for TIFF see the reader of its tags."""
    match kind:
        case "JPEG":
            return _jpeg_ends(data)
        case "PNG":
            return any(chunk == b"IEND" for chunk, _ in png_chunks(data))
        case "WEBP":
            return _webp_ends(data)
    return True


def cut_short(name: str, what: str) -> InputError:
    """The error for a file whose end is missing."""
    return InputError(Code.TRUNCATED, f"{name}: ends too early, expected the whole of {what}; copy it again")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and body of each whole chunk of a PNG."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not kind.isalpha() or at + 12 + size > len(data):
            return
        yield kind, view[at + 8 : at + 8 + size]
        at += 12 + size


_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""A marker that is neither a stuffed byte, nor a restart, nor fill."""


def _jpeg_ends(data: bytes) -> bool:
    """Walks the segments, so that the end of an embedded thumbnail is not taken for the picture's."""
    at = 2
    while marker := _MARKER.search(data, at):
        at = marker.end()
        if marker[1] == b"\xd9":
            return True
        if marker[1] not in (b"\x01", b"\xd8"):
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def _webp_ends(data: bytes) -> bool:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        return False
    # Flat pictures end in honest zeros, up to a twentieth of the file.
    zeros = len(data) - len(data.rstrip(b"\0"))
    return zeros <= max(64, len(data) // 8)


def _guess(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video or another ISO media file")
    for signature, what in OTHERS.items():
        if data.startswith(signature):
            return what
    try:
        head = codecs.getincrementaldecoder("utf-8-sig")().decode(data[:HEAD])
    except UnicodeDecodeError:
        head = "\0"
    if not all(letter.isprintable() or letter in "\t\n\f\r" for letter in head):
        return f"unknown content (first bytes {data[:8].hex(' ')})"
    if "<svg" in head:
        return "an SVG drawing"
    return "an HTML page" if re.match(r"\s*<(!doctype )?html", head, re.IGNORECASE) else "text"
