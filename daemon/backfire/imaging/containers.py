"""Recognises a file's format from its bytes, and checks that it is complete, without decoding it.

Decoding would not show that a file is incomplete: a JPEG or WebP whose end is still zeros decodes without
an error.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator
from pathlib import PurePath

from backfire.errors import Code, InputError
from backfire.imaging import refusals
from backfire.types import EXTENSIONS

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}
RAW = "a camera raw file"
OTHERS = {
    b"%PDF": "a PDF document",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"8BPS": "a Photoshop document",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"FUJIFILM": RAW,
    b"IIRO": RAW,
    b"IIRS": RAW,
    b"IIU\0": RAW,
    b"FOVb": RAW,
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"MZ": "a program",
    b"\x7fELF": "a program",
}
REMEDIES = {
    RAW: "develop it to JPEG or 16-bit TIFF",
    "a Photoshop document": "save a copy as TIFF (8 or 16 bits) or PNG",
}
BRANDS = {
    b"heic": "HEIF", b"heix": "HEIF", b"heim": "HEIF", b"heis": "HEIF", b"mif1": "HEIF", b"msf1": "HEIF",
    b"hevc": "HEIF", b"avif": "AVIF", b"avis": "AVIF",
}  # fmt: skip
FORMATS = "JPEG, PNG, TIFF, WebP, HEIC, AVIF, JPEG 2000, BMP or GIF"
HEAD = 4096


def sniff(data: bytes, name: str) -> str:
    """The format of a file by its content, under Pillow's name for it: `JPEG`, `PNG`, `TIFF`, `WEBP`,
    `HEIF`, `AVIF`, `JPEG2000`, `BMP` or `GIF`.

    Args:
        name: the file's name, for messages.

    Raises:
        InputError: EMPTY, TRUNCATED (only zeros, or only the start of a signature) or UNSUPPORTED, with a
            message that says what the file is instead.
    """
    if not data:
        raise InputError(Code.EMPTY, f"{name}: is empty, expected a picture; copy it again")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and (kind := _brand(data)):
        return kind
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if not any(data[:HEAD]) or any(signature.startswith(data) for signature in SIGNATURES):
        raise refusals.cut_short(name, "a picture")
    suffix = PurePath(name).suffix.lower()
    says = f"says {suffix}, is" if suffix in itertools.chain(*EXTENSIONS.values()) else "is"
    what = _guess(data)
    remedy = REMEDIES.get(what, "export it as one of these")
    raise InputError(Code.UNSUPPORTED, f"{name}: {says} {what}, expected {FORMATS}; {remedy}")


def is_complete(data: bytes, kind: str) -> bool:
    """Whether the file ends as its format requires. Always true of a TIFF, which `tiff.check` examines."""
    match kind:
        case "JPEG":
            return _jpeg_ends(data)
        case "PNG":
            return any(chunk == b"IEND" for chunk, _ in png_chunks(data))
        case "WEBP":
            return _webp_ends(data)
        case "HEIF" | "AVIF":
            return all(kind != b"" for kind, _ in boxes(data)) and _holds(data, b"mdat") and _tail(data)
        case "JPEG2000":
            return b"\xff\xd9" in data[-HEAD:] and (data[:1] == b"\xff" or _holds(data, b"jp2c"))
        case "BMP":
            return _bmp_ends(data)
        case "GIF":
            return data.rstrip(b"\0").endswith(b";")
    return True


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and body of each chunk of a PNG, up to the first that is incomplete."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not kind.isalpha() or at + 12 + size > len(data):
            return
        yield kind, view[at + 8 : at + 8 + size]
        at += 12 + size


def jpeg_segments(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The marker's second byte and the body of each segment that precedes the pixels of a JPEG."""
    view, at = memoryview(data), 2
    while marker := _MARKER.match(data, at):
        at = marker.end()
        size = int.from_bytes(data[at : at + 2], "big")
        if marker[1] in (b"\xda", b"\xd9") or size < 2:
            return
        yield marker[1], view[at + 2 : at + size]
        at += size


def boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each box of an ISO media or JPEG 2000 file; a truncated box is last, of kind `b""`."""
    view, at = memoryview(data), start
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            yield b"", view[at:]
            return
        yield kind, view[at + head : at + size]
        at += size


_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""Any marker but byte stuffing, restart markers and fill bytes."""


def _jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG has its end marker; segments are skipped, since an embedded thumbnail has one too."""
    at = 2
    while marker := _MARKER.search(data, at):
        at = marker.end()
        if marker[1] == b"\xd9":
            return True
        if marker[1] not in (b"\x01", b"\xd8"):
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def _brand(data: bytes) -> str | None:
    """HEIF or AVIF by the brands of an ISO media file; the first brand of an AVIF file may be `mif1`."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    names = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    kinds = [BRANDS[name] for name in names if name in BRANDS]
    if data[8:12] not in BRANDS:
        return None
    return "AVIF" if "AVIF" in kinds else "HEIF"


def _holds(data: bytes, kind: bytes) -> bool:
    return any(name == kind for name, _ in boxes(data))


def _bmp_ends(data: bytes) -> bool:
    """Whether a BMP is as long as its header says; where the header says 0, the decoder finds out."""
    return len(data) >= 26 and int.from_bytes(data[2:6], "little") <= len(data)


def _webp_ends(data: bytes) -> bool:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        return False
    return _tail(data)


def _tail(data: bytes) -> bool:
    """Whether a file does not end in zeros; an eighth of it may, since flat pictures compress to zeros."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    return zeros <= max(64, len(data) // 8)


def _guess(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return RAW if data[8:11] == b"crx" else "a video or another ISO media file"
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
