from __future__ import annotations

import numpy as np
import pytest

from backfire.attack_paths import cropping
from backfire.imaging import masks
from backfire.types import Box, Mask, Region


def region(box: Box, mask: Mask | None = None) -> Region:
    return Region(box, "face", 1.0, "faces", mask)


def square(size: int = 96, low: int = 40, high: int = 60) -> Mask:
    plane = np.zeros((size, size), dtype=np.bool_)
    plane[low:high, low:high] = True
    return plane


def test_near_regions_share_a_crop_and_distant_ones_do_not() -> None:
    a, b, c = Box(100, 100, 150, 150), Box(200, 100, 250, 150), Box(900, 900, 950, 950)
    crops = cropping.plan([region(a), region(b), region(c)], 1000, 1000, margin=64, work=768)
    assert sorted(len(crop.regions) for crop in crops) == [1, 2]
    assert sum(len(crop.regions) for crop in crops) == 3
    assert max(crops, key=lambda crop: len(crop.regions)).box == Box(36, 36, 314, 214)


def test_a_picture_that_editors_take_whole_is_one_crop() -> None:
    regions = [region(Box(0, 0, 20, 20)), region(Box(600, 400, 650, 450))]
    (crop,) = cropping.plan(regions, 500, 800, margin=16, work=800, whole=800)
    assert (crop.box, crop.regions, crop.scaled) == (Box(0, 0, 800, 500), tuple(regions), False)
    for height, work, whole in ((801, 1024, 800), (500, 640, 800), (500, 800, 0)):
        assert len(cropping.plan(regions, height, 800, margin=16, work=work, whole=whole)) == 2
    assert cropping.plan([], 500, 800, margin=16, work=800, whole=800) == []


def test_a_shared_crop_never_exceeds_the_working_size() -> None:
    boxes = [Box(x, 0, x + 100, 100) for x in range(0, 2000, 150)]
    crops = cropping.plan([region(box) for box in boxes], 100, 2100, margin=64, work=512)
    assert sum(len(crop.regions) for crop in crops) == len(boxes)
    assert all(crop.box.width <= 512 for crop in crops)


def test_a_crop_includes_the_regions_of_neighbours_that_reach_into_it() -> None:
    a, b = region(Box(100, 100, 400, 400)), region(Box(460, 100, 760, 400))
    crops = cropping.plan([a, b], 500, 900, margin=128, work=768)
    assert len(crops) == 2
    for crop in crops:
        assert len(crop.neighbours) == 1
        other = crop.neighbours[0].plane(500, 900)[crop.box.slices]
        assert other.any()
        assert (crop.protected() & other).sum() == other.sum()


def test_a_large_crop_is_worked_smaller_and_keeps_its_region() -> None:
    thin = np.zeros((1000, 1000), dtype=np.bool_)
    thin[500, :] = True
    (crop,) = cropping.plan([region(Box(0, 0, 1000, 1000), thin)], 1000, 1000, margin=128, work=256)
    assert crop.scaled
    assert crop.size == (256, 256)
    (mask,) = crop.masks()
    assert mask.any(axis=0).all(), "a line one pixel thin must not vanish by scaling"


def test_masks_of_trigger_and_benign_edits() -> None:
    mask = square()
    grown = masks.dilated(mask)
    assert grown[32:68, 32:68].all()
    assert grown.sum() == 36**2
    assert not (masks.ring(mask) & mask).any()
    assert (masks.ring(mask) | mask).sum() == grown.sum()
    for angle in np.linspace(0, 6, 7):
        part = masks.half(mask, float(angle))
        assert not (part & ~mask).any()
        assert 0.4 <= part.sum() / mask.sum() <= 0.6


def test_far_keeps_its_distance() -> None:
    generator = np.random.default_rng(0)
    mask = square(256, 20, 60)
    for _ in range(20):
        plane = masks.far(mask, generator)
        assert plane is not None
        assert plane.sum() >= 15**2
        assert not (masks.dilated(mask, 2 * masks.FAR + 1) & plane).any()


def test_there_is_no_far_mask_without_room() -> None:
    assert masks.far(square(96, 8, 88), np.random.default_rng(0)) is None


def test_within_fades_beyond_its_reach() -> None:
    mask = np.zeros((80, 120), np.bool_)
    mask[40, 20:30] = True
    near = masks.within(mask, 32, edge=16)
    assert (near[40, 20:30] == 1).all()
    assert near[40, 29 + 32] == 1 > near[40, 29 + 33] > near[40, 29 + 47] > 0 == near[40, 29 + 48]
    assert near[40 + 20, 29 + 20] == 1 > near[40 + 30, 29 + 30], "distances are Euclidean"


def test_a_large_region_reaches_further_than_a_small_one_and_neighbours_reach_in() -> None:
    large, small = region(Box(40, 100, 240, 320)), region(Box(400, 100, 460, 160))
    (crop,) = cropping.plan([large, small], 400, 700, margin=16, work=800, whole=800)
    near = cropping.reached(crop, 32, 0.25)
    assert near[200, 239 + 50] == 1 > near[200, 239 + 51] > 0 == near[200, 239 + 66]
    assert near[130, 459 + 32] == 1 > near[130, 459 + 33] > 0 == near[130, 459 + 48]
    assert (cropping.reached(crop, 32, 0) <= near).all()
    corner = np.zeros((60, 60), np.bool_)
    corner[-1, -1] = True
    outside, own = region(small.box, corner), region(Box(360, 60, 370, 70))
    apart = cropping.Crop(Box(350, 50, 420, 120), (own,), (70, 70), (outside,))
    assert cropping.reached(apart, 16, 0).min() == 0, "no pixel of the region lies in this crop"


def test_taper_fades_only_inside_the_picture() -> None:
    fade = cropping.taper(Box(0, 20, 100, 80), height=100, width=100)
    assert fade.shape == (60, 100)
    assert fade[30, 0] == fade[30, -1] == 1, "the edge of the picture needs no fade"
    assert fade[0, 50] < 0.1
    assert fade[30, 50] == 1


def test_masks_are_not_mutated() -> None:
    mask = square()
    before = mask.copy()
    masks.dilated(mask)
    masks.half(mask, 1.0)
    masks.far(mask, np.random.default_rng(0))
    assert np.array_equal(mask, before)


@pytest.mark.parametrize("count", [1, 2])
def test_half_of_one_or_two_pixels_is_not_empty(count: int) -> None:
    mask = np.zeros((8, 8), dtype=np.bool_)
    mask[4, 4 : 4 + count] = True
    assert masks.half(mask, 0.0).any()


def disc(size: int = 64, radius: int = 14) -> Mask:
    rows, columns = np.ogrid[:size, :size]
    plane: Mask = (rows - size // 2) ** 2 + (columns - size // 2) ** 2 <= radius**2
    return plane


@pytest.mark.parametrize("share", [0.5, 0.75, 1.25, 1.5])
def test_covering_has_the_area_asked_for(share: float) -> None:
    mask = disc()
    other = masks.covering(mask, share)
    assert other.sum() == pytest.approx(share * mask.sum(), abs=1)
    assert (other & ~mask).any() == (share > 1)
    assert (other <= mask).all() == (share < 1)


def test_covering_cannot_leave_the_plane() -> None:
    full = np.ones((8, 8), dtype=np.bool_)
    assert masks.covering(full, 1.5).all()


def test_eroded_never_loses_a_region() -> None:
    assert masks.eroded(disc()).sum() < disc().sum()
    thin = np.zeros((32, 32), dtype=np.bool_)
    thin[10, 5:20] = True
    assert np.array_equal(masks.eroded(thin), thin)


def test_shifted_moves_and_never_vanishes() -> None:
    mask = disc()
    moved = masks.shifted(mask, 5, -7)
    assert np.array_equal(moved[5:, :-7], mask[:-5, 7:])
    assert np.array_equal(masks.shifted(mask, 500, 0), mask)


def test_a_stroke_touches_the_region_and_stays_near_it() -> None:
    mask = disc()
    for seed in range(20):
        plane = masks.stroke(mask, np.random.default_rng(seed))
        assert (plane & mask).any()
        assert not (plane & ~masks.dilated(masks.bounding(mask))).any()


@pytest.mark.parametrize("shape", ["disc", "line", "pixel", "two"])
def test_a_contour_is_drawn_in_unevenly_and_never_to_nothing(shape: str) -> None:
    rows, columns = np.ogrid[:96, :96]
    mask = {
        "disc": (rows - 48) ** 2 + (columns - 48) ** 2 <= 900,
        "line": (rows == 40) & (columns > 10),
        "pixel": (rows == 5) & (columns == 7),
        "two": ((rows < 30) & (columns < 30)) | ((rows > 70) & (columns > 80)),
    }[shape]
    before = mask.copy()
    drawn = [masks.drawn_in(mask, np.random.default_rng(seed)) for seed in range(8)]
    assert np.array_equal(mask, before)
    assert all(one.any() and not (one & ~mask).any() for one in drawn)
    if shape == "disc":
        areas = [float(one.sum() / mask.sum()) for one in drawn]
        assert 0.25 <= min(areas) < max(areas) < 1
        assert len({one.tobytes() for one in drawn}) == 8
        # More is removed on one side than on the other.
        assert any(abs(int(one[:, :48].sum()) - int(one[:, 49:].sum())) > 60 for one in drawn)


def test_an_uneven_contour_moves_in_and_out_by_a_share_of_the_depth() -> None:
    rows, columns = np.ogrid[:96, :96]
    mask = (rows - 48) ** 2 + (columns - 48) ** 2 <= 900
    drawn = [masks.uneven(mask, np.random.default_rng(seed)) for seed in range(8)]
    assert len({one.tobytes() for one in drawn}) == 8
    reach = round(masks.UNEVEN * 30) + 1
    core, around = masks.eroded(mask, 2 * reach + 1), masks.dilated(mask, 2 * reach + 1)
    for one in drawn:
        assert one[core].all()
        assert not one[~around].any()
        assert (one & ~mask).any()
        assert (mask & ~one).any()
    same = masks.uneven(mask, np.random.default_rng(3))
    assert np.array_equal(same, drawn[3])
    dot = (rows == 5) & (columns == 7)
    assert masks.uneven(dot, np.random.default_rng(0)).any()
    assert masks.uneven(np.ones((9, 9), np.bool_), np.random.default_rng(0)).any()
