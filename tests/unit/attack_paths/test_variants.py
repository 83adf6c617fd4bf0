"""Cuts and sizes in which a region may reach an editor, and how a crop's change lies in them."""

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
    groups = variants.for_optimiser(crop.regions[0], crop, crop.regions, height, width, robust_to, rng)
    assert all(groups)
    return [variant for group in groups for variant in group]


def test_each_word_brings_its_variants_and_none_comes_twice() -> None:
    (crop,) = planned(1200, 900, Box(500, 400, 600, 480))
    assert drawn(crop, 1200, 900, "jpeg") == []
    paths = drawn(crop, 1200, 900, "paths")
    assert len(paths) == variants.SHIFTED + 1, "three variants, and the whole picture once"
    assert sum(one.size == (384, 512) for one in paths) == 1
    sizes = [one.size[0] / one.box.height for one in drawn(crop, 1200, 900, "resize")]
    assert sizes[0] == pytest.approx(0.5, abs=0.01)
    assert 0.5 < sizes[1] < 1 < sizes[2] <= 1.51
    both = drawn(crop, 1200, 900, "paths", "resize")
    assert [(c.box, c.size) for c in both[: len(paths)]] == [(c.box, c.size) for c in paths]
    assert len(both) == len(paths) + 3


def test_variants_at_the_own_scale_and_at_others_are_apart() -> None:
    (crop,) = planned(1200, 900, Box(500, 400, 600, 480))
    rng = np.random.default_rng(0)
    moved, scaled = variants.for_optimiser(
        crop.regions[0], crop, crop.regions, 900, 1200, ("paths", "resize"), rng
    )
    assert all(one.size == (one.box.height, one.box.width) for one in moved)
    assert all(one.size != (one.box.height, one.box.width) for one in scaled)
    (small,) = planned(180, 160, Box(60, 60, 100, 100))
    assert variants.for_optimiser(small.regions[0], small, small.regions, 160, 180, ("paths",), rng) == []


def test_a_large_picture_is_not_scaled_up_beyond_what_editors_are_given() -> None:
    (crop,) = planned(1600, 1600, Box(400, 400, 900, 900))
    assert all(max(one.size) <= variants.LARGEST for one in drawn(crop, 1600, 1600, "resize"))
    assert len(drawn(crop, 1600, 1600, "resize")) == 2


@pytest.mark.parametrize("shape", ["box", "disc"])
def test_a_region_scaled_up_has_no_holes(shape: str) -> None:
    """Through holes the editor would see the very pixels that it repaints: no edit that anybody makes."""
    down, across = np.ogrid[:80, :100]
    disc = ((down - 39.5) / 40) ** 2 + ((across - 49.5) / 50) ** 2 <= 1
    mask = disc if shape == "disc" else np.ones((80, 100), dtype=np.bool_)
    region = Region(Box(200, 200, 300, 280), "face", 1.0, "faces", mask)
    (crop,) = cropping.plan([region], 600, 600, margin=128, work=512)
    for variant in drawn(crop, 600, 600, "paths", "resize"):
        (plane,) = variant.masks()
        scale = np.prod(variant.size) / (variant.box.height * variant.box.width)
        assert plane.sum() == pytest.approx(mask.sum() * scale, rel=0.05)
        assert (plane == ndimage.binary_fill_holes(plane)).all()
        assert ndimage.label(plane)[1] == 1


def test_benign_edits_keep_away_from_the_regions_of_other_crops() -> None:
    near, far = planned(1600, 600, Box(100, 100, 200, 200), Box(1300, 300, 1400, 400))
    everything = [*near.regions, *far.regions]
    found = variants.for_optimiser(
        near.regions[0], near, everything, 600, 1600, ("paths",), np.random.default_rng(0)
    )
    (whole,) = (one for group in found for one in group if one.box == Box(0, 0, 1600, 600))
    assert whole.masks()[0].sum() < 0.6 * whole.protected().sum()


@pytest.mark.parametrize(("start", "count"), [(0, 50), (7, 30), (-5, 60), (45, 20), (-30, 10), (80, 4)])
def test_at_its_own_size_a_variant_takes_the_very_pixels(start: int, count: int) -> None:
    """Beyond the axis there is no change."""
    axis = np.arange(1.0, 51.0)
    wide = np.pad(axis, 100)[100 + start : 100 + start + count]
    assert variants.resampling(start, start + count, count, 50) @ axis == pytest.approx(wide, abs=1e-5)


@pytest.mark.parametrize("count", [13, 25, 40, 64, 90])
def test_resampling_keeps_what_is_even_and_is_torchs_bilinear(count: int) -> None:
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
def test_a_perturbation_lies_in_a_variant_where_the_published_picture_has_it(work: int) -> None:
    """Against the picture itself, perturbed and then cropped and scaled; at both working sizes."""
    rgb: Rgb = np.tile(np.asarray(photo((400, 300))), (3, 3, 1))[:700, :1100].copy()
    (crop,) = planned(1100, 700, Box(450, 200, 650, 380), work=work)
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(-20, 20, (1, 3, 12, 12)).astype(np.float32))
    change = torch.nn.functional.interpolate(coarse, size=crop.size, mode="bilinear") / 255
    native = torch.nn.functional.interpolate(change, size=(crop.box.height, crop.box.width), mode="bilinear")
    changed = rgb.astype(np.float32)
    changed[crop.box.slices] += native[0].permute(1, 2, 0).numpy() * 255
    published: Rgb = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    for variant in drawn(crop, 1100, 700, "paths", "resize"):
        rows, columns = (torch.from_numpy(axis) for axis in variants.placement(crop, variant))
        got = rows @ change @ columns.T
        clean = crop_tensor(rgb, variant, CPU)
        want = crop_tensor(published, variant, CPU) - clean
        inside = (clean > 0.1) & (clean < 0.9)  # elsewhere the file clips
        assert got.shape == clean.shape
        assert float((got - want)[inside].abs().mean()) < 0.08 * float(want[inside].abs().mean()) + 0.3 / 255
