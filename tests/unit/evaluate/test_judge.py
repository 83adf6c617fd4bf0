"""The verdict is arithmetic on the replayed edits; these are the cases nobody may get wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from backfire.config import Verify
from backfire.evaluate import replay
from backfire.evaluate.judge import EditResult, judge
from backfire.evaluate.metrics import masked_ssim
from backfire.types import Budget, MaskKind, Verdict

BUDGET = Budget(6.4)


def edit(kind: MaskKind, ssim: float, *, control: float | None = None, held_out: bool = False) -> EditResult:
    return EditResult("latent-mini", 0, kind, ssim, 0.1, held_out, control)


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


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_failed(broken: float) -> None:
    assert verdict(edits(trigger=broken)) == Verdict.FAILED
    assert verdict([*edits(), edit(MaskKind.FAR, broken)]) == Verdict.FAILED


def test_a_fill_that_only_looks_different_to_ssim_is_no_protection() -> None:
    rows = [dataclasses.replace(row, l1=0.02) for row in edits()]
    assert verdict(rows) == Verdict.WEAK
    rows = [dataclasses.replace(row, l1=0.005) for row in edits()]
    assert verdict(rows) == Verdict.FAILED


def test_a_break_that_nobody_sees_is_weak() -> None:
    """Fine grain that is replaced by other fine grain lowers SSIM, and looks the same."""
    seen = [dataclasses.replace(row, visible=0.6) for row in edits()[:3]]
    assert verdict([*seen, *edits()[3:]]) == Verdict.PROTECTED
    unseen = [dataclasses.replace(row, visible=0.2) for row in seen]
    outcome, reasons = judge([*unseen, *edits()[3:]], 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert "plainly broken over 20% of its area only, at least 50% asked" in reasons[0]
    assert "at least 25% asked" in reasons[2]


def test_a_far_edit_that_could_not_be_measured_is_said() -> None:
    outcome, reasons = judge(edits()[:-1], 6, BUDGET, Verify())
    assert outcome == Verdict.WEAK
    assert "not measured" in reasons[0]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_region_without_a_trigger_edit_is_failed(held_out: bool) -> None:
    """Benign edits that keep everything, or an editor that only judges, protect nothing."""
    rows = [*edits(), dataclasses.replace(edits()[-1], region=1)]
    if held_out:
        rows.append(dataclasses.replace(edits()[0], region=1, held_out=True))
    outcome, reasons = judge(rows, 6, BUDGET, Verify())
    assert outcome == Verdict.FAILED
    assert reasons == ["region 1: no trigger edit by a surrogate was replayed"]


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
    """An edit beside the region that changes five times as much as it may, before one that nearly breaks."""
    _, reasons = judge(edits(partial=0.86, near=0.5)[:-1], 6, BUDGET, Verify())
    assert [reason.split()[2] for reason in reasons] == ["near", "partial", "no"]


def test_an_edit_that_works_is_failed() -> None:
    assert verdict(edits(trigger=0.99)) == Verdict.FAILED


def test_no_better_than_noise_is_failed() -> None:
    assert verdict(edits(trigger=0.6, control=0.62)) == Verdict.FAILED


def test_beyond_the_budget_is_failed() -> None:
    assert verdict(edits(), largest=7) == Verdict.FAILED


def test_nothing_replayed_is_failed() -> None:
    assert verdict([]) == Verdict.FAILED


def test_one_unbroken_region_spoils_the_whole_picture() -> None:
    assert verdict([*edits(), edit(MaskKind.TRIGGER, 0.99)]) == Verdict.FAILED


def test_a_held_out_editor_can_weaken_but_not_fail() -> None:
    assert verdict([*edits(), edit(MaskKind.TRIGGER, 0.99, held_out=True)]) == Verdict.WEAK


def test_masked_ssim_looks_under_the_mask_only() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((64, 64, 3), dtype=np.float32)
    b = a.copy()
    b[:, :32] = rng.random((64, 32, 3), dtype=np.float32)
    right = np.zeros((64, 64), dtype=np.bool_)
    right[:, 48:] = True
    assert masked_ssim(a, b, right) == pytest.approx(1.0)
    assert masked_ssim(a, b, ~right) < 0.7


def test_the_noise_control_is_as_large_as_the_change_in_blacks_and_whites() -> None:
    before = torch.tensor([0.0, 0.01, 0.5, 0.99, 1.0]).expand(1, 3, 64, 5)
    after = before + torch.tensor([0.02, 0.02, 0.02, -0.02, -0.02])
    control = replay.control(before, after, np.random.default_rng(0))
    assert torch.allclose((control - before).abs(), torch.full_like(before, 0.02), atol=1e-6)
    assert control.min() >= 0
    assert control.max() <= 1
    assert 0.3 < float((control[..., 2] > before[..., 2]).float().mean()) < 0.7, "signs are drawn"


def test_the_noise_control_of_a_grey_change_is_grey() -> None:
    before = torch.full((1, 3, 16, 16), 0.5)
    rng = np.random.default_rng(0)
    grey = replay.control(before, before + 0.02, rng) - before
    assert torch.equal(grey, grey[:, :1].expand_as(grey))
    tinted = (
        replay.control(before, before + torch.tensor([0.02, 0.01, 0.02])[None, :, None, None], rng) - before
    )
    assert not torch.equal(tinted[:, 0].sign(), tinted[:, 2].sign())
