"""What every attack path must do, whatever its tool: one test body over the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from backfire.attack_paths import PATHS, AttackPath
from backfire.attack_paths.hand_over import forget, hand_over, handing_over, mask_of, put_back
from backfire.types import Box, Mask

MASKS: dict[str, tuple[tuple[int, int], list[Box]]] = {
    "inside": ((96, 130), [Box(50, 30, 81, 62)]),
    "in the corner": ((96, 130), [Box(110, 70, 130, 96)]),
    "one pixel": ((96, 130), [Box(129, 0, 130, 1)]),
    "everything": ((67, 45), [Box(0, 0, 45, 67)]),
    "far apart": ((96, 130), [Box(2, 2, 12, 9), Box(100, 80, 128, 95)]),
    "a strip": ((24, 880), [Box(300, 2, 380, 20)]),
    "above all sizes": ((820, 700), [Box(333, 401, 402, 517), Box(10, 10, 31, 30)]),
}
"""(height, width), and the boxes that are masked."""


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> AttackPath:
    return PATHS[request.param]


@pytest.fixture(params=MASKS)
def mask(request: pytest.FixtureRequest) -> Mask:
    shape, boxes = MASKS[request.param]
    plane = np.zeros(shape, np.bool_)
    for box in boxes:
        plane[box.slices] = True
    return plane


def _pictures(mask: Mask, count: int = 1) -> Tensor:
    return torch.rand(count, 3, *mask.shape, generator=torch.Generator().manual_seed(0))


def test_what_is_handed_over(path: AttackPath, mask: Mask) -> None:
    """Each masked pixel lies in a crop; sizes are multiples, aspects are kept, and planes have their size."""
    kept = mask.copy()
    covered = np.zeros_like(mask)
    calls = path.calls(mask)
    assert calls
    for one in calls:
        assert 0 <= one.inside.left < one.inside.right <= mask.shape[1]
        assert 0 <= one.inside.top < one.inside.bottom <= mask.shape[0]
        covered[one.inside.slices] = True
        assert one.size[0] % path.multiple == one.size[1] % path.multiple == 0
        assert min(one.size) > 0
        (high, wide), aspect = one.scaled, one.box.width / one.box.height
        off = min(abs(high - wide / aspect), abs(wide - high * aspect))
        rounded = 64 if path is PATHS["fooocus"] else path.multiple
        assert path.squeezes or off <= rounded, "the crop keeps its aspect, up to rounding"
        assert one.mask.shape == one.size
        assert one.mask.dtype == np.bool_
        assert one.weights.shape == (one.touched.height, one.touched.width)
        assert one.weights.min(initial=0) >= 0
        assert one.weights.max(initial=0) <= 1
    # An editor without a mask gets the middle of a picture of an unusual aspect.
    assert covered[mask].all() or all(one.rule.everything for one in calls)
    np.testing.assert_array_equal(mask, kept)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 3), (1, 40), (300, 2), (1000, 1)], ids=str)
def test_an_edit_of_a_picture_of_a_few_pixels_is_finite_or_changes_nothing(
    path: AttackPath, size: tuple[int, int]
) -> None:
    mask = np.ones(size, np.bool_)
    image = _pictures(mask)
    for one in path.calls(mask):
        given = hand_over(image, one)
        result = put_back(torch.where(mask_of(one, image) > 0.5, 1 - given, given), image, one)
        assert torch.isfinite(result).all()
        assert torch.equal(result, image) != one.repaints


def test_a_path_says_whether_its_scale_follows_from_the_mask(path: AttackPath) -> None:
    """So that an edit of a little more than a region reaches the model at another scale."""
    scales = set()
    for across in (100, 132, 880):  # Fooocus has a least size
        plane = np.zeros((900, 1400), np.bool_)
        plane[450 - across // 2 : 450 + across // 2, 600 : 600 + across] = True
        scales |= {one.scale for one in path.calls(plane)}
    assert path.scales_to_mask == (len(scales) > 1)


def test_handing_a_picture_over_and_putting_it_back_unedited_changes_nothing(
    path: AttackPath, mask: Mask
) -> None:
    """Exactly so where nothing is blended in; elsewhere up to what resizing does to a smooth picture."""
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    smooth = 0.5 + 0.3 * np.sin(rows / 40) * np.cos(columns / 50)
    image = torch.from_numpy(smooth).float().expand(1, 3, -1, -1)
    result = image
    reached = torch.zeros(mask.shape, dtype=torch.bool)
    for one in path.calls(mask):
        given = hand_over(image, one)
        assert tuple(given.shape) == (1, 3, *one.size)
        assert tuple(mask_of(one, image).shape) == (1, 1, *one.size)
        result = put_back(given, result, one)
        reached[one.touched.slices] |= torch.from_numpy(one.weights > 0)
    assert torch.equal(result[..., ~reached], image[..., ~reached])
    # A result that is pasted a pixel off differs by more.
    assert (result - image).abs().max() < 0.004


def test_all_that_the_model_repaints_in_the_mask_is_blended_in(path: AttackPath, mask: Mask) -> None:
    """A step that grows the model's mask must be in `blend` too, or a border of the edit is never pasted."""
    calls = path.calls(mask)
    weights = np.zeros(mask.shape, np.float32)
    for one in calls:
        part = weights[one.touched.slices]
        np.maximum(part, one.weights, out=part)
    for one in calls:
        # A pixel at the outline may reach half into the next pixel of the picture, so it does not count.
        repainted = ndimage.minimum_filter(one.mask, 3)
        inside, (down, across) = one.inside, one.scale
        rows = ((np.arange(inside.top, inside.bottom) + 0.5 - one.box.top) * down).astype(int)
        columns = ((np.arange(inside.left, inside.right) + 0.5 - one.box.left) * across).astype(int)
        repainted = repainted[np.ix_(rows + one.padding.top, columns + one.padding.left)]
        assert weights[inside.slices][repainted].all()
    if any(one.mask.any() for one in calls) and not any(one.rule.everything for one in calls):
        assert weights[mask].all()


def test_an_edit_stays_near_the_mask(path: AttackPath, mask: Mask) -> None:
    """What is blended in reaches no further beyond the mask than the steps that were applied to the mask."""
    image = _pictures(mask, 2)
    result, farthest = image, 0
    calls = path.calls(mask)
    if any(one.rule.everything for one in calls):
        pytest.skip("takes the whole result")
    for one in calls:
        result = put_back(torch.full((2, 3, *one.size), 9.0), result, one)
        reach = sum(step.reach for step in one.rule.blend)
        if one.rule.blend_scaled:  # resizing there and back reaches a few of the larger pixels further
            reach = math.ceil((reach + 3) / min(one.scale)) + 3
            reach += sum(step.reach for step in one.rule.on_picture_grid)
        farthest = max(farthest, reach)
    near = np.zeros_like(mask)
    height, width = mask.shape
    box = Box.around(mask).grown(farthest, width, height)
    near[box.slices] = True
    changed = (result != image).any(1).any(0).numpy()
    assert not changed[~near].any()
    if any(one.mask.any() for one in calls):
        assert changed[mask].any()


def test_a_perturbation_of_a_part_adds_to_what_is_handed_over(path: AttackPath) -> None:
    mask = np.zeros((90, 120), np.bool_)
    mask[20:50, 80:112] = True
    image = _pictures(mask).double()
    for part in (Box(70, 10, 120, 55), Box(0, 89, 120, 90)):
        change = 0.1 * torch.rand(1, 3, part.height, part.width, dtype=torch.float64)
        perturbed = image.clone()
        perturbed[..., part.slices[0], part.slices[1]] += change
        for one in path.calls(mask):
            added = hand_over(image, one) + hand_over(change, one, part)
            torch.testing.assert_close(added, hand_over(perturbed, one), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 41), (9, 20)])
def test_a_perturbation_that_is_worked_smaller_is_enlarged_on_the_way(
    path: AttackPath, size: tuple[int, int]
) -> None:
    """In one step what torch's bicubic filter and then the tool make of it, and so is the gradient."""
    mask = np.zeros((90, 120), np.bool_)
    mask[20:50, 80:112] = True
    part = Box(30, 5, 120, 77)
    small = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    large = functional.interpolate(small, size=(part.height, part.width), mode="bicubic")
    for one in path.calls(mask):
        got, want = handing_over(one, part, size)(small), hand_over(large, one, part)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        against = torch.rand(got.shape, generator=torch.Generator().manual_seed(1))
        gradients = [
            torch.autograd.grad((each * against).sum(), small, retain_graph=True)[0] for each in (got, want)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_it_is_enlarged_alike_where_bfloat16_is_computed_in(path: AttackPath) -> None:
    """As on a processor that prefers it. What is kept for further edits is made in full precision."""
    mask = np.zeros((90, 120), np.bool_)
    mask[20:50, 80:112] = True
    part, size = Box(30, 5, 120, 77), (30, 41)
    small = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    for one in path.calls(mask):
        forget()
        want = handing_over(one, part, size)(small)
        forget()
        with torch.autocast("cpu", torch.bfloat16):
            coarse = handing_over(one, part, size)(small)
        torch.testing.assert_close(coarse.float(), want, rtol=0, atol=0.03)
        torch.testing.assert_close(handing_over(one, part, size)(small), want)


def test_gradients(path: AttackPath) -> None:
    """`hand_over` is differentiated by the picture, `put_back` by the edit and by the picture."""
    mask = np.zeros((20, 28), np.bool_)
    mask[6:14, 9:20] = True
    (one,) = path.calls(mask)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, *mask.shape, dtype=torch.float64, generator=generator).requires_grad_()
    direction = torch.rand(image.shape, dtype=torch.float64, generator=generator)
    given = hand_over(image, one)
    against = torch.rand(given.shape, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((given * against).sum(), image)
    step = 1e-3
    with torch.no_grad():
        ahead = hand_over(image + step * direction, one)
        behind = hand_over(image - step * direction, one)
    slope = ((ahead - behind) * against).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)

    edit = given.detach().requires_grad_()
    result = put_back(edit, image, one)
    against = torch.rand(result.shape, dtype=torch.float64, generator=generator)
    by_edit, by_image = torch.autograd.grad((result * against).sum(), (edit, image))
    moved = torch.rand(edit.shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        ahead = put_back(edit + step * moved, image + step * direction, one)
        behind = put_back(edit - step * moved, image - step * direction, one)
    slope = ((ahead - behind) * against).sum() / (2 * step)
    total = (by_edit * moved).sum() + (by_image * direction).sum()
    torch.testing.assert_close(total, slope, rtol=1e-6, atol=1e-6)


def test_arguments_are_not_mutated_and_wrong_sizes_refused(path: AttackPath) -> None:
    mask = np.zeros((40, 50), np.bool_)
    mask[10:20, 10:30] = True
    (one,) = path.calls(mask)
    image = _pictures(mask)
    kept = image.clone()
    given = hand_over(image, one)
    edit = torch.zeros_like(given)
    put_back(edit, image, one)
    assert torch.equal(image, kept)
    assert not edit.any()
    with pytest.raises(ValueError, match="expected"):
        hand_over(image[..., 1:], one)
    with pytest.raises(ValueError, match="expected"):
        put_back(edit[..., 1:], image, one)
