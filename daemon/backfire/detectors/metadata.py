"""The detector `metadata`: regions in a picture's XMP, such as faces tagged in Lightroom, digiKam or Picasa.

Three vocabularies are read: IPTC Image Region (Iptc4xmpExt), `mwg-rs:Regions` of the Metadata Working Group,
and Microsoft's people tags (`MP:RegionInfo`). All refer to the stored pixels before the EXIF orientation is
applied (MWG Guidelines 2.0, 5.9; IPTC Photo Metadata Standard, Region Boundary). Only regions whose
`AppliedToDimensions` have the aspect ratio of the upright picture, and not that of the stored one, are taken
as upright. The packet is not trusted: defusedxml reads it and refuses document types.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray

from backfire.detectors import Source
from backfire.detectors.shapes import Points, ellipse, region_of
from backfire.errors import Code, InputError
from backfire.types import Region, Rgb

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
MWG = "{http://www.metadataworkinggroup.com/schemas/regions/}"
AREA = "{http://ns.adobe.com/xmp/sType/Area#}"
DIMENSIONS = "{http://ns.adobe.com/xap/1.0/sType/Dimensions#}"
PHOTO = "{http://ns.microsoft.com/photo/1.2/}"
INFO = "{http://ns.microsoft.com/photo/1.2/t/RegionInfo#}"
PERSON = "{http://ns.microsoft.com/photo/1.2/t/Region#}"

TURNED = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, -1, 1, 0),
    7: (0, -1, -1, 0),
    8: (0, 1, -1, 0),
}
"""By EXIF orientation: the matrix that makes stored positions, relative to the centre, upright."""

NOT_PEOPLE = frozenset({"focus"})
"""The MWG types that mark no content; this one is where the camera focused."""

SAME_SHAPE = 0.02
"""The relative difference up to which aspect ratios count as equal, because editors round dimensions."""

ENCODINGS = {
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"<\0\0\0": "utf-32-le", b"\0\0\0<": "utf-32-be",
    b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be",
}  # fmt: skip
"""By the first bytes of a packet that is not UTF-8: its encoding (XMP Specification Part 1, 7.1)."""

MOST = 1000
"""The most regions that are read; nobody tags more faces by hand."""


@dataclass(frozen=True)
class _Shape:
    """A region as written: points N,2 in shares of the picture's sides, and its kind.

    Names of people are not read, so that they do not appear in receipts.
    """

    points: Points
    label: str
    upright: bool = False


class MetadataDetector:
    """Reads the regions of the three vocabularies; a region that is written twice counts once."""

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """One region for each that reaches into the picture; see `Detector.detect`.

        Raises:
            InputError: `UNREADABLE`, the packet is not XML or declares a document type.
        """
        height, width = image.shape[:2]
        swapped = source.orientation >= 5
        stored = (height, width) if swapped else (width, height)
        found: list[Region] = []
        shapes = (s for packet in source.packets for s in _shapes(_parsed(packet, source.name), stored))
        for shape in itertools.islice(shapes, MOST):
            turned = shape.points if shape.upright else _turned(shape.points, source.orientation)
            region = region_of(turned * (width, height), shape.label, "metadata", width, height)
            if region is not None and not any(_same(region, other) for other in found):
                found.append(region)
        return found


def _parsed(packet: bytes, name: str) -> Element:
    try:
        root: Element = fromstring(_decoded(packet), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InputError(
            Code.UNREADABLE,
            f"{name}: its XMP cannot be read ({error}), expected plain XML; save the metadata "
            "again, or take 'metadata' out of regions.detectors",
        ) from error
    return root


def _decoded(packet: bytes) -> str | bytes:
    """A packet as text if it is UTF-16 or UTF-32, which expat reads only in part; otherwise its bytes.

    Raises:
        UnicodeDecodeError: it is not in the encoding that its first bytes announce.
    """
    for start, encoding in ENCODINGS.items():
        if packet.startswith(start):
            return packet.decode(encoding).strip("\ufeff\0 \r\n\t")
    return packet.strip(b"\0 \r\n\t")


def _turned(points: Points, orientation: int) -> Points:
    """Stored positions N,2, in shares of the sides, in the upright picture."""
    matrix = np.array(TURNED[orientation], dtype=np.float64).reshape(2, 2)
    turned: Points = (points - 0.5) @ matrix.T + 0.5
    return turned


def _same(a: Region, b: Region) -> bool:
    """Whether two boxes are equal but for rounding; digiKam writes each face in two vocabularies."""
    height = min(a.box.bottom, b.box.bottom) - max(a.box.top, b.box.top)
    width = min(a.box.right, b.box.right) - max(a.box.left, b.box.left)
    shared = max(width, 0) * max(height, 0)
    return shared >= 0.9 * max(a.box.width * a.box.height, b.box.width * b.box.height)


def _shapes(root: Element, stored: tuple[int, int]) -> Iterator[_Shape]:
    """Every region of every vocabulary, without those whose numbers cannot be read."""
    readers = ((IPTC + "ImageRegion", _iptc), (MWG + "Regions", _mwg), (PHOTO + "RegionInfo", _people))
    for tag, reader in readers:
        for element in root.iter(tag):
            for shape in reader(element, stored):
                if len(shape.points) and np.isfinite(shape.points).all():
                    yield shape


def _iptc(element: Element, stored: tuple[int, int]) -> Iterator[_Shape]:
    for item in _items(element):
        boundary = _property(item, IPTC + "RegionBoundary")
        if boundary is None:
            continue
        unit = (1, 1) if _text(boundary, IPTC + "rbUnit") == "relative" else stored
        kind = _text(boundary, IPTC + "rbShape")
        x, y, w, h = (_number(boundary, IPTC + name) for name in ("rbX", "rbY", "rbW", "rbH"))
        if kind == "polygon":
            vertices = _property(boundary, IPTC + "rbVertices")
            corners = [] if vertices is None else _items(vertices)
            points = np.array([[_number(c, IPTC + "rbX"), _number(c, IPTC + "rbY")] for c in corners])
        elif kind == "circle":
            radius = _number(boundary, IPTC + "rbRx")  # a share of the width if it is relative
            points = ellipse(x, y, radius, radius * (stored[0] / stored[1] if unit == (1, 1) else 1))
        else:
            points = _rectangle(x, y, x + w, y + h)
        yield _Shape(points.reshape(-1, 2) / unit, "region")


def _mwg(element: Element, stored: tuple[int, int]) -> Iterator[_Shape]:
    applied = _property(element, MWG + "AppliedToDimensions")
    upright = applied is not None and _is_upright(applied, stored)
    regions = _property(element, MWG + "RegionList")
    for item in [] if regions is None else _items(regions):
        area = _property(item, MWG + "Area")
        kind = (_text(item, MWG + "Type") or "region").lower()
        if area is None or kind in NOT_PEOPLE:
            continue
        unit = stored if _text(area, AREA + "unit") == "pixel" else (1, 1)
        x, y, w, h = (_number(area, AREA + name) for name in "xywh")
        diameter = _number(area, AREA + "d")
        if math.isfinite(diameter):  # a share of the shorter side
            shorter = min(stored)
            points = ellipse(x, y, diameter * shorter / stored[0] / 2, diameter * shorter / stored[1] / 2)
        else:
            points = _rectangle(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        yield _Shape(points / unit, kind, upright)


def _is_upright(applied: Element, stored: tuple[int, int]) -> bool:
    """Whether the dimensions that the regions refer to have the aspect ratio of the upright picture only."""
    width, height = _number(applied, DIMENSIONS + "w"), _number(applied, DIMENSIONS + "h")
    if not (width > 0 and height > 0):
        return False
    shape, as_stored = width / height, stored[0] / stored[1]
    fits_stored = abs(shape / as_stored - 1) <= SAME_SHAPE
    fits_turned = abs(shape * as_stored - 1) <= SAME_SHAPE
    return fits_turned and not fits_stored


def _people(element: Element, stored: tuple[int, int]) -> Iterator[_Shape]:
    regions = _property(element, INFO + "Regions")
    for item in [] if regions is None else _items(regions):
        numbers = (_text(item, PERSON + "Rectangle") or "").replace(",", " ").split()
        if len(numbers) == 4:  # a person may be tagged without a rectangle
            x, y, w, h = (_float(number) for number in numbers)
            yield _Shape(_rectangle(x, y, x + w, y + h), "face")


def _rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


# RDF allows several forms for the same struct: attributes, elements with parseType Resource, and elements
# that contain a Description.


def _items(element: Element) -> list[Element]:
    """The members of an array property."""
    return [item for array in element for item in array if item.tag == RDF + "li"]


def _struct(element: Element) -> Element:
    inner = element.find(RDF + "Description")
    return element if inner is None else inner


def _property(element: Element, name: str) -> Element | None:
    return _struct(element).find(name)


def _text(element: Element, name: str) -> str | None:
    """The text of a simple property; None if it is missing or empty."""
    struct = _struct(element)
    value = struct.get(name) or struct.findtext(name)
    return value.strip() if value else None


def _number(element: Element, name: str) -> float:
    """A simple property as a number; NaN if it is missing or not a number."""
    return _float(_text(element, name) or "")


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
