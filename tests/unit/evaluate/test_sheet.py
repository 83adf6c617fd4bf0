"""The picture sheet: what pulled is shown beside what changed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from backfire.evaluate.judge import Judgement
from backfire.evaluate.sheet import BETWEEN, CAPTION, GAP, PANEL, Panels, Saliency, font, sheet
from backfire.types import Rgb, Verdict
from tests.support.pictures import photo

HEIGHT, WIDTH = 90, 120


def panels(regions: int = 1) -> list[Panels]:
    rgb: Rgb = np.asarray(photo((WIDTH, HEIGHT)))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[30:60, 40:80] = True
    pictures = dict.fromkeys(
        ("original", "protected", "edit_original", "edit_protected", "benign_original", "benign_protected"),
        rgb,
    )
    one = Panels(
        label="face 40x30",
        mask=mask,
        benign_mask=np.zeros_like(mask),
        summary=["trigger: SSIM 0.50  L1 0.10", "far: SSIM 0.98  L1 0.01"],
        **pictures,
    )
    return [one] * regions


def shown(saliency: list[list[Saliency]], regions: int = 1) -> np.ndarray:
    judgement = Judgement(Verdict.PROTECTED, [], 34.5, 6)
    with Image.open(io.BytesIO(sheet("a.png", judgement, panels(regions), saliency))) as page:
        return np.asarray(page.convert("RGB"))


def spot(row: int, column: int) -> Saliency:
    plane = np.full((HEIGHT, WIDTH), 1e-9, dtype=np.float32)
    plane[row - 5 : row + 5, column - 5 : column + 5] = 1e-6
    return Saliency("latent-mini", plane)


def test_a_sheet_shows_what_each_surrogate_pulled_at() -> None:
    without, one, six = (shown([[spot(20, 100)] * count]) for count in (0, 1, 6))
    assert without.shape == one.shape, "the first map has its place in the first row"
    assert six.shape[0] > one.shape[0], "the others have rows of their own"
    difference = np.abs(one.astype(int) - without).max(axis=2) > 60
    rows, columns = np.nonzero(difference)
    assert columns.min() > 900
    # Nothing but the spot glows, at its place in the panel.
    panel = one[:, 932:1232].max(axis=2).astype(int)[rows.min() : rows.max()]
    assert panel[:60, 230:270].max() > 240
    assert np.median(panel[120:, :150]) < 60


def test_every_region_has_its_own_map() -> None:
    page = shown([[spot(20, 100)], [spot(70, 20)]], regions=2)
    bands = np.split(page[58:-8], 2)
    assert np.abs(bands[0].astype(int) - bands[1]).max() > 200


@pytest.mark.parametrize(("value", "level"), [(0.0, 0), (1.0, 255)])
def test_an_even_map_is_black_where_nothing_pulled_and_white_where_all_did(value: float, level: int) -> None:
    page = shown([[Saliency("a", np.full((HEIGHT, WIDTH), value, dtype=np.float32))]])
    assert np.abs(centre(page, 0, 3).astype(int) - level).max() <= 8


def centre(page: np.ndarray, row: int, column: int) -> np.ndarray:
    """Pixels from the middle of a panel of the first band, away from its outline."""
    tall = PANEL * HEIGHT // WIDTH
    left = GAP + column * (PANEL + GAP) + PANEL // 2
    top = 58 + CAPTION + row * (tall + CAPTION + GAP) + CAPTION + tall // 2
    return page[top - 8 : top + 8, left - 8 : left + 8]


def test_each_panel_shows_its_own_picture() -> None:
    """Flat greys tell them apart; the perturbation is twenty times itself, around the middle grey."""

    def flat(level: int) -> Rgb:
        return np.full((HEIGHT, WIDTH, 3), level, dtype=np.uint8)

    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[30:60, 40:80] = True
    one = Panels(
        label="face",
        mask=mask,
        original=flat(100),
        protected=flat(103),
        edit_original=flat(60),
        edit_protected=flat(180),
        benign_original=flat(30),
        benign_protected=flat(220),
        benign_mask=mask,
        summary=[],
    )
    judgement = Judgement(Verdict.PROTECTED, [], 34.5, 6)
    with Image.open(io.BytesIO(sheet("a.png", judgement, [one]))) as picture:
        page = np.asarray(picture.convert("RGB"))
    expected = {
        (0, 0): 100,
        (0, 1): 103,
        (0, 2): 128 + 20 * 3,
        **{(1, i): (60, 180, 30, 220)[i] for i in range(4)},
    }
    found = {place: float(np.median(centre(page, *place))) for place in expected}
    assert found == {place: pytest.approx(level, abs=1) for place, level in expected.items()}


def test_regions_beyond_the_most_are_counted_and_not_drawn() -> None:
    judgement = Judgement(Verdict.PROTECTED, [], 34.5, 6)
    heights = []
    for regions, most in ((2, 2), (3, 2), (3, 3)):
        with Image.open(io.BytesIO(sheet("a.png", judgement, panels(regions), most=most))) as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1] < heights[2]


def test_the_figures_fit_in_a_line() -> None:
    rows = [f"{kind}: SSIM 0.00  L1 0.00" for kind in ("trigger", "dilated", "partial", "near", "far")]
    line = BETWEEN.join(["signature 1000x1000", *rows])
    assert font(16).getlength(line) < 1232
