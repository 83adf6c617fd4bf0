"""Runs the configured detectors on a picture and makes one list of their regions.

Importing this module loads no torch, so that `backfire detect` starts quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import structlog

from backfire import detectors
from backfire.config import Regions
from backfire.detectors import Detector, Source
from backfire.detectors.fixed import WholeDetector
from backfire.detectors.shapes import joined_to, merged, within
from backfire.errors import ConfigError, InputError, NoRegionError
from backfire.imaging import Picture, masks
from backfire.types import Box, Region

log = structlog.get_logger()

COVERED = 0.9
"""A region is dropped if at least this share of it lies under a region of another detector."""


@dataclass(frozen=True)
class Found:
    """The regions of a picture, and the detectors that failed.

    Attributes:
        regions: the regions in the order of the detectors, padded, merged and clipped as configured.
        skipped: by name of a detector that failed under `on_error: skip`, its error.
    """

    regions: list[Region]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One sentence for each skipped detector."""
        return [f"detector {name} failed and was skipped: {error}" for name, error in self.skipped.items()]


@lru_cache(maxsize=16)
def loaded(name: str, settings: Regions) -> Detector:
    """A detector, loaded once in a process, because the text networks take a fifth of a second."""
    return detectors.get(name, settings)


def find(
    picture: Picture,
    source: Source,
    settings: Regions,
    *,
    reviewed: bool = False,
    get: Callable[[str, Regions], Detector] = loaded,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """The regions that all configured detectors find.

    Args:
        picture: the decoded picture; its metadata are added to `source` for the detectors.
        source: its name and its sidecars.
        reviewed: somebody holds pictures without a region for review, as the daemon does; otherwise
            `none_found: review` is an error like `fail`.
        get: gives the detector of a name.
        progress: called with (done, total) before each detector.

    Returns:
        No regions only under `none_found: pass`, or `review` if `reviewed`. Under `whole`, a grid that
        covers the picture replaces them.

    Raises:
        InputError: a sidecar or the metadata cannot be used, or nothing was found under another policy.
        ModelError: a detector failed under `on_error: fail`.
        ConfigError: no detector has a name that is configured, or it lacks a setting.
    """
    source = replace(
        source, packets=picture.metadata.packets, orientation=picture.metadata.turned or picture.orientation
    )
    regions: list[Region] = []
    skipped: dict[str, str] = {}
    for number, name in enumerate(settings.detectors):
        progress(number, len(settings.detectors))
        try:
            regions += get(name, settings).detect(picture.rgb, source=source)
        except (InputError, ConfigError):
            raise  # the producer's masks and annotations must never be skipped
        except Exception as error:
            if settings.on_error == "fail":
                raise
            skipped[name] = str(error)
            log.warning("detector_skipped", path=source.name, detector=name, error=str(error))
    height, width = picture.rgb.shape[:2]
    found = Found(_arranged(regions, height, width, settings), skipped)
    if found.regions or settings.none_found == "pass" or (reviewed and settings.none_found == "review"):
        return found
    if settings.none_found == "whole":
        return replace(found, regions=WholeDetector().detect(picture.rgb, source=source))
    names = ", ".join(settings.detectors)
    said = f"{source.name}: no region found by {names}; nothing would be protected"
    raise NoRegionError(said, found.notes)


def _arranged(regions: list[Region], height: int, width: int, settings: Regions) -> list[Region]:
    """The regions padded and clipped, without those that others cover, and merged if near or too many."""
    kept = _without_repeats([padded(region, settings.pad_px, height, width) for region in regions])
    if settings.merge_px is not None:
        kept = merged(kept, _closer_than(settings.merge_px))
    return joined_to(kept, settings.most)


def _closer_than(reach: int) -> Callable[[Region, Region], bool]:
    """Whether two regions' boxes lie within `reach` pixels of each other."""
    return lambda a, b: a.box.overlaps(
        Box(b.box.left - reach, b.box.top - reach, b.box.right + reach, b.box.bottom + reach)
    )


def padded(region: Region, margin: int, height: int, width: int) -> Region:
    """A region grown by `margin` pixels on all sides within the picture, its mask included."""
    if not margin:
        return region
    box = region.box.grown(margin, width, height)
    if region.mask is None:
        return replace(region, box=box)
    plane = np.zeros((box.height, box.width), dtype=np.bool_)
    top, left = region.box.top - box.top, region.box.left - box.left
    plane[top : top + region.box.height, left : left + region.box.width] = region.mask
    return replace(region, box=box, mask=masks.dilated(plane, 2 * margin + 1))


def _without_repeats(regions: list[Region]) -> list[Region]:
    """The regions without those that a region of an earlier detector covers, such as a face under a mask."""
    kept: list[Region] = []
    for region in regions:
        rivals = [other for other in kept if other.detector != region.detector]
        if not any(_covers(other, region) for other in rivals):
            kept.append(region)
    return kept


def _covers(region: Region, other: Region) -> bool:
    """Whether nearly all of the other's shape lies under the shape of this region, not only under its box."""
    if not region.box.overlaps(other.box):
        return False
    under = within(region, other.box)
    return bool((under if other.mask is None else under[other.mask]).mean() >= COVERED)
