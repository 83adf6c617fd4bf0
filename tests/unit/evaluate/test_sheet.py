"""The picture sheet: what pulled is shown beside what changed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from backfire.evaluate.judge import Judgement
from backfire.evaluate.sheet import BETWEEN, Panels, Saliency, _font, sheet
from backfire.types import Rgb, Verdict
from PIL import Image

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


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_even_map_is_no_error(value: float) -> None:
    assert shown([[Saliency("a", np.full((HEIGHT, WIDTH), value, dtype=np.float32))]]).size


def test_the_figures_fit_in_a_line() -> None:
    rows = [f"{kind}: SSIM 0.00  L1 0.00" for kind in ("trigger", "dilated", "partial", "near", "far")]
    line = BETWEEN.join(["signature 1000x1000", *rows])
    assert _font(16).getlength(line) < 1232
