"""The verdict for each combination of replayed edits that decides it, and the noise control."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from backfire.config import Verify
from backfire.evaluate import replay
from backfire.evaluate.judge import EditResult, judge, tools
from backfire.evaluate.metrics import masked_ssim
from backfire.types import Budget, MaskKind, Verdict

BUDGET = Budget(6.4)


def edit(kind: MaskKind, ssim: float, *, control: float | None = None, held_out: bool = False) -> EditResult:
    return EditResult("flux2-mini", 0, kind, ssim, 0.1, held_out, control)


def edits(
    trigger: float = 0.4, partial: float = 0.5, near: float = 0.95, far: float = 0.99, control: float = 0.97
) -> list[EditResult]:
    return [
        edit(MaskKind.TRIGGER, trigger, control=control),
        edit(MaskKind.DILATED, trigger),
        edit(MaskKind.PARTIAL, partial),
        edit(MaskKind.NEAR, near),
        edit(MaskKind.FAR, far),
    ]


def test_tools_tell_of_the_edit_of_exactly_the_region_alone() -> None:
    """So that a receipt may name every tool as broken and be `weak`, which the documentation says."""
    rows = [dataclasses.replace(row, ssim=0.9) if row.mask_kind == "dilated" else row for row in edits()]
    assert tools(rows, Verify()) == {"iopaint": True}
    assert verdict(rows) == Verdict.WEAK


@pytest.mark.parametrize("kind", [MaskKind.DILATED, MaskKind.PARTIAL, MaskKind.NEAR])
def test_what_becomes_of_other_edits_in_other_tools_is_told_and_not_asked(kind: MaskKind) -> None:
    """Their tools cut another part of the picture for a larger mask, for which nothing is optimised."""
    region = dataclasses.replace(edits()[0], path="forge-masked")
    ssim = 0.5 if kind == MaskKind.NEAR else 0.95
    other = dataclasses.replace(edit(kind, ssim), path="forge-masked")
    assert verdict([*edits(), region, other]) == Verdict.PROTECTED
    assert verdict([*edits(), region, dataclasses.replace(other, path="iopaint")]) == Verdict.WEAK
    told = tools([*edits(), region, other], Verify(), MaskKind.DILATED)
    assert told == (
        {"iopaint": True, "forge-masked": False} if kind == MaskKind.DILATED else {"iopaint": True}
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_measurement_that_is_not_finite_is_failed(broken: float) -> None:
    assert verdict(edits(trigger=broken)) == Verdict.FAILED
    assert verdict([*edits(), edit(MaskKind.FAR, broken)]) == Verdict.FAILED


def test_an_edit_that_differs_by_ssim_but_not_by_l1_is_no_protection() -> None:
    rows = [dataclasses.replace(row, l1=0.02) for row in edits()]
    assert verdict(rows) == Verdict.WEAK
    rows = [dataclasses.replace(row, l1=0.005) for row in edits()]
    assert verdict(rows) == Verdict.FAILED


def test_a_break_that_is_not_visible_is_weak() -> None:
    """Fine grain that is replaced by other fine grain lowers SSIM but looks the same."""
    seen = [dataclasses.replace(row, visible=0.6) for row in edits()[:3]]
    assert verdict([*seen, *edits()[3:]]) == Verdict.PROTECTED
    unseen = [dataclasses.replace(row, visible=0.2) for row in seen]
    outcome, reasons = judge([*unseen, *edits()[3:]], 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert "plainly broken over 20% of its area only, at least 50% asked" in reasons[1]
    assert "at least 25% asked" in reasons[3]


@pytest.mark.parametrize(
    ("seen", "l1", "outcome"), [(0.9, 0.2, "protected"), (0.7, 0.2, "weak"), (0.9, 0.02, "weak")]
)
def test_a_wrong_colour_that_anyone_sees_needs_no_low_ssim(seen: float, l1: float, outcome: str) -> None:
    """SSIM of an area without texture stays high, whatever its colour; L1 is asked all the same."""
    rows = [dataclasses.replace(row, ssim=0.93, visible=seen, l1=l1) for row in edits()[:3]]
    assert verdict([*rows, *edits()[3:]]) == outcome


@pytest.mark.parametrize(("seen", "outcome"), [(0.5, "protected"), (0.49, "weak")])
def test_of_an_incomplete_edit_a_smaller_share_is_plain(seen: float, outcome: str) -> None:
    rows = edits()
    partial = dataclasses.replace(rows[2], ssim=0.93, visible=seen, l1=0.1)
    assert partial.mask_kind == MaskKind.PARTIAL
    assert verdict([*rows[:2], partial, *rows[3:]]) == outcome


def test_a_far_edit_that_could_not_be_measured_weakens_nothing() -> None:
    assert judge(edits()[:-1], 6, BUDGET, Verify()) == (Verdict.PROTECTED, [])


@pytest.mark.parametrize("rows", [{"trigger": 0.97, "control": 0.97}, {"trigger": 1.0, "control": 1.0}])
def test_no_more_than_noise_is_failed_whatever_is_asked(rows: dict[str, float]) -> None:
    anything = Verify(trigger_ssim_max=1, trigger_l1_min=0, control_factor=0, incomplete_ssim_max=1)
    assert judge(edits(**rows), 6, BUDGET, anything)[0] == Verdict.FAILED


def test_a_fill_that_moves_by_nothing_is_failed_whatever_is_asked() -> None:
    anything = Verify(trigger_l1_min=0, incomplete_l1_min=0)
    rows = [dataclasses.replace(row, l1=0.0) for row in edits()]
    assert judge(rows, 6, BUDGET, anything)[0] == Verdict.FAILED


ANYTHING = Verify(incomplete_ssim_max=1, incomplete_l1_min=0, incomplete_visible_min=0, control_factor=0)


@pytest.mark.parametrize(
    ("held_out", "ssim", "l1", "control"),
    [(False, 1.0, 0.0, 0.97), (False, 0.4, 0.0, 0.97), (False, 0.4, 0.1, 0.4), (True, 1.0, 0.0, None)],
)
def test_in_no_tool_is_no_more_than_noise_broken_whatever_is_asked(
    held_out: bool, ssim: float, l1: float, control: float | None
) -> None:
    name = "other" if held_out else "flux2-mini"
    other = dataclasses.replace(edits()[0], editor=name, path="forge-whole", visible=0.0, held_out=held_out)
    assert judge([*edits(), other], 6, BUDGET, ANYTHING)[0] == Verdict.PROTECTED
    changed = dataclasses.replace(other, ssim=ssim, l1=l1, control_ssim=control)
    outcome, reasons = judge([*edits(), changed], 6, BUDGET, ANYTHING)
    assert outcome == Verdict.WEAK
    if not held_out:
        assert reasons[0] == "broken in IOPaint; not broken in Forge or A1111 (whole picture)"
        assert "plain noise by" in reasons[1]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_region_without_a_trigger_edit_is_failed(held_out: bool) -> None:
    """Neither benign edits nor held-out editors can stand in for it."""
    rows = [*edits(), dataclasses.replace(edits()[-1], region=1)]
    if held_out:
        rows.append(dataclasses.replace(edits()[0], region=1, held_out=True))
    outcome, reasons = judge(rows, 6, BUDGET, Verify())
    assert outcome == Verdict.FAILED
    assert reasons == ["region 1: no trigger edit by a surrogate was replayed"]


def test_a_region_of_which_no_edit_was_replayed_is_failed() -> None:
    """The other regions say nothing of it."""
    assert judge(edits(), 6, BUDGET, Verify(), regions=1) == (Verdict.PROTECTED, [])
    why = "region 1: no trigger edit by a surrogate was replayed"
    assert judge(edits(), 6, BUDGET, Verify(), regions=2) == (Verdict.FAILED, [why])


def test_a_picture_smaller_than_the_window_has_an_ssim() -> None:
    a = np.zeros((5, 7, 3), dtype=np.float32)
    assert masked_ssim(a, a, np.ones((5, 7), dtype=np.bool_)) == pytest.approx(1.0)


def verdict(rows: list[EditResult], largest: int = 6) -> Verdict:
    return judge(rows, largest, BUDGET, Verify())[0]


def test_protected_only_when_everything_holds() -> None:
    assert judge(edits(), 6, BUDGET, Verify()) == (Verdict.PROTECTED, [])


@pytest.mark.parametrize("change", [{"partial": 0.9}, {"near": 0.5}, {"far": 0.91}, {"trigger": 0.8}])
def test_a_missed_threshold_is_weak_and_says_which(change: dict[str, float]) -> None:
    outcome, reasons = judge(edits(**change), 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert reasons


def test_what_is_missed_most_comes_first() -> None:
    """A near edit that changes five times as much as it may comes before a partial one that nearly breaks."""
    _, reasons = judge(edits(partial=0.86, near=0.5)[:-1], 6, BUDGET, Verify())
    assert [reason.split()[2] for reason in reasons] == ["near", "partial"]


def test_an_edit_that_works_is_failed() -> None:
    assert verdict(edits(trigger=0.99)) == Verdict.FAILED


def test_an_effect_no_better_than_noise_is_failed() -> None:
    assert verdict(edits(trigger=0.6, control=0.62)) == Verdict.FAILED


def test_a_perturbation_beyond_the_budget_is_failed() -> None:
    assert verdict(edits(), largest=7) == Verdict.FAILED


def test_a_picture_without_replayed_edits_is_failed() -> None:
    assert verdict([]) == Verdict.FAILED


def test_one_unbroken_region_fails_the_whole_picture() -> None:
    assert verdict([*edits(), edit(MaskKind.TRIGGER, 0.99)]) == Verdict.FAILED


def test_a_held_out_editor_can_weaken_but_not_fail() -> None:
    assert verdict([*edits(), edit(MaskKind.TRIGGER, 0.99, held_out=True)]) == Verdict.WEAK


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_held_out_edit_that_is_not_finite_is_weak_and_told(broken: float) -> None:
    outcome, reasons = judge([*edits(), edit(MaskKind.TRIGGER, broken, held_out=True)], 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert "region 0: trigger edit in iopaint by flux2-mini gave no finite picture" in reasons


def test_a_held_out_editor_is_asked_for_the_thresholds_of_an_incomplete_edit() -> None:
    """It was not optimised against; and no noise control is replayed with it."""
    assert verdict([*edits(), edit(MaskKind.TRIGGER, 0.84, held_out=True)]) == Verdict.PROTECTED
    outcome, reasons = judge([*edits(), edit(MaskKind.TRIGGER, 0.86, held_out=True)], 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert "held-out editor flux2-mini break in 0 of 1 tools, half asked" in reasons[0]


def test_what_breaks_hardly_more_than_under_noise_in_another_tool_is_weak() -> None:
    elsewhere = dataclasses.replace(edits()[0], path="forge-masked", ssim=0.80, visible=0.3)
    for control, outcome in ((0.95, Verdict.PROTECTED), (0.85, Verdict.WEAK)):
        rows = [*edits(), dataclasses.replace(elsewhere, control_ssim=control)]
        found, reasons = judge(rows, 6, BUDGET, Verify())
        assert found == outcome, control
    assert "breaks by 0.20, plain noise by 0.15" in " ".join(reasons)


@pytest.mark.parametrize(("left", "outcome"), [(0.14, Verdict.PROTECTED), (0.16, Verdict.WEAK)])
def test_where_noise_breaks_most_of_an_edit_in_another_tool_half_as_much_may_be_left(
    left: float, outcome: Verdict
) -> None:
    """Twice as much as by noise could not be broken there."""
    elsewhere = dataclasses.replace(edits()[0], path="comfyui-stitch-512", visible=0.9)
    assert verdict([*edits(), dataclasses.replace(elsewhere, ssim=left, control_ssim=0.3)]) == outcome


def test_a_held_out_editor_is_asked_of_stored_colours_and_of_those_on_white_apart() -> None:
    def held_out(ssim: float, *, flattened: bool) -> list[EditResult]:
        row = dataclasses.replace(edit(MaskKind.TRIGGER, ssim, held_out=True), editor="micro")
        paths = ("iopaint", "forge-whole", "forge-masked")
        return [dataclasses.replace(row, path=path, flattened=flattened) for path in paths]

    on_white = [dataclasses.replace(row, flattened=True) for row in edits()]
    both = [*edits(), *on_white, *held_out(0.4, flattened=False)]
    assert verdict([*both, *held_out(0.4, flattened=True)]) == Verdict.PROTECTED
    outcome, reasons = judge([*both, *held_out(1.0, flattened=True)], 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert "of the picture on white break in 0 of 3 tools" in " ".join(reasons)


@pytest.mark.parametrize(("broken", "outcome"), [(2, "protected"), (1, "weak")])
def test_the_effect_carries_over_where_half_of_the_held_out_edits_break(broken: int, outcome: str) -> None:
    paths = ["iopaint", "comfyui-stitch-512", "forge-whole", "forge-masked"]
    held_out = [
        dataclasses.replace(edit(MaskKind.TRIGGER, 0.5 if i < broken else 0.97, held_out=True), path=path)
        for i, path in enumerate(paths)
    ]
    rows = [dataclasses.replace(row, editor="micro") for row in held_out]
    assert verdict([*edits(), *rows]) == outcome


def test_masked_ssim_compares_under_the_mask_only() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((64, 64, 3), dtype=np.float32)
    b = a.copy()
    b[:, :32] = rng.random((64, 32, 3), dtype=np.float32)
    right = np.zeros((64, 64), dtype=np.bool_)
    right[:, 48:] = True
    assert masked_ssim(a, b, right) == pytest.approx(1.0)
    assert masked_ssim(a, b, ~right) < 0.7


def test_the_noise_control_is_as_large_as_the_perturbation_in_blacks_and_whites() -> None:
    before = torch.tensor([0.0, 0.01, 0.5, 0.99, 1.0]).expand(1, 3, 64, 5)
    after = before + torch.tensor([0.02, 0.02, 0.02, -0.02, -0.02])
    control = replay.control(before, after, np.random.default_rng(0))
    assert torch.allclose((control - before).abs(), torch.full_like(before, 0.02), atol=1e-6)
    assert control.min() >= 0
    assert control.max() <= 1
    assert 0.3 < float((control[..., 2] > before[..., 2]).float().mean()) < 0.7, "signs are random"


def test_the_noise_control_of_a_grey_perturbation_is_grey() -> None:
    before = torch.full((1, 3, 16, 16), 0.5)
    rng = np.random.default_rng(0)
    grey = replay.control(before, before + 0.02, rng) - before
    assert torch.equal(grey, grey[:, :1].expand_as(grey))
    tinted = (
        replay.control(before, before + torch.tensor([0.02, 0.01, 0.02])[None, :, None, None], rng) - before
    )
    assert not torch.equal(tinted[:, 0].sign(), tinted[:, 2].sign())
