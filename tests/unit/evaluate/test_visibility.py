"""How much of a broken edit a person can see."""

from __future__ import annotations

import numpy as np
import pytest

from backfire.evaluate.visibility import PLAIN, difference, visible

GREY = np.full((96, 96, 3), 0.5, np.float32)
CENTRE = np.zeros((96, 96), np.bool_)
CENTRE[32:64, 32:64] = True


def test_the_same_picture_differs_nowhere() -> None:
    assert difference(GREY, GREY).max() == 0
    assert visible(GREY, GREY, CENTRE) == 0


def test_a_white_patch_is_seen_over_all_of_its_area() -> None:
    broken = GREY.copy()
    broken[32:64, 32:64] = 1
    assert visible(GREY, broken, CENTRE) == pytest.approx(1)
    assert difference(GREY, broken)[:8, :8].max() < PLAIN


def test_fine_grain_is_blurred_away_and_coarse_patches_are_not() -> None:
    """A checkerboard of single pixels and one of 16 pixels have the same L1 to grey."""
    rows, columns = np.indices((96, 96))
    fine = GREY + (0.12 * (-1.0) ** (rows + columns))[..., None].astype(np.float32)
    coarse = GREY + (0.12 * (-1.0) ** (rows // 16 + columns // 16))[..., None].astype(np.float32)
    assert np.abs(fine - GREY).mean() == pytest.approx(np.abs(coarse - GREY).mean())
    assert visible(GREY, fine, CENTRE) == 0
    assert visible(GREY, coarse, CENTRE) > 0.7


def test_far_away_large_differences_vanish_too() -> None:
    rows, columns = np.indices((96, 96))
    coarse = GREY + (0.12 * (-1.0) ** (rows // 4 + columns // 4))[..., None].astype(np.float32)
    near = difference(GREY, coarse, pixels_per_degree=20)[CENTRE].mean()
    distant = difference(GREY, coarse, pixels_per_degree=160)[CENTRE].mean()
    assert distant < near / 2


def test_a_shift_of_colour_alone_is_seen() -> None:
    tinted = GREY.copy()
    tinted[..., 0] += 0.2
    tinted[..., 2] -= 0.2
    assert difference(GREY, tinted)[CENTRE].min() > PLAIN
