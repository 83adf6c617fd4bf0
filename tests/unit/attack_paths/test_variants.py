"""Sizes in which a region may reach an editor, and how the perturbation of a crop lies in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from backfire.attack_paths import cropping, variants
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.tensors import crop_tensor
from backfire.types import Box, Region, Rgb
from tests.support.pictures import photo

CPU = torch.device("cpu")


def planned(width: int, height: int, *boxes: Box, work: int = 768) -> list[Crop]:
    regions = [Region(box, "face", 1.0, "faces") for box in boxes]
    return cropping.plan(regions, height, width, margin=128, work=work)


def drawn(crop: Crop, width: int, height: int, *robust_to: str) -> list[Crop]:
    rng = np.random.default_rng(0)
    return variants.for_optimiser(crop.regions[0], crop, crop.regions, height, width, robust_to, rng)


def test_other_sizes_are_drawn_in_their_ranges_where_they_are_asked_for() -> None:
    (crop,) = planned(1200, 900, Box(500, 400, 600, 480))
    assert drawn(crop, 1200, 900, "jpeg") == []
    sizes = [one.size[0] / one.box.height for one in drawn(crop, 1200, 900, "resize")]
    assert sizes[0] == pytest.approx(0.5, abs=0.01)
    assert 0.5 < sizes[1] < 1 < sizes[2] <= 1.51


def test_a_large_picture_is_not_scaled_beyond_the_size_that_editors_get() -> None:
    (crop,) = planned(1600, 1600, Box(400, 400, 900, 900))
    assert all(max(one.size) <= variants.LARGEST for one in drawn(crop, 1600, 1600, "resize"))
    assert len(drawn(crop, 1600, 1600, "resize")) == 2


@pytest.mark.parametrize("shape", ["box", "disc"])
def test_a_region_scaled_up_has_no_holes(shape: str) -> None:
    """Through holes the editor would get pixels that it repaints, which no real edit does."""
    down, across = np.ogrid[:80, :100]
    disc = ((down - 39.5) / 40) ** 2 + ((across - 49.5) / 50) ** 2 <= 1
    mask = disc if shape == "disc" else np.ones((80, 100), dtype=np.bool_)
    region = Region(Box(200, 200, 300, 280), "face", 1.0, "faces", mask)
    (crop,) = cropping.plan([region], 600, 600, margin=128, work=512)
    for variant in drawn(crop, 600, 600, "resize"):
        (plane,) = variant.masks()
        scale = np.prod(variant.size) / (variant.box.height * variant.box.width)
        assert plane.sum() == pytest.approx(mask.sum() * scale, rel=0.05)
        assert (plane == ndimage.binary_fill_holes(plane)).all()
        assert ndimage.label(plane)[1] == 1


def test_benign_edits_keep_away_from_the_regions_of_other_crops() -> None:
    near, far = planned(1600, 600, Box(100, 100, 200, 200), Box(700, 100, 800, 200))
    everything = [*near.regions, *far.regions]
    rng = np.random.default_rng(0)
    for one in variants.for_optimiser(near.regions[0], near, everything, 600, 1600, ("resize",), rng):
        wide = Crop(Box(0, 0, 1600, 600), one.regions, (600, 1600), one.neighbours)
        assert wide.masks()[0].sum() < 0.6 * wide.protected().sum()


@pytest.mark.parametrize(("start", "count"), [(0, 50), (7, 30), (-5, 60), (45, 20), (-30, 10), (80, 4)])
def test_at_its_own_size_a_variant_takes_the_pixels_unchanged(start: int, count: int) -> None:
    """Outside the crop the perturbation is zero."""
    axis = np.arange(1.0, 51.0)
    wide = np.pad(axis, 100)[100 + start : 100 + start + count]
    assert variants.resampling(start, start + count, count, 50) @ axis == pytest.approx(wide, abs=1e-5)


@pytest.mark.parametrize("count", [13, 25, 40, 64, 90])
def test_resampling_keeps_even_areas_and_equals_torchs_bilinear(count: int) -> None:
    weights = variants.resampling(0, 64, count, 64)
    rng = np.random.default_rng(0)
    line = np.zeros(64, dtype=np.float32)
    line[16:48] = rng.standard_normal(32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(line)[None, None, None],
        size=(1, count),
        mode="bilinear",
        antialias=True,
    )[0, 0, 0].numpy()
    assert weights @ line == pytest.approx(want, abs=1e-4)
    middle = weights[count // 4 : 3 * count // 4].sum(axis=1)
    assert middle == pytest.approx(np.ones_like(middle), abs=1e-5)


@pytest.mark.parametrize("work", [768, 256])
def test_the_perturbation_of_a_variant_is_that_of_the_published_picture(work: int) -> None:
    """Compared with cropping and scaling the perturbed picture, at both working sizes."""
    rgb: Rgb = np.tile(np.asarray(photo((400, 300))), (3, 3, 1))[:700, :1100].copy()
    (crop,) = planned(1100, 700, Box(450, 200, 650, 380), work=work)
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(-20, 20, (1, 3, 12, 12)).astype(np.float32))
    change = torch.nn.functional.interpolate(coarse, size=crop.size, mode="bilinear") / 255
    native = torch.nn.functional.interpolate(change, size=(crop.box.height, crop.box.width), mode="bilinear")
    changed = rgb.astype(np.float32)
    changed[crop.box.slices] += native[0].permute(1, 2, 0).numpy() * 255
    published: Rgb = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    for variant in drawn(crop, 1100, 700, "resize"):
        rows, columns = (torch.from_numpy(axis) for axis in variants.placement(crop, variant))
        got = rows @ change @ columns.T
        clean = crop_tensor(rgb, variant, CPU)
        want = crop_tensor(published, variant, CPU) - clean
        inside = (clean > 0.1) & (clean < 0.9)  # elsewhere the file clips
        assert got.shape == clean.shape
        assert float((got - want)[inside].abs().mean()) < 0.08 * float(want[inside].abs().mean()) + 0.3 / 255
