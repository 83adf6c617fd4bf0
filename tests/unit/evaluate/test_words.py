"""What a person reads of edits and tools, in the words of the status page."""

from __future__ import annotations

from backfire.config import Verify
from backfire.evaluate import words
from backfire.evaluate.judge import EditResult, judge
from backfire.types import Budget, MaskKind
from backfire.web.words import Words


def test_edits_are_called_as_on_the_status_page() -> None:
    page = Words("en")
    assert {kind: page(kind.value) for kind in MaskKind} == words.EDITS
    assert page("held_out") == words.ONLY_JUDGED


def test_a_reason_names_tools_and_edits_as_people_know_them() -> None:
    edits = [
        EditResult("flux2-mini", 0, kind, 0.9, 0.1, False, path=path)
        for kind, path in ((MaskKind.TRIGGER, "forge-masked"), (MaskKind.DILATED, "forge-masked"))
    ]
    _, (tools, *reasons) = judge(edits, 5, Budget(5), Verify())
    assert words.reason(tools) == tools == "not broken in Forge or A1111 (only masked)"
    assert sorted(words.reason(one).partition(" by flux2-mini keeps SSIM 0.900")[0] for one in reasons) == [
        "region 0: edit of the region and a little more in Forge or A1111 (only masked)",
        "region 0: edit of the region in Forge or A1111 (only masked)",
    ]


def test_a_reason_calls_a_held_out_editor_as_sheet_and_lines_do() -> None:
    held_out = EditResult("flux2-micro", 0, MaskKind.TRIGGER, 0.99, 0.001, True)
    broken = EditResult("flux2-mini", 0, MaskKind.TRIGGER, 0.1, 0.5, False, control_ssim=1.0)
    _, reasons = judge([broken, held_out], 5, Budget(5), Verify())
    assert [words.reason(one) for one in reasons] == [
        "region 0: edits by flux2-micro (only judged) break in 0 of 1 tools, half asked"
    ]


def test_a_tool_that_is_not_known_keeps_its_name() -> None:
    assert words.tool("of-old") == "of-old"
    assert words.tool("iopaint", flattened=True) == "IOPaint, on white"
