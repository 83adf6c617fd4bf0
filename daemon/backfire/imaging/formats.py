"""Recognises a file's format from its bytes, without decoding it."""

from __future__ import annotations

import codecs
import itertools
import re
from pathlib import PurePath

from backfire.errors import Code, InputError
from backfire.imaging import refusals
from backfire.types import EXTENSIONS

KINDS = {name: {"heic": "HEIF"}.get(name, name.upper()) for name in EXTENSIONS}
"""By format in the settings: Pillow's name."""
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
DAMAGED_JPEG, DAMAGED_PNG = "a damaged JPEG", "a damaged PNG"
OTHERS = {
    b"\xff\xd8": DAMAGED_JPEG,  # the start of a signature that `sniff` knows, and then something else
    b"\x89PNG": DAMAGED_PNG,
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
    DAMAGED_JPEG: "copy it again from where it came",
    DAMAGED_PNG: "copy it again from where it came",
    RAW: "export it as JPEG or TIFF",
    "an HTML page": "get the picture in place of this web page",
    "a Photoshop document": "save a copy as TIFF (8 or 16 bits) or PNG",
}
BRANDS = {
    b"heic": "HEIF", b"heix": "HEIF", b"heim": "HEIF", b"heis": "HEIF", b"mif1": "HEIF", b"msf1": "HEIF",
    b"hevc": "HEIF", b"avif": "AVIF", b"avis": "AVIF",
}  # fmt: skip
PICTURES = frozenset(
    {RAW, "PostScript", "EPS", "a Photoshop document", "JPEG XL", "OpenEXR", "an SVG drawing"}
)
"""Of what `sniff` refuses by name, what somebody may take for a picture."""
FORMATS = "JPEG, PNG, TIFF, WebP, HEIC, AVIF, JPEG 2000, BMP or GIF"
HEAD = 4096
"""The first bytes of a file that decide what an unknown one is called in a message."""


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
    remedy = REMEDIES.get(what, "export it as JPEG or TIFF")
    raise InputError(Code.UNSUPPORTED, f"{name}: {says} {what}, expected {FORMATS}; {remedy}")


def extensions(kind: str) -> tuple[str, ...]:
    """The extensions of a format by Pillow's name, with dots; files are written with the first one."""
    return next(EXTENSIONS[name] for name, known in KINDS.items() if known == kind)


def raw_by_name(head: bytes, name: str) -> InputError | None:
    """The error for a file that is called a camera raw file; None if its first bytes show another picture."""
    try:
        kind = sniff(head, name)
    except InputError as error:
        kind = "" if error.code == Code.UNSUPPORTED else "TIFF"
    if kind not in ("", "TIFF"):
        return None
    ending = PurePath(name).suffix.lower()
    return refusals.unsupported(name, f"is {RAW} ({ending})", "export it as JPEG or TIFF", expected=FORMATS)


def refusal(head: bytes, name: str) -> InputError | None:
    """The error for a file that is empty, or whose first `HEAD` bytes show that it is no picture.

    None for zeros and the mere start of a signature, which take the whole file to judge.
    """
    try:
        sniff(head, name)
    except InputError as error:
        return error if error.code in (Code.EMPTY, Code.UNSUPPORTED) else None
    return None


def is_no_picture(head: bytes) -> bool:
    """Whether the first `HEAD` bytes of a file show that nobody means it as a picture, such as text or sound.

    Zeros and the mere start of a signature may still become one.
    """
    try:
        sniff(head, "")
    except InputError as error:
        return not head or (error.code == Code.UNSUPPORTED and _guess(head) not in PICTURES)
    return False


def _brand(data: bytes) -> str | None:
    """HEIF or AVIF by the brands of an ISO media file; the first brand of an AVIF file may be `mif1`."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    names = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    kinds = [BRANDS[name] for name in names if name in BRANDS]
    if data[8:12] not in BRANDS:
        return None
    return "AVIF" if "AVIF" in kinds else "HEIF"


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
