"""Regions from JSON: our own schema (see docs/guides/regions.md), COCO and LabelMe, told apart by their keys.

Coordinates are those of the upright picture, as annotation programs show it. Anything unreadable is an error
that says where it is, because a region that was silently left out would be published unprotected.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backfire.detectors.shapes import Points, ellipse, region_of, region_of_mask, uncompressed, unrolled
from backfire.imaging import decode_painting
from backfire.types import Mask, Region

MOST = 1000
"""The most regions of one picture."""

MOST_AREA = 8
"""The most that the bounding boxes of all masks may cover, in areas of the picture. Otherwise a few bytes of
JSON could ask for a thousand masks of the whole picture."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[Finite, Finite]
Outline = Annotated[list[Point], Field(min_length=3, max_length=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class WrongSize(ValueError):
    """The annotations are of a picture of another size."""


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
    data: bytes, *, picture: str, width: int, height: int, detector: str, shared: bool = False
) -> list[Region]:
    """The regions of an annotation file, without those outside the picture.

    Args:
        data: JSON, UTF-8.
        picture: the picture's file name, because a COCO file may annotate several pictures.
        width, height: the size of the upright picture.
        detector: the detector's name, for the regions.
        shared: whether it is a COCO file for all pictures of a folder, which need not mention this one.

    Raises:
        WrongSize: the annotations are of a picture of another size.
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
        document = {**document, "images": [one for one in document["images"] if _is_named(one, picture)]}
        if not document["images"]:
            return []
    for known, reader in _READERS.items():
        if known in keys:
            try:
                return _bounded(reader(document, picture, width, height, detector), width * height)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
    raise ValueError(
        "got none of the keys 'regions' (ours), 'annotations' (COCO) and 'shapes' (LabelMe), expected one"
    )


def _bounded(regions: Iterator[Region], area: int) -> list[Region]:
    """The regions as a list; raises ValueError if they or their masks are too many to hold in memory."""
    kept: list[Region] = []
    masks = 0
    for region in regions:
        kept.append(region)
        masks += 0 if region.mask is None else region.mask.size
        if len(kept) > MOST:
            raise ValueError(f"has more than {MOST} regions, expected at most so many")
        if masks > MOST_AREA * area:
            raise ValueError(
                f"its shapes' bounding boxes cover the picture more than {MOST_AREA} times; "
                "merge those that overlap"
            )
    return kept


def own(document: Any, picture: str, width: int, height: int, detector: str) -> Iterator[Region]:
    """The regions of our own schema."""
    file = OwnFile.model_validate(document)
    if file.size is not None:
        _require_size(*file.size, width, height)
    scale = (width, height) if file.unit == "relative" else (1, 1)
    for region in file.regions:
        placed = region_of(region.points() * scale, region.label, detector, width, height, region.score)
        if placed is not None:
            yield placed


def _is_named(image: object, picture: str) -> bool:
    """Whether an image of a COCO file is a picture, by its name without folders."""
    name = image.get("file_name") if isinstance(image, dict) else None
    return isinstance(name, str) and name.rpartition("/")[2] == picture.rpartition("/")[2]


def _coco(document: Any, picture: str, width: int, height: int, detector: str) -> Iterator[Region]:
    file = _Coco.model_validate(document)
    if len(file.images) == 1:
        image = file.images[0]
    else:
        base = picture.rpartition("/")[2]
        named = [image for image in file.images if image.file_name.rpartition("/")[2] == base]
        if len(named) != 1:
            raise ValueError(f"annotates {len(file.images)} pictures, {len(named)} of them named {base}")
        image = named[0]
    _require_size(image.width, image.height, width, height)
    names = {category.id: category.name for category in file.categories}
    for annotation in file.annotations:
        if annotation.image_id != image.id:
            continue
        label = names.get(annotation.category_id or 0, "region")
        plane = _coco_mask(annotation, width, height)
        if plane is not None:
            placed = region_of_mask(plane, label, detector, annotation.score)
        elif annotation.bbox is not None:
            x, y, w, h = annotation.bbox
            corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
            placed = region_of(corners, label, detector, width, height, annotation.score)
        else:
            raise ValueError("an annotation has neither bbox nor segmentation")
        if placed is not None:
            yield placed


def _coco_mask(annotation: _CocoAnnotation, width: int, height: int) -> Mask | None:
    """The mask H,W of an annotation's segmentation; None if it has none."""
    shape = annotation.segmentation
    if not shape:
        return None
    if isinstance(shape, _CocoRuns):
        _require_size(shape.size[1], shape.size[0], width, height)
        counts = uncompressed(shape.counts) if isinstance(shape.counts, str) else shape.counts
        return unrolled(counts, width, height)
    plane = np.zeros((height, width), dtype=np.bool_)
    for outline in shape:
        if len(outline) < 6 or len(outline) % 2:
            raise ValueError(f"a segmentation has an outline of {len(outline)} numbers, expected x, y pairs")
        part = region_of(np.array(outline).reshape(-1, 2), "", "", width, height)
        if part is not None:
            plane[part.box.slices] |= True if part.mask is None else part.mask
    return plane


def _labelme(document: Any, picture: str, width: int, height: int, detector: str) -> Iterator[Region]:
    file = _Labelme.model_validate(document)
    _require_size(file.imageWidth, file.imageHeight, width, height)
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
            plane = _labelme_mask(shape.mask, int(points[0, 0]), int(points[0, 1]), width, height)
            placed = region_of_mask(plane, shape.label, detector)
        else:
            placed = region_of(points, shape.label, detector, width, height)
        if placed is not None:
            yield placed


def _labelme_mask(encoded: str | None, left: int, top: int, width: int, height: int) -> Mask:
    """The mask H,W from a PNG of the shape's own size in base64."""
    try:
        data = base64.b64decode(encoded or "", validate=True)
    except binascii.Error as error:
        raise ValueError(f"a mask is not base64 ({error})") from error
    mask = decode_painting(data, name="of LabelMe", max_pixels=4 * width * height + 4096)[..., 0] > 0
    if left < 0 or top < 0:
        raise ValueError(f"a mask begins at {left}, {top}, outside the picture")
    plane = np.zeros((height, width), dtype=np.bool_)
    part = mask[: max(height - top, 0), : max(width - left, 0)]
    plane[top : top + part.shape[0], left : left + part.shape[1]] = part
    return plane


def _require_size(got_width: int | None, got_height: int | None, width: int, height: int) -> None:
    if got_width and got_height and (got_width, got_height) != (width, height):
        turned = (
            " (it looks turned: annotate the upright picture)"
            if (got_width, got_height) == (height, width)
            else ""
        )
        raise WrongSize(f"is for {got_width}x{got_height} pixels{turned}")


_READERS: dict[str, Callable[[Any, str, int, int, str], Iterator[Region]]] = {
    "annotations": _coco,
    "shapes": _labelme,
    "regions": own,
}
