"""What a file says about its picture, and what of it may go on.

An EXIF thumbnail, a maker note's preview or an XMP thumbnail shows the *unprotected* picture:
none is carried. Tags outside `CARRIED` are not carried either, nor are IPTC-IIM, Photoshop
resources and text comments. EXIF that is broken is dropped; it never costs the picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import ExifTags, Image

ORIENTATION = int(ExifTags.Base.Orientation)
CAMERA = int(ExifTags.IFD.Exif)
GPS = int(ExifTags.IFD.GPSInfo)
MAKER_NOTE = int(ExifTags.Base.MakerNote)
INTEROP = int(ExifTags.IFD.Interop)

CARRIED = frozenset(
    {
        0x010E,  # ImageDescription
        0x010F,  # Make
        0x0110,  # Model
        0x0112,  # Orientation
        0x011A,  # XResolution
        0x011B,  # YResolution
        0x0128,  # ResolutionUnit
        0x0131,  # Software
        0x0132,  # DateTime
        0x013B,  # Artist
        0x013C,  # HostComputer
        0x4746,  # Rating
        0x4749,  # RatingPercent
        0x8298,  # Copyright
        0x9C9B,  # XPTitle
        0x9C9C,  # XPComment
        0x9C9D,  # XPAuthor
        0x9C9E,  # XPKeywords
        0x9C9F,  # XPSubject
    }
)
"""The tags of the first directory that describe the picture; the rest describe its storage."""

_XMP_THUMBNAILS = re.compile(rb"<(\w+):Thumbnails\b.*?</\1:Thumbnails>", re.DOTALL)
_JPEG_IN_BASE64 = b"/9j/"


@dataclass(frozen=True)
class Metadata:
    """What is carried from file to file.

    Attributes:
        main: tags of EXIF's first directory, orientation among them where the file had one.
        camera: tags of the Exif directory.
        gps: tags of the GPS directory.
        icc: the colour profile's bytes.
        xmp: the XMP packet's bytes.
        dpi: horizontal and vertical.
    """

    main: Mapping[int, Any] = field(default_factory=dict)
    camera: Mapping[int, Any] = field(default_factory=dict)
    gps: Mapping[int, Any] = field(default_factory=dict)
    icc: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None

    @property
    def orientation(self) -> int:
        """1..8 as in EXIF; 1 where the file says nothing."""
        return int(self.main.get(ORIENTATION, 1))

    def reduced(self, policy: str) -> Metadata:
        """What `keep`, `strip-gps` or `strip-all` leaves; orientation and profile always stay."""
        if policy == "keep":
            return self
        if policy == "strip-all":
            return replace(self.bare(), icc=self.icc)
        if policy == "strip-gps":
            # A maker note is opaque, and some hold a position.
            camera = {tag: value for tag, value in self.camera.items() if tag != MAKER_NOTE}
            # An XMP packet may be UTF-16 and may call the namespace as it likes.
            private = self.xmp is not None and b"GPS" in self.xmp.replace(b"\0", b"")
            return replace(self, camera=camera, gps={}, xmp=None if private else self.xmp)
        raise ValueError(f"metadata: got {policy!r}, expected keep, strip-gps or strip-all")

    def bare(self) -> Metadata:
        """Nothing but an orientation that matters."""
        return Metadata(main={ORIENTATION: self.orientation} if self.orientation != 1 else {})

    def directories(self) -> dict[int, Mapping[int, Any]]:
        """The directories below the first one that hold anything, by the tag that points to them."""
        return {tag: ifd for tag, ifd in ((CAMERA, self.camera), (GPS, self.gps)) if ifd}

    def exif(self) -> bytes | None:
        """The tags as an EXIF block that starts with `Exif`, or None where there is no tag."""
        if not self.main and not self.directories():
            return None
        exif = Image.Exif()
        for tag, value in self.main.items():
            exif[tag] = value
        for tag, ifd in self.directories().items():
            exif[tag] = dict(ifd)
        return exif.tobytes()


def read(image: Image.Image) -> Metadata:
    """The metadata of an opened picture, clean and known to be writable again.

    To be called before a TIFF is loaded (Pillow turns it upright then and forgets the tag), and
    after anything else is (a PNG may hold its metadata behind the pixels).
    """
    info = image.info
    # Pillow would take an orientation from XMP, which browsers and viewers ignore.
    packet = [info.pop(key, None) for key in ("XML:com.adobe.xmp", "xmp")]
    found = Metadata(
        icc=_bytes(info.get("icc_profile")),
        xmp=_clean_xmp(next((_bytes(xmp) for xmp in packet if xmp), None)),
    )
    main = _directory(image, None)
    # Pillow answers 72 for a JPEG and 1 for a TIFF whose tags say nothing about it.
    made_up = image.format in ("JPEG", "MPO", "TIFF") and not info.get("jfif_unit") and 0x011A not in main
    found = replace(found, dpi=None if made_up else _dpi(info.get("dpi")))
    orientation = main.pop(ORIENTATION, None)
    if isinstance(orientation, int) and 1 <= orientation <= 8:
        main[ORIENTATION] = orientation
    found = replace(found, main=main, camera=_directory(image, CAMERA), gps=_directory(image, GPS))
    try:
        found.exif()
    except Exception:  # the tags of strangers fail in any way they like
        bare = found.bare()
        found = replace(found, main=bare.main, camera={}, gps={})
    return found


def _directory(image: Image.Image, tag: int | None) -> dict[int, Any]:
    try:
        exif = image.getexif()
        if tag is None:
            return {key: _writable(value) for key, value in exif.items() if key in CARRIED}
        ifd = {key: _writable(value) for key, value in exif.get_ifd(tag).items() if key != INTEROP}
    except Exception:  # as above
        return {}
    note = ifd.get(MAKER_NOTE)
    if note is not None and (not isinstance(note, bytes) or b"\xff\xd8\xff" in note):
        del ifd[MAKER_NOTE]
    return ifd


def _writable(value: Any) -> Any:
    """Text as its bytes: Pillow reads it as Latin-1 but writes ASCII, and UTF-8 names would suffer."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _clean_xmp(xmp: bytes | None) -> bytes | None:
    if xmp is None:
        return None
    xmp = _XMP_THUMBNAILS.sub(b"", xmp)
    return None if _JPEG_IN_BASE64 in xmp else xmp


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
