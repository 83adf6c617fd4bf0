"""The sheet shows regions, perturbation, edits and saliency, each in its panel."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backfire import inpaint
from backfire.attack_paths import PATHS
from backfire.config import Verify
from backfire.evaluate.judge import EditResult, Judgement, in_tools, of_larger_masks
from backfire.evaluate.sheet import (
    CAPTION,
    GAP,
    HEADER,
    LINE,
    PAIR_PX,
    PANEL,
    Panels,
    Saliency,
    caption,
    pair,
    sheet,
)
from backfire.imaging import lettering
from backfire.types import MaskKind, Rgb, Verdict
from tests.support.pictures import photo

HEIGHT, WIDTH = 90, 120


def panels(regions: int = 1) -> list[Panels]:
    rgb: Rgb = np.asarray(photo((WIDTH, HEIGHT)))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[30:60, 40:80] = True
    pictures: dict[str, Any] = dict.fromkeys(
        ("original", "protected", "edit_original", "edit_protected", "benign_original", "benign_protected"),
        rgb,
    )
    one = Panels(
        label="face 40x30",
        mask=mask,
        benign_mask=np.zeros_like(mask),
        summary=["edit of the region in IOPaint by flux2-mini: SSIM 0.50"],
        **pictures,
    )
    return [one] * regions


def flat(level: int) -> Rgb:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def shown(saliency: list[list[Saliency]], regions: int = 1) -> np.ndarray:
    judgement = Judgement(Verdict.PROTECTED, [], 34.5, 6)
    with Image.open(io.BytesIO(sheet("a.png", judgement, panels(regions), saliency).jpeg)) as page:
        return np.asarray(page.convert("RGB"))


def spot(row: int, column: int) -> Saliency:
    plane = np.full((HEIGHT, WIDTH), 1e-9, dtype=np.float32)
    plane[row - 5 : row + 5, column - 5 : column + 5] = 1e-6
    return Saliency("flux2-mini", plane)


def test_a_sheet_shows_the_saliency_of_each_surrogate() -> None:
    without, one, six = (shown([[spot(20, 100)] * count]) for count in (0, 1, 6))
    assert without.shape == one.shape, "the first row has a place for the first map"
    assert six.shape[0] > one.shape[0], "the others have rows of their own"
    difference = np.abs(one.astype(int) - without).max(axis=2) > 60
    rows, columns = np.nonzero(difference)
    assert columns.min() > 900
    # In the panel only the spot is bright, at its place.
    panel = one[:, 932:1232].max(axis=2).astype(int)[rows.min() : rows.max()]
    assert panel[:60, 230:270].max() > 240
    assert np.median(panel[120:, :150]) < 60


def test_every_region_has_its_own_map() -> None:
    page = shown([[spot(20, 100)], [spot(70, 20)]], regions=2)
    bands = np.split(page[58:-8], 2)
    assert np.abs(bands[0].astype(int) - bands[1]).max() > 200


@pytest.mark.parametrize(("value", "level"), [(0.0, 0), (1.0, 255)])
def test_an_even_map_is_black_if_it_is_zero_and_white_otherwise(value: float, level: int) -> None:
    page = shown([[Saliency("a", np.full((HEIGHT, WIDTH), value, dtype=np.float32))]])
    assert np.abs(centre(page, 0, 3).astype(int) - level).max() <= 8


def centre(page: np.ndarray, row: int, column: int) -> np.ndarray:
    """Pixels from the middle of a panel of the first band, away from its outline."""
    tall = PANEL * HEIGHT // WIDTH
    left = GAP + column * (PANEL + GAP) + PANEL // 2
    top = 58 + CAPTION + row * (tall + CAPTION + GAP) + CAPTION + tall // 2
    return page[top - 8 : top + 8, left - 8 : left + 8]


def test_each_panel_shows_its_own_picture() -> None:
    """Each picture is of another flat grey; the perturbation is amplified twenty times around middle grey."""

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
    with Image.open(io.BytesIO(sheet("a.png", judgement, [one]).jpeg)) as picture:
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
        with Image.open(io.BytesIO(sheet("a.png", judgement, panels(regions), most=most).jpeg)) as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1] < heights[2]


def test_each_edit_is_shown_beside_itself_where_the_sheet_says() -> None:
    """Each picture of a pair is of another flat grey, which is found at its place."""
    edits = [
        EditResult("one", 0, MaskKind.TRIGGER, 0.4, 0.2, False, visible=0.9),
        EditResult("one", 0, MaskKind.FAR, 0.5, 0.2, False),
        EditResult("one", 0, MaskKind.TRIGGER, 0.98, 0.01, False, path="comfyui-stitch-512", visible=0.0),
        EditResult("two", 0, MaskKind.TRIGGER, 0.5, 0.2, True, visible=0.9),
    ]
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    levels = {index: (20 + 50 * index, 45 + 50 * index) for index in range(4)}
    pairs = [
        pair(edit, flat(levels[index][0]), flat(levels[index][1]), mask) for index, edit in enumerate(edits)
    ]
    judgement = Judgement(Verdict.WEAK, ["why"], 34.5, 6, edits, settings=Verify())
    drawn = sheet("a.png", judgement, [replace(panels()[0], pairs=pairs)])
    with Image.open(io.BytesIO(drawn.jpeg)) as picture:
        assert picture.size == (drawn.width, drawn.height)
        page = np.asarray(picture.convert("RGB"))
    assert set(drawn.places) == set(levels)
    for index, (left, top, width, height) in drawn.places.items():
        shown = page[top : top + height, left : left + width, 1]
        quarters = shown[:, width // 4], shown[:, 3 * width // 4]
        assert [float(np.median(one)) for one in quarters] == pytest.approx(levels[index], abs=1)
        above = page[top - 72 : top - 4, left : left + 60].astype(int)
        greenish = (above[..., 1] - above[..., 0] > 40).sum()
        reddish = (above[..., 0] - above[..., 1] > 40).sum()
        assert (greenish > reddish) == (index in (0, 3)), "the far edit changed, and a tool's did not break"


@pytest.mark.parametrize("ssim", [0.4, 0.97])
def test_what_the_verdict_does_not_rest_on_is_marked_in_plain_ink(ssim: float) -> None:
    edits = [
        EditResult("one", 0, MaskKind.TRIGGER, 0.4, 0.2, False, visible=0.9),
        EditResult("one", 0, MaskKind.DILATED, ssim, 0.1, False, path="forge-masked", visible=0.6),
    ]
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    pairs = [pair(edit, flat(90), flat(140), mask) for edit in edits]
    judgement = Judgement(Verdict.PROTECTED, [], 34.5, 6, edits, settings=Verify())
    drawn = sheet("a.png", judgement, [replace(panels()[0], pairs=pairs)])
    with Image.open(io.BytesIO(drawn.jpeg)) as picture:
        page = np.asarray(picture.convert("RGB")).astype(int)
    left, top, *_ = drawn.places[1]
    above = page[top - 72 : top - 4, left : left + 80]
    assert (above.sum(axis=2) < 300).sum() > 50, "the mark is there"
    assert (abs(above[..., 0] - above[..., 1]) > 40).sum() == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_caption_names_tool_and_editor_in_full_within_its_pair(path: str) -> None:
    """Tools of one name differ at its end, such as Forge's modes, so that nothing may be cut there."""
    edit = EditResult("flux2-micro", 0, MaskKind.TRIGGER, 0.4, 0.2, True, path=path, flattened=True)
    lines = caption(edit, 2 * PAIR_PX)
    assert " ".join(lines) == f"{PATHS[path].tool}, on white by flux2-micro (only judged): SSIM 0.40"
    assert max(lettering.length(line, 16) for line in lines) <= 2 * PAIR_PX


def test_a_long_reason_is_wrapped_and_all_lines_begin_at_one_edge() -> None:
    reason = "region 0: dilated edit in forge-whole by flux2-mini keeps SSIM 0.861 of the clean edit"
    heights: list[int] = []
    edges: list[int] = []
    for times in (0, 1, 4):
        judgement = Judgement(Verdict.WEAK, [" ".join([reason] * times)], 34.5, 6)
        drawn = sheet("HHH", judgement, [replace(panels()[0], label="H")])
        heights.append(drawn.height)
        count = (drawn.height - heights[0]) // LINE
        with Image.open(io.BytesIO(drawn.jpeg)) as picture:
            dark = np.asarray(picture.convert("L")) < 128
        rows = [0, 30, *(56 + LINE * line for line in range(count)), HEADER + LINE * count]
        edges += [np.nonzero(dark[top : top + LINE].any(axis=0))[0].min() for top in rows]
    assert [(height - heights[0]) / LINE for height in heights] == [0, 1, 3]
    assert max(edges) - min(edges) <= 2


@pytest.mark.parametrize(("verdict", "reasons"), [(Verdict.PROTECTED, []), (Verdict.WEAK, ["why"])])
def test_the_heading_tells_what_a_larger_mask_does_as_the_commands_do(
    verdict: Verdict, reasons: list[str]
) -> None:
    """The lines are those that the reason alone would be if it said both."""
    tools = dict.fromkeys(("iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked"), True)
    larger = {**tools, "forge-whole": False}
    drawn = sheet("a", Judgement(verdict, reasons, 34.5, 6, tools=tools, tools_dilated=larger), panels())
    said = "; ".join([*(reasons or [in_tools(tools)]), of_larger_masks(verdict, larger)])
    assert "a little more: broken in IOPaint" in said
    assert drawn.jpeg == sheet("a", Judgement(verdict, [said], 34.5, 6), panels()).jpeg


@pytest.mark.parametrize("editors", [["one"], [inpaint.DEFAULT], ["one", *inpaint.NAMES]])
def test_that_built_in_editors_draw_no_faces_is_said_once_where_one_judged(
    editors: list[str],
) -> None:
    edits = [EditResult(name, region, MaskKind.FAR, 0.4, 0.2, False) for name in editors for region in (0, 1)]
    judgement = Judgement(Verdict.WEAK, ["why"], 34.5, 6, edits)
    drawn, without = (sheet("a", one, panels(2)) for one in (judgement, replace(judgement, edits=[])))
    told = editors != ["one"]
    assert drawn.height - without.height == (LINE if told else 0)
    pages = []
    for one in (drawn, without):
        with Image.open(io.BytesIO(one.jpeg)) as picture:
            pages.append(np.asarray(picture.convert("L")).astype(int))
    below = HEADER + LINE
    start = below + LINE if told else below
    assert np.abs(pages[0][start + 16 :] - pages[1][below + 16 :]).max() < 80, "the rest is as without"
    if told:
        line = pages[0][below - 2 : start - 2] < 128
        assert np.nonzero(line.any(axis=0))[0].max() > 800, "it is written"
        assert not line[:, -GAP:].any()


def test_a_title_is_written_letter_by_letter_as_lettering_says() -> None:
    odd, told = (
        sheet(title, Judgement(Verdict.PROTECTED, [], 34.5, 6), panels()).jpeg
        for title in ("gpj.\u202eexe", r"gpj.\u202eexe")
    )
    assert odd == told


def test_a_pair_is_small() -> None:
    edit = EditResult("one", 0, MaskKind.TRIGGER, 0.4, 0.2, False)
    large: Rgb = np.zeros((800, 400, 3), dtype=np.uint8)
    small = pair(edit, large, large, mask=large[..., 0] == 0)
    assert small.original.shape == (PAIR_PX, PAIR_PX // 2, 3)
    assert small.mask.shape == (PAIR_PX, PAIR_PX // 2)
    assert small.mask.all()
