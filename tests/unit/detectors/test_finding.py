"""The regions of all detectors together: covered ones are dropped, others padded, merged and counted."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backfire.config import FixedBox, Regions
from backfire.detectors import Detector, Source, check, run
from backfire.detectors.shapes import joined_to, scaled
from backfire.errors import Code, ConfigError, InputError, ModelError
from backfire.imaging import Picture, tags
from backfire.imaging.metadata import Metadata
from backfire.imaging.tags import Directory
from backfire.types import Box, Mask, Region, Rgb
from tests.support.regions import area, mwg, xmp

RGB: Rgb = np.zeros((400, 600, 3), dtype=np.uint8)


def pictured(rgb: Rgb) -> Picture:
    return Picture(rgb, rgb, "PNG", "RGB", alpha=None)


class Fixed:
    def __init__(self, *regions: Region) -> None:
        self.regions = list(regions)

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        return self.regions


def found(mask: Region, face: Region) -> list[str]:
    by_name = {"sidecar": Fixed(mask), "faces": Fixed(face)}
    result = run.find(pictured(RGB), Source("p.png"), Regions(), get=lambda name, _: by_name[name])
    return [region.detector for region in result.regions]


FACE = Region(Box(250, 150, 330, 240), "face", 0.99, "faces")


def test_a_face_under_a_painted_mask_is_one_region() -> None:
    mask = Region(Box(240, 140, 340, 250), "mask", 1.0, "sidecar")
    assert found(mask, FACE) == ["sidecar"]


def test_a_face_inside_a_frame_is_protected_too() -> None:
    """The bounding box of the mask covers the face, but the mask does not."""
    frame = np.ones((400, 600), dtype=np.bool_)
    frame[20:-20, 20:-20] = False
    mask = Region(Box(0, 0, 600, 400), "mask", 1.0, "sidecar", frame)
    assert found(mask, FACE) == ["sidecar", "faces"]


@pytest.mark.parametrize("same", [True, False])
def test_shapes_that_two_detectors_found_are_one_region(same: bool) -> None:
    """The shapes must be the same; equal boxes do not suffice."""
    rows, columns = np.mgrid[:60, :100]
    line = np.abs(rows - 10 - 0.4 * columns) < 9
    mark = Region(Box(100, 50, 200, 110), "signature", 0.9, "signatures", line)
    text = Region(Box(101, 50, 201, 110), "text", 0.9, "text", line if same else ~line)
    assert found(mark, text) == (["signatures"] if same else ["signatures", "text"])


@pytest.mark.parametrize("size", [(100, 100), (600, 400), (5000, 300), (8, 8), (257, 257), (800, 533)])
def test_none_found_whole_makes_regions_of_the_whole_picture(size: tuple[int, int]) -> None:
    rgb: Rgb = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    settings = Regions(detectors=("sidecar",), none_found="whole")
    regions = run.find(pictured(rgb), Source("p.png"), settings).regions
    covered = sum(region.plane(size[1], size[0]).astype(int) for region in regions)
    assert (np.asarray(covered) == 1).all()
    assert len(regions) <= 16
    for side in ("width", "height"):
        lengths = [getattr(region.box, side) for region in regions]
        assert max(lengths) - min(lengths) <= 1, "no cell is a sliver"


def test_a_picture_without_regions_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(InputError, match="none_found") as caught:
        run.find(pictured(RGB), Source("p.png"), Regions(detectors=("sidecar",)))
    assert caught.value.code == Code.NO_REGION


def every(*regions: Region, **settings: Any) -> list[Region]:
    names = Regions(detectors=("sidecar",), **settings)
    return run.find(pictured(RGB), Source("p.png"), names, get=lambda *_: Fixed(*regions)).regions


def plain(*box: int, label: str = "a", mask: Mask | None = None) -> Region:
    return Region(Box(*box), label, 0.5, "sidecar", mask)


def test_regions_are_padded_and_clipped() -> None:
    disc = np.hypot(*np.mgrid[-20:20, -20:20]) < 20
    square, round_one = every(plain(0, 10, 50, 60), plain(300, 300, 340, 340, mask=disc), pad_px=8)
    assert (square.box, square.mask) == (Box(0, 2, 58, 68), None)
    assert round_one.box == Box(292, 292, 348, 348)
    assert round_one.mask is not None
    assert not round_one.mask[0, 0]
    before = np.zeros((400, 600), dtype=np.bool_)
    before[300:340, 300:340] = disc
    assert not (before & ~round_one.plane(400, 600)).any()


def test_regions_near_each_other_become_one_shape() -> None:
    three = plain(0, 0, 50, 50), plain(60, 0, 100, 50, label="b"), plain(110, 40, 150, 90)
    far = plain(300, 300, 340, 340)
    assert len(every(*three, far)) == 4
    one, other = every(*three, far, merge_px=12)
    assert (one.box, one.label, one.detector) == (Box(0, 0, 150, 90), "a+b", "sidecar")
    total = sum(region.plane(400, 600).astype(int) for region in three)
    np.testing.assert_array_equal(one.plane(400, 600), np.asarray(total) > 0)
    assert other is far


def test_too_many_regions_are_joined_and_none_is_lost() -> None:
    regions = [plain(x, y, x + 8, y + 8) for x in range(0, 600, 40) for y in range(0, 400, 100)]
    few = every(*regions, most=5)
    assert len(few) == 5
    assert sum(one.joined for one in few) == len(regions)
    for region in regions:
        assert any((one.plane(400, 600) & region.plane(400, 600)).sum() == 64 for one in few)


def test_no_more_regions_are_joined_than_must_be() -> None:
    """A class photo: faces at even distances, the nearest of which would all be near each other."""
    faces = [plain(20 + 60 * x, 20 + 120 * y, 50 + 60 * x, 50 + 120 * y) for y in range(3) for x in range(9)]
    assert every(*faces, most=27) == faces
    few = every(*faces, most=24)
    assert sorted(one.joined for one in few) == [1] * 21 + [2] * 3
    assert max(one.box.width for one in few) == 90, "neighbours, and nobody across the rows"
    near = plain(300, 360, 330, 390), plain(332, 360, 362, 390)
    assert every(*faces, *near, most=28)[-1].box == Box(300, 360, 362, 390)


def test_thousands_of_regions_are_joined_at_once() -> None:
    placed = np.random.default_rng(0).integers(0, (4000, 3000), (3000, 2)).tolist()
    many = [plain(x, y, x + 8, y + 8) for x, y in placed] + [plain(0, 0, 4000, 3000)]
    began = time.process_time()
    assert len(joined_to(many, 24)) == 24
    assert time.process_time() - began < 5


def test_joining_a_crowd_takes_the_memory_of_few_planes() -> None:
    crowd = [plain(x, y, x + 8, y + 8) for x in range(0, 600, 40) for y in range(0, 400, 40)]
    tracemalloc.start()
    try:
        every(*crowd, merge_px=40)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * RGB[..., 0].size, "and not of one for each of 150 regions"


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        raise self.error


def failing(error: Exception, **settings: Any) -> run.Found:
    by_name: dict[str, Detector] = {"text": Failing(error), "sidecar": Fixed(plain(0, 0, 9, 9))}
    names = Regions(detectors=("text", "sidecar"), **settings)
    return run.find(pictured(RGB), Source("p.png"), names, get=lambda name, _: by_name[name])


@pytest.mark.parametrize("error", [ModelError(Code.DETECTOR, "no weights"), ZeroDivisionError("oops")])
def test_a_detector_that_fails_fails_the_job_or_is_reported(error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)
    found = failing(error, on_error="skip")
    assert len(found.regions) == 1
    assert found.skipped == {"text": str(error)}
    assert str(error) in found.notes[0]


def test_progress_is_told_between_detectors() -> None:
    """A worker that tells nothing for `limits.silence_s` is killed as hung."""
    told: list[tuple[int, int]] = []
    settings = Regions(detectors=("sidecar", "whole"))
    run.find(pictured(RGB), Source("p.png"), settings, progress=lambda *one: told.append(one))
    assert told == [(0, 2), (1, 2)]


def test_a_bad_mask_is_never_skipped() -> None:
    with pytest.raises(InputError):
        failing(InputError(Code.MASK_EMPTY, "marks nothing"), on_error="skip")


def test_detectors_get_the_metadata_of_the_picture() -> None:
    packet = xmp(mwg(area(0.5, 0.5, 0.1, 0.1)))
    turned = Directory().having({0x0112: (tags.SHORT, [3])})
    picture = replace(pictured(RGB), metadata=Metadata(exif=turned, packets=(packet,)))
    found = run.find(picture, Source("p.png"), Regions(detectors=("metadata",)))
    assert [region.box for region in found.regions] == [Box(270, 180, 330, 220)]


def test_fixed_boxes_in_both_units() -> None:
    boxes = (
        FixedBox(box=(0.5, 0.75, 1, 1), label="bug"),
        FixedBox(box=(10, 20, 700, 30), unit="pixels"),
        FixedBox(box=(600, 0, 700, 30), unit="pixels"),
    )
    found = run.find(pictured(RGB), Source("p.png"), Regions(detectors=("fixed",), fixed=boxes))
    placed = [(region.box, region.label) for region in found.regions]
    assert placed == [(Box(300, 300, 600, 400), "bug"), (Box(10, 20, 600, 30), "fixed")]


@pytest.mark.parametrize("name", ["fixed", "logos", "command", "onnx", "torchscript"])
def test_a_detector_without_its_setting_is_refused_at_start(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} needs regions\.{name}"):
        check(Regions(detectors=(name,)))


def test_regions_follow_a_picture_that_is_scaled_down() -> None:
    stroke = np.zeros((40, 90), dtype=np.bool_)
    stroke[np.arange(40), np.arange(40) * 2] = True  # a line one pixel thin
    region = Region(Box(31, 17, 121, 57), "mask", 1.0, "sidecar", stroke)
    small = scaled(region, (400, 600), (133, 200))
    assert small.box == Box(10, 5, 41, 19)
    assert small.mask is not None
    assert small.mask.shape == (14, 31)
    there = np.argwhere(small.plane(133, 200))
    for row, column in np.argwhere(region.plane(400, 600)):
        at = (row + 0.5) * 133 / 400, (column + 0.5) / 3
        assert (np.abs(there + 0.5 - at).max(axis=1) <= 0.5).any(), "no pixel of the line is lost"
    assert small.mask.mean() < 0.15, "and little is added"
    box = scaled(Region(Box(399, 0, 600, 400), "face", 1.0, "faces"), (400, 600), (200, 300))
    assert (box.box, box.mask) == (Box(199, 0, 300, 200), None)
    dot = scaled(Region(Box(599, 399, 600, 400), "dot", 1.0, "fixed"), (400, 600), (2, 3))
    assert dot.box == Box(2, 1, 3, 2)


def test_regions_follow_a_picture_that_is_scaled_up() -> None:
    half = np.zeros((40, 90), dtype=np.bool_)
    half[:, :45] = True
    large = scaled(Region(Box(31, 17, 121, 57), "mask", 1.0, "sidecar", half), (400, 600), (1000, 1500))
    assert large.box == Box(77, 42, 303, 143)
    assert large.mask is not None
    assert large.mask.shape == (101, 226)
    assert large.mask[:, :112].all()
    assert not large.mask[:, 114:].any()
