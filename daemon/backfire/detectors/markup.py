"""Regions from JSON: our own schema (see docs/guides/regions.md), COCO and LabelMe, told apart by their keys.

Coordinates are those of the upright picture, as annotation programs show it. Anything unreadable is an error
that says where it is, because a region that was silently left out would be published unprotected.

It is one long module because the three formats share what is asked of sizes, units and areas.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import numpy as np
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backfire.detectors.shapes import (
    Points,
    ellipse,
    region_of,
    region_of_mask,
    uncompressed,
    united,
    unrolled,
)
from backfire.errors import InputError
from backfire.imaging import decode_painting
from backfire.types import Mask, Region, composed

log = structlog.get_logger()

MOST = 1000
"""The most regions of one picture."""

MOST_AREA = 8
"""The most that the bounding boxes of all masks may cover, in areas of the picture. Otherwise a few bytes of
JSON could ask for a thousand masks of the whole picture."""

SHARE_MOST = 2
"""Shares of a picture's sides lie between 0 and 1, or a little outside where a face is cut off. A file with
larger coordinates is in pixels, and one in which none is larger is not."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[Finite, Finite]
Outline = Annotated[list[Point], Field(min_length=3, max_length=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class WrongSize(ValueError):
    """The annotations are of a picture of another size."""


class NotAnnotated(ValueError):
    """The file for all pictures of a folder has no annotation of this one."""


class _Loose(BaseModel):
    """A format of another program, whose further keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class OwnRegion(BaseModel):
    """One region: either `box` [left, top, right, bottom] or `polygon` [[x, y], …]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = "region"
    score: Share = 1.0
    box: tuple[Finite, Finite, Finite, Finite] | None = None
    polygon: Outline | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> OwnRegion:
        if (self.box is None) == (self.polygon is None):
            raise ValueError("got both or neither of 'box' and 'polygon', expected one of them")
        if self.box and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"got box {list(self.box)}, expected [left, top, right, bottom]")
        return self

    def points(self) -> Points:
        """The outline's corners."""
        if self.polygon is not None:
            return np.array(self.polygon, dtype=np.float64)
        left, top, right, bottom = self.box or (0, 0, 0, 0)
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64)


class OwnFile(BaseModel):
    """The file `NAME.regions.json`, and what the detector `command` prints.

    `unit` says whether coordinates are pixels or shares of the picture's sides. `size` [width, height], if
    given, must be that of the upright picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions: Annotated[list[OwnRegion], Field(max_length=MOST)]
    unit: Literal["pixels", "relative"] = "pixels"
    size: tuple[int, int] | None = None


class _CocoImage(_Loose):
    id: int | str
    width: int | None = None
    height: int | None = None
    file_name: str = ""


class _CocoRuns(_Loose):
    counts: list[int] | str
    size: tuple[int, int]


class _CocoAnnotation(_Loose):
    image_id: int | str
    category_id: int | str | None = None
    bbox: tuple[Finite, Finite, Finite, Finite] | None = None
    segmentation: Annotated[list[list[Finite]], Field(max_length=MOST)] | _CocoRuns | None = None
    score: Share = 1.0


class _CocoCategory(_Loose):
    id: int | str
    name: str


class _Coco(_Loose):
    images: list[_CocoImage]
    annotations: Annotated[list[_CocoAnnotation], Field(max_length=100 * MOST)]
    categories: list[_CocoCategory] = []


class _LabelmeShape(_Loose):
    label: str = "region"
    points: list[Point]
    shape_type: Literal["polygon", "rectangle", "circle", "mask"] = "polygon"
    mask: str | None = None


class _Labelme(_Loose):
    shapes: Annotated[list[_LabelmeShape], Field(max_length=MOST)]
    imageWidth: int | None = None
    imageHeight: int | None = None


def read(
    data: bytes,
    *,
    picture: str,
    width: int,
    height: int,
    detector: str,
    shared: bool = False,
    sized: bool = False,
) -> list[Region]:
    """The regions of an annotation file, without those outside the picture, which the log counts.

    Args:
        data: JSON, UTF-8.
        picture: the picture's file name, because a COCO file may annotate several pictures.
        width, height: the size of the upright picture.
        detector: the detector's name, for the regions.
        shared: whether it is a COCO file for all pictures of a folder, which need not mention this one.
        sized: whether it is known to be of this picture's size, and need not say so.

    Raises:
        WrongSize: the annotations are of a picture of another size, or only some of them lie in this one and
            the file does not state its size.
        NotAnnotated: it is shared, and has none of this picture.
        ValueError: it is not JSON or none of the three formats; the text says where.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    keys = set(document) if isinstance(document, dict) else set()
    if shared:
        if not {"images", "annotations"} <= keys or not isinstance(document["images"], list):
            raise ValueError("is no COCO file, which its name says; give it another name")
        images = document["images"]
        names = [str(one.get("file_name", "")) if isinstance(one, dict) else "" for one in images]
        document = {**document, "images": [images[i] for i in _named(picture, names)]}
        if not document["images"]:
            raise NotAnnotated
    for known, reader in _READERS.items():
        if known in keys:
            try:
                states_size, regions = reader(document, picture, width, height, detector)
                area = _Area(width, height)
                placed = [*area.taken(regions)]
                if "unit" not in document:  # which says what its numbers are
                    _require_pixels(placed, width, height)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
            if shared and not placed and not area.outside:
                raise NotAnnotated
            if placed and area.outside:
                count = f"{area.outside} of {len(placed) + area.outside}"
                if not (sized or states_size):
                    raise WrongSize(f"has {count} regions outside the picture, and does not state its size")
                log.warning("regions_outside", path=picture, detector=detector, count=count)
            return placed
    raise ValueError(
        "got none of the keys 'regions' (ours), 'annotations' (COCO) and 'shapes' (LabelMe), expected one"
    )


class _Area:
    """The area that masks may still take, see `MOST_AREA`, and how many regions lay outside the picture."""

    def __init__(self, width: int, height: int) -> None:
        self._left = MOST_AREA * width * height
        self.outside = 0

    def taken(self, regions: Iterable[Region | None]) -> Iterator[Region]:
        """Those of the regions that lie in the picture; raises ValueError if their masks take too much."""
        for region in regions:
            if region is None:
                self.outside += 1
                continue
            self._left -= 0 if region.mask is None else region.mask.size
            if self._left < 0:
                raise ValueError(
                    f"its shapes' bounding boxes cover the picture more than {MOST_AREA} times; "
                    "merge those that overlap"
                )
            yield region


def _require_pixels(regions: Sequence[Region], width: int, height: int) -> None:
    """Raises ValueError if the coordinates were shares of the picture's sides and not pixels."""
    reach = max((max(region.box.right, region.box.bottom) for region in regions), default=0)
    if 0 < reach <= SHARE_MOST < max(width, height):
        raise ValueError(
            f"all its coordinates lie between 0 and {reach}, expected pixels of {width}x{height}; multiply "
            'them by the sides, or say "unit": "relative" if the file is in our own format'
        )


_Read = tuple[bool, Iterator[Region | None]]
"""Whether a file states the picture's size, and its regions; None for one outside the picture."""


def _own(document: Any, picture: str, width: int, height: int, detector: str) -> _Read:
    file = OwnFile.model_validate(document)
    got_width, got_height = file.size or (None, None)
    stated = _require_size(got_width, got_height, width, height)
    return stated or file.unit == "relative", _own_regions(file, width, height, detector)


def _own_regions(file: OwnFile, width: int, height: int, detector: str) -> Iterator[Region | None]:
    scale = (width, height) if file.unit == "relative" else (1, 1)
    for number, region in enumerate(file.regions):
        points = region.points()
        if file.unit == "relative" and (furthest := np.abs(points).max()) > SHARE_MOST:
            raise ValueError(
                f'regions.{number}: got {furthest:g} under "unit": "relative", expected shares of the '
                'picture\'s sides, from 0 to 1; say "unit": "pixels", or divide by the sides'
            )
        yield region_of(points * scale, region.label, detector, width, height, region.score)


def _named(picture: str, names: Sequence[str]) -> list[int]:
    """Which of the names of a COCO file's images mean a picture, as positions.

    Folders do not count. If no name is the same, those are taken that a mask of this picture might have, in
    the other case or Unicode form; and if there are none either, those that are it in the spelling of URLs.
    """
    for spelled in (_base, _folded, lambda name: _folded(unquote(name))):
        wanted = spelled(picture)
        if found := [i for i, name in enumerate(names) if spelled(name) == wanted]:
            return found
    return []


def _base(name: str) -> str:
    """A name without folders, which Windows separates by backslashes."""
    return re.split(r"[/\\]", name)[-1]


def _folded(name: str) -> str:
    return composed(_base(name)).lower()


def _coco(document: Any, picture: str, width: int, height: int, detector: str) -> _Read:
    file = _Coco.model_validate(document)
    if len(file.images) == 1:
        image = file.images[0]
    else:
        named = _named(picture, [image.file_name for image in file.images])
        if len(named) != 1:
            raise ValueError(
                f"annotates {len(file.images)} pictures, {len(named)} of them named {_base(picture)}"
            )
        image = file.images[named[0]]
    stated = _require_size(image.width, image.height, width, height)
    # Some programs write a number here and its digits there.
    annotations = [one for one in file.annotations if str(one.image_id) == str(image.id)]
    if len(annotations) > MOST:
        raise ValueError(f"has more than {MOST} regions, expected at most so many")
    names = {str(category.id): category.name for category in file.categories}
    runs = any(isinstance(one.segmentation, _CocoRuns) for one in annotations)  # which state their size
    return stated or runs, _coco_regions(annotations, names, width, height, detector)


def _coco_regions(
    annotations: Sequence[_CocoAnnotation], names: Mapping[str, str], width: int, height: int, detector: str
) -> Iterator[Region | None]:
    drawn = _Area(width, height)
    for annotation in annotations:
        label = names.get(str(annotation.category_id or 0), "region")
        shape = annotation.segmentation
        if isinstance(shape, _CocoRuns):
            yield region_of_mask(_coco_mask(shape, width, height), label, detector, annotation.score)
        elif shape:
            outlines = (region_of(_corners(flat), label, detector, width, height) for flat in shape)
            if parts := [*drawn.taken(outlines)]:
                box, mask = united(parts)
                yield region_of_mask(mask, label, detector, annotation.score, at=(box.left, box.top))
            else:
                yield None
        elif annotation.bbox is not None:
            x, y, w, h = annotation.bbox
            corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
            yield region_of(corners, label, detector, width, height, annotation.score)
        else:
            raise ValueError("an annotation has neither bbox nor segmentation")


def _coco_mask(shape: _CocoRuns, width: int, height: int) -> Mask:
    """The mask H,W of a segmentation in run lengths."""
    _require_size(shape.size[1], shape.size[0], width, height)
    counts = uncompressed(shape.counts) if isinstance(shape.counts, str) else shape.counts
    return unrolled(counts, width, height)


def _corners(flat: Sequence[float]) -> Points:
    """The corners N,2 of an outline that is written as x, y, x, y, …"""
    if len(flat) < 6 or len(flat) % 2:
        raise ValueError(f"a segmentation has an outline of {len(flat)} numbers, expected x, y pairs")
    return np.array(flat, dtype=np.float64).reshape(-1, 2)


def _labelme(document: Any, picture: str, width: int, height: int, detector: str) -> _Read:
    file = _Labelme.model_validate(document)
    stated = _require_size(file.imageWidth, file.imageHeight, width, height)
    return stated, _labelme_regions(file, width, height, detector)


def _labelme_regions(file: _Labelme, width: int, height: int, detector: str) -> Iterator[Region | None]:
    for shape in file.shapes:
        points = np.array(shape.points, dtype=np.float64).reshape(-1, 2)
        expected = {"rectangle": 2, "circle": 2, "mask": 2}.get(shape.shape_type, 3)
        if len(points) < expected:
            raise ValueError(f"a {shape.shape_type} has {len(points)} points, expected {expected}")
        if shape.shape_type == "circle":  # LabelMe gives its centre and a point on it
            radius = float(np.hypot(*(points[1] - points[0])))
            points = ellipse(points[0, 0], points[0, 1], radius, radius)
        elif shape.shape_type in ("rectangle", "mask"):
            (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
            points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        if shape.shape_type == "mask":
            left, top = int(points[0, 0]), int(points[0, 1])
            if left < 0 or top < 0:
                raise ValueError(f"a mask begins at {left}, {top}, outside the picture")
            mask = _labelme_mask(shape.mask, width, height)
            inside = mask[: max(height - top, 0), : max(width - left, 0)]
            yield region_of_mask(inside, shape.label, detector, at=(left, top))
        else:
            yield region_of(points, shape.label, detector, width, height)


def _labelme_mask(encoded: str | None, width: int, height: int) -> Mask:
    """The mask of the shape's own size from a PNG in base64."""
    try:
        data = base64.b64decode(encoded or "", validate=True)
    except binascii.Error as error:
        raise ValueError(f"a mask is not base64 ({error})") from error
    try:
        painting = decode_painting(data, name="of LabelMe", max_pixels=4 * width * height + 4096)
    except InputError as error:
        raise ValueError(f"a mask cannot be read ({error})") from error
    mask: Mask = painting[..., 0] > 0
    return mask


def _require_size(got_width: int | None, got_height: int | None, width: int, height: int) -> bool:
    """Whether the size of the annotated picture is given; raises WrongSize if it is another one."""
    if not (got_width and got_height):
        return False
    if (got_width, got_height) != (width, height):
        turned = (
            " (it looks turned: annotate the upright picture)"
            if (got_width, got_height) == (height, width)
            else ""
        )
        raise WrongSize(f"is for {got_width}x{got_height} pixels{turned}")
    return True


_READERS: dict[str, Callable[[Any, str, int, int, str], _Read]] = {
    "annotations": _coco,
    "shapes": _labelme,
    "regions": _own,
}
