"""The page marks edits as the verdict does."""

from __future__ import annotations

from itertools import product

import pytest

from backfire.config import Verify
from backfire.evaluate.judge import THRESHOLDS, EditResult, is_asked, misses
from backfire.types import MaskKind
from backfire.web.picture import edits, is_good


@pytest.mark.parametrize("kind", list(MaskKind))
@pytest.mark.parametrize(("on_first_path", "held_out"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("thresholds", [{}, {"trigger_l1_min": 0.0, "incomplete_l1_min": 0.0}])
def test_the_page_marks_an_edit_as_the_verdict_does(
    kind: MaskKind, on_first_path: bool, held_out: bool, thresholds: dict[str, float]
) -> None:
    settings = Verify.model_validate(thresholds)
    asked = settings.model_dump(include=set(THRESHOLDS))
    marks = set()
    figures = product(
        (0.7, 0.8, 0.91, 0.97, 1.0), (0.0, 0.01, 0.04, 0.2), (None, 0.2, 0.3, 0.6, 0.9), (None, 0.75, 0.99)
    )
    for ssim, l1, visible, noise in figures:
        edit = EditResult("one", 0, kind, ssim, l1, held_out, visible=visible, control_ssim=noise)
        mark = is_good(edit.row(), asked, on_first_path)
        assert mark is (not misses(edit, settings, on_first_path=on_first_path)), edit
        marks.add(mark)
    assert marks == {True, False}


@pytest.mark.parametrize("kind", list(MaskKind))
def test_the_page_knows_which_edits_the_verdict_rests_on(kind: MaskKind) -> None:
    rows = [EditResult("one", 0, kind, 0.97, 0.2, False, path=path) for path in ("iopaint", "forge-masked")]
    table = edits({"edits": [row.row() for row in rows]}, Verify().model_dump(include=set(THRESHOLDS)))
    asked = {line.path: cell.asked for line in table.lines for cell in line.cells if cell}
    assert asked == {row.path: is_asked(row, on_first_path=row.path == "iopaint") for row in rows}


def test_marks_are_by_the_thresholds_of_the_receipt_and_else_by_those_of_the_settings() -> None:
    row = EditResult("one", 0, MaskKind.NEAR, 0.85, 0.1, False).row()
    for own, good in (
        ({"near_ssim_min": 0.8}, True),
        ({"near_ssim_min": 0.9}, False),
        ({}, True),
        (None, True),
    ):
        table = edits({"edits": [row], "thresholds": own}, {"near_ssim_min": 0.84})
        assert [cell.good for line in table.lines for cell in line.cells if cell] == [good]


@pytest.mark.parametrize("broken", [{"ssim": None}, {"l1": None}, {"ssim": None, "l1": None}])
def test_an_edit_that_gave_no_finite_picture_is_shown_as_failed(broken: dict[str, None]) -> None:
    paths = ("iopaint", "forge-masked")
    rows = [EditResult("one", 0, MaskKind.DILATED, 0.5, 0.2, False, path=path).row() for path in paths]
    table = edits({"edits": [rows[0] | broken, rows[1]]}, Verify().model_dump(include=set(THRESHOLDS)))
    found = {line.path: cell for line in table.lines for cell in line.cells if cell}
    assert [*found] == [*paths]
    assert (found["iopaint"].good, found["iopaint"].asked, found["iopaint"].ssim) == (False, True, None)
    assert not found["forge-masked"].asked, "it is not the first path for that"
