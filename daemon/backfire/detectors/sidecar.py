"""The detector `sidecar`: masks and annotations beside a picture, as regions of their exact shape.

A file whose name ends in `.json` is an annotation (see `markup`); any other is a painted mask.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray
from scipy import ndimage

from backfire.advice import DOCUMENTATION
from backfire.config import Sidecars
from backfire.detectors import Sidecar, Source, markup, paints
from backfire.errors import Code, InputError
from backfire.files import inbox
from backfire.imaging import decode_painting
from backfire.types import Box, Mask, Region, Rgb

log = structlog.get_logger()

NEAR = 16
"""Parts of a mask closer than this, in pixels, form one region, so that a signature is one and not many
strokes."""

MOST = 16
"""The most regions. Each costs optimisation and verification, and a noisy mask has thousands of specks."""

COLOURS = 32
"""A painted mask of at most this many colours, not all grey, has regions for each paint; more are shades."""


class SidecarDetector:
    """Turns mask and annotation files into regions; needs no model.

    Args:
        settings: which paint marks what is protected, and from which level on.
    """

    def __init__(self, settings: Sidecars = Sidecars()) -> None:  # noqa: B008 (frozen)
        self._settings = settings

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        """The regions of all files; see `Detector.detect`.

        Several painted masks count as their union, with one region for each group of marked parts that lie
        near each other. Every marked pixel is in the mask of a region, and no other pixel is in any. If the
        colours tell regions apart, each paint is grouped by itself, see `paints`; then a pixel is in two
        regions where two files paint it in different ones, and otherwise in one.

        Raises:
            InputError: `MASK_UNREADABLE`, a file cannot be read; `MASK_SIZE`, it has not the size of the
                upright picture; `MASK_EMPTY`, it marks nothing.
        """
        annotated = [s for s in source.sidecars if s.name.lower().endswith(".json")]
        painted = [s for s in source.sidecars if s not in annotated]
        regions = _painted_regions(painted, source, image.shape[:2], self._settings)
        for sidecar in annotated:
            regions += _annotated_regions(sidecar, source, image.shape[:2])
        return regions


def marked(painting: NDArray[np.uint8], settings: Sidecars) -> Mask:
    """The mask H,W bool, True = protected, of a painting H,W,4 RGBA.

    A pixel's level is that of the brightest of R, G and B, so that pure blue is the same as white. Under
    `protected: white` a pixel is protected if its level is the threshold or more, under `black` if it is
    less. A fully transparent pixel is never protected, because its colour cannot be seen and depends on the
    editor. Where all other pixels have the same colour and only the transparency differs, a pixel is
    protected under both if its alpha is the threshold or more.
    """
    if _painted_in_alpha(painting):
        opaque: Mask = painting[..., 3] >= settings.threshold
        return opaque
    bright: Mask = painting[..., :3].max(axis=2) >= settings.threshold
    return (painting[..., 3] > 0) & (~bright if settings.protected == "black" else bright)


def _painted_in_alpha(painting: NDArray[np.uint8]) -> bool:
    alpha = painting[..., 3]
    shown = painting[alpha > 0][:, :3]
    return bool(np.ptp(alpha)) and bool((shown == shown[:1]).all())


def _painted_regions(
    sidecars: Sequence[Sidecar], source: Source, shape: tuple[int, int], settings: Sidecars
) -> list[Region]:
    layers: dict[str, Mask] = {}
    for sidecar in sidecars:
        painting = _painting(sidecar, source, shape)
        mask = marked(painting, settings)
        if not mask.any():
            raise InputError(Code.MASK_EMPTY, f"mask {sidecar.name}: {_nothing_in(painting, settings)}")
        for label, layer in _layers(painting, mask, settings).items():
            layers[label] = layers.get(label, np.zeros(shape, dtype=np.bool_)) | layer
    return [region for label, layer in layers.items() for region in _grouped(layer, label)]


def _nothing_in(painting: NDArray[np.uint8], settings: Sidecars) -> str:
    """Why a painting marks nothing, and what to do about it."""
    threshold = f"{settings.threshold} (regions.sidecar.threshold)"
    if _painted_in_alpha(painting):
        got = (
            f"its most opaque pixel has level {painting[..., 3].max()} of 255, expected at least {threshold}"
        )
        return f"marks nothing: {got}; make the region opaque, or remove the mask"
    levels = painting[painting[..., 3] > 0][:, :3].max(axis=1)
    if not levels.size:
        return "marks nothing: all its pixels are fully transparent; paint the region, or remove the mask"
    if settings.protected == "black":
        got = f"its darkest pixel has level {levels.min()} of 255, expected less than {threshold}"
    else:
        got = f"its brightest pixel has level {levels.max()} of 255, expected at least {threshold}"
    return (
        f"marks nothing: {got} for regions.sidecar.protected: {settings.protected}; "
        f"paint the region {settings.protected}, or remove the mask"
    )


def _painting(sidecar: Sidecar, source: Source, shape: tuple[int, int]) -> NDArray[np.uint8]:
    # A mask of the wrong size is decoded up to a limit, so that the message can say its size.
    height, width = shape
    limit = max(4 * height * width, 1 << 22)
    painting = decode_painting(sidecar.data, name=sidecar.name, max_pixels=limit)
    if painting.shape[:2] != shape:
        got_height, got_width = painting.shape[:2]
        turned = (
            " (it looks turned: apply the picture's orientation to it)"
            if (got_height, got_width) == (width, height)
            else ""
        )
        raise InputError(
            Code.MASK_SIZE,
            f"mask {sidecar.name}: got {got_width}x{got_height} pixels, expected the {width}x{height} "
            f"of the upright {source.name}; export the mask at the picture's size{turned}",
        )
    return painting


def _layers(painting: NDArray[np.uint8], mask: Mask, settings: Sidecars) -> dict[str, Mask]:
    """The marked pixels by label: `mask`, or one label per paint if a few colours tell regions apart."""
    if settings.protected == "white":
        painted = painting[mask]
        colours = np.unique(paints.codes(painted))
        if len(colours) <= COLOURS and np.ptp(painted[:, :3], axis=1).any():
            layers = paints.separated(painting, mask, colours, reach=NEAR)
            return {f"mask #{colour:06x}": layer for colour, layer in layers.items()}
    return {"mask": mask}


def _annotated_regions(sidecar: Sidecar, source: Source, shape: tuple[int, int]) -> list[Region]:
    height, width = shape
    subject = f"annotations {sidecar.name}"
    size = f"the {width}x{height} of the upright {source.name}"
    shared = inbox.is_for_folder(os.fsencode(sidecar.name))
    try:
        regions = markup.read(
            sidecar.data,
            picture=source.name,
            width=width,
            height=height,
            detector="sidecar",
            shared=shared,
        )
    except markup.NotAnnotated:
        log.info("no_annotation", path=source.name, annotations=sidecar.name)
        return []
    except markup.WrongSize as error:
        message = f"{subject}: {error}, expected {size}; annotate this very picture"
        raise InputError(Code.MASK_SIZE, message) from error
    except ValueError as error:
        remedy = f"see {DOCUMENTATION}docs/guides/regions.md for what is read, or remove the file"
        message = f"{subject}: {error}; {remedy}"
        raise InputError(Code.MASK_UNREADABLE, message) from error
    if not regions:
        message = f"{subject}: no region lies within {size}; mark what is to be protected, or remove the file"
        raise InputError(Code.MASK_EMPTY, message)
    return regions


def _grouped(marked: Mask, label: str) -> list[Region]:
    """Groups of marked pixels in reading order; the distance that joins them grows until there are few
    enough.

    Parts are grouped on a grid of cells of `reach` pixels. Those closer than `reach` lie in neighbouring
    cells and are always joined; those more than twice as far apart never are.
    """
    reach = NEAR
    while True:
        cells, count = ndimage.label(_grid(marked, reach), structure=np.ones((3, 3)))
        if count <= MOST:
            break
        reach *= 2
    return [_region(marked, cells == number, reach, label) for number in range(1, count + 1)]


def _grid(marked: Mask, cell: int) -> Mask:
    """The cells of `cell` x `cell` pixels that hold a marked pixel, as a mask."""
    height, width = marked.shape
    rows = np.logical_or.reduceat(marked, np.arange(0, height, cell), axis=0)
    cells: Mask = np.logical_or.reduceat(rows, np.arange(0, width, cell), axis=1)
    return cells


def _region(marked: Mask, cells: Mask, cell: int, label: str) -> Region:
    """The marked pixels of one group of cells."""
    left, top, right, bottom = (edge * cell for edge in Box.around(cells))
    member = cells[top // cell : bottom // cell, left // cell : right // cell]
    part = marked[top:bottom, left:right]
    part = part & member.repeat(cell, axis=0).repeat(cell, axis=1)[: part.shape[0], : part.shape[1]]
    tight = Box.around(part)
    box = Box(left + tight.left, top + tight.top, left + tight.right, top + tight.bottom)
    return Region(box, label=label, score=1.0, detector="sidecar", mask=part[tight.slices].copy())
