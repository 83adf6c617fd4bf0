"""The detector `metadata`: regions in a picture's XMP, such as faces tagged in Lightroom, digiKam or Picasa.

Three vocabularies are read: IPTC Image Region (Iptc4xmpExt), `mwg-rs:Regions` of the Metadata Working Group,
and Microsoft's people tags (`MP:RegionInfo`). All refer to the stored pixels before the EXIF orientation is
applied (MWG Guidelines 2.0, 5.9; IPTC Photo Metadata Standard, Region Boundary). Only regions whose
`AppliedToDimensions` have the aspect ratio of the upright picture, and not that of the stored one, are taken
as upright; where they have neither, the picture was cropped since (a crop of the same ratio cannot be told
from a smaller copy). Decimal commas and other names of units are read. A region whose place cannot be told
is an error, because somebody marked it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from backfire.detectors import Source, rdf
from backfire.detectors.shapes import Points, ellipse, region_of
from backfire.errors import Code, InputError
from backfire.types import Region, Rgb

Size = tuple[float, float]
"""Width and height."""

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

MOST = 1000
"""The most regions of a picture; nobody tags more faces by hand."""


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
            InputError: `UNREADABLE`, the packet is not XML or declares a document type, or it has a region
                whose place cannot be told, or more than `MOST`.
        """
        height, width = image.shape[:2]
        swapped = source.orientation >= 5
        stored = (height, width) if swapped else (width, height)
        found: list[Region] = []
        try:
            packets = (rdf.parsed(packet, source.name) for packet in source.packets)
            shapes = [*itertools.islice((s for packet in packets for s in _shapes(packet, stored)), MOST + 1)]
        except ValueError as error:
            raise InputError(
                Code.UNREADABLE,
                f"{source.name}: a region in its XMP cannot be placed ({error}), expected x, y and a size as "
                "numbers; tag it again, or take 'metadata' out of regions.detectors",
            ) from error
        if len(shapes) > MOST:
            message = (
                f"{source.name}: has more than {MOST} regions in its XMP, expected at most so many; remove "
                "some, or take 'metadata' out of regions.detectors"
            )
            raise InputError(Code.UNREADABLE, message)
        for shape in shapes:
            turned = shape.points if shape.upright else _turned(shape.points, source.orientation)
            region = region_of(turned * (width, height), shape.label, "metadata", width, height)
            if region is not None and not any(_same(region, other) for other in found):
                found.append(region)
        return found


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


def _shapes(root: Element, stored: Size) -> Iterator[_Shape]:
    """Every region of every vocabulary.

    Raises:
        ValueError: the place of a region cannot be told.
    """
    readers = ((IPTC + "ImageRegion", _iptc), (MWG + "Regions", _mwg), (PHOTO + "RegionInfo", _people))
    for tag, reader in readers:
        for element in root.iter(tag):
            for shape in reader(element, stored):
                if not np.ptp(shape.points, axis=0).all():
                    raise ValueError("it has no size")
                yield shape


def _iptc(element: Element, stored: Size) -> Iterator[_Shape]:
    for item in rdf.items(element):
        boundary = rdf.member(item, IPTC + "RegionBoundary")
        if boundary is None:
            continue
        unit = _unit(rdf.text(boundary, IPTC + "rbUnit"), stored)
        kind = (rdf.text(boundary, IPTC + "rbShape") or "none").lower()
        if kind == "polygon":
            corners = rdf.items(rdf.member(boundary, IPTC + "rbVertices"))
            if len(corners) < 3:
                raise ValueError(f"a polygon of {len(corners)} corners")
            points = np.array([rdf.numbers(corner, IPTC, ("rbX", "rbY")) for corner in corners]) / unit
        elif kind == "circle":
            x, y, radius = rdf.numbers(boundary, IPTC, ("rbX", "rbY", "rbRx"), sizes=1)
            across = radius / unit[0]  # a radius that is relative is a share of the width
            points = ellipse(x / unit[0], y / unit[1], across, across * stored[0] / stored[1])
        elif kind == "rectangle":
            x, y, w, h = rdf.numbers(boundary, IPTC, ("rbX", "rbY", "rbW", "rbH"), sizes=2)
            points = _rectangle(x, y, x + w, y + h) / unit
        else:
            raise ValueError(f"its shape is {kind!r}, not rectangle, circle or polygon")
        yield _Shape(points, "region")


def _mwg(element: Element, stored: Size) -> Iterator[_Shape]:
    applied = _applied(rdf.member(element, MWG + "AppliedToDimensions"))
    turned = stored[1], stored[0]
    fits_stored, fits_turned = (applied is not None and _alike(applied, one) for one in (stored, turned))
    upright = fits_turned and not fits_stored
    frame = turned if upright else stored
    pixels = applied or frame  # those of the picture that was tagged, which may have been resized since
    for item in rdf.items(rdf.member(element, MWG + "RegionList")):
        area = rdf.member(item, MWG + "Area")
        kind = (rdf.text(item, MWG + "Type") or "region").lower()
        if area is None or kind in NOT_PEOPLE:
            continue
        if applied is not None and not (fits_stored or fits_turned):
            raise ValueError("it is of a picture of another aspect ratio, so that this one was cropped since")
        unit = _unit(rdf.text(area, AREA + "unit") or "normalized", pixels)
        if rdf.text(area, AREA + "d") is not None:
            x, y, diameter = rdf.numbers(area, AREA, "xyd", sizes=1)
            # A diameter that is relative is a share of the shorter side.
            sides = (1, 1) if unit == pixels else (frame[0] / min(frame), frame[1] / min(frame))
            across, down = (diameter / 2 / one / side for one, side in zip(unit, sides, strict=True))
            points = ellipse(x / unit[0], y / unit[1], across, down)
        else:
            x, y, w, h = rdf.numbers(area, AREA, "xywh", sizes=2)
            points = _rectangle(x - w / 2, y - h / 2, x + w / 2, y + h / 2) / unit
        yield _Shape(points, kind, upright)


def _applied(dimensions: Element | None) -> Size | None:
    """The size of the picture that was tagged; None if it is not given, or not given as numbers."""
    if dimensions is None:
        return None
    try:
        width, height = rdf.numbers(dimensions, DIMENSIONS, "wh", sizes=2)
    except ValueError:
        return None
    return (width, height) if width and height else None


def _alike(one: Size, other: Size) -> bool:
    """Whether two sizes have the same aspect ratio."""
    return abs(one[0] / one[1] * other[1] / other[0] - 1) <= SAME_SHAPE


def _unit(name: str | None, pixels: Size) -> Size:
    """What the coordinates of a unit are divided by to become shares of the picture's sides.

    Raises:
        ValueError: the unit is unknown.
    """
    unit = (name or "none").lower()
    if unit in ("normalized", "normalised", "relative"):
        return 1, 1
    if unit in ("percent", "%"):
        return 100, 100
    if unit not in ("pixel", "pixels", "px"):
        raise ValueError(f"its unit is {unit!r}, not pixel or a share of the sides")
    return pixels


def _people(element: Element, stored: Size) -> Iterator[_Shape]:
    for item in rdf.items(rdf.member(element, INFO + "Regions")):
        rectangle = rdf.text(item, PERSON + "Rectangle")
        if rectangle is not None:  # a person may be tagged without one
            x, y, w, h = _four(rectangle)
            if min(w, h) < 0:
                raise ValueError(f"its size is {w} by {h}")
            yield _Shape(_rectangle(x, y, x + w, y + h), "face")


def _four(text: str) -> list[float]:
    """Four numbers between commas, semicolons or spaces, whose decimal sign may be a comma too.

    Raises:
        ValueError: there are not four.
    """
    spaced = re.split(r"\s*;\s*|\s*,?\s+", text)
    parts = spaced if len(spaced) == 4 else text.split(",")
    if len(parts) == 8:  # `0,6,0,6,0,2,0,2`
        parts = [f"{whole}.{rest}" for whole, rest in zip(parts[::2], parts[1::2], strict=True)]
    if len(parts) != 4:
        raise ValueError(f"its rectangle is {text[:60]!r}, not four numbers")
    return [rdf.number(part, "its rectangle") for part in parts]


def _rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
