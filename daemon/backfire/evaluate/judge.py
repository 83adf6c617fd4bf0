"""The verdict: replayed edits compared with the thresholds of the settings. No torch, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from backfire.config import Verify
from backfire.types import Budget, EditPath, MaskKind, Verdict

HARDLY = 8
"""A trigger edit that breaks by less than this fraction of what is asked counts as not broken at all."""
BREAKING = (MaskKind.TRIGGER, MaskKind.DILATED, MaskKind.PARTIAL)
"""Edits that touch the region, and are to break."""
MARGIN = 0.03
"""By how much SSIM must be better than asked before work ends early; a third of it for benign edits."""


@dataclass(frozen=True)
class EditResult:
    """One replayed edit.

    Attributes:
        region: index into the receipt's regions.
        ssim, l1: the edit of the published picture against the clean edit, means under the mask; SSIM in
            [-1,1], L1 in [0,1].
        visible: the share of the masked area over which a person sees plainly that the two edits differ, in
            [0,1], see `visibility`; None for benign edits, which are not to differ.
        control_ssim: the SSIM for random noise as large as the perturbation (trigger edits only).
        target_distance: L1 to the target picture (`target: flat` and `inverted` only).
        held_out: whether the editor took no part in the optimisation.
        path: the attack path; only trigger edits are replayed on others than `crop`.
    """

    editor: str
    region: int
    mask_kind: MaskKind
    ssim: float
    l1: float
    held_out: bool
    control_ssim: float | None = None
    target_distance: float | None = None
    path: EditPath = EditPath.CROP
    visible: float | None = None

    def row(self) -> dict[str, Any]:
        """The edit for the receipt."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Judgement:
    """A verdict and the measurements it rests on.

    Attributes:
        reasons: what was missed, in words; what made the verdict `failed` comes first.
        psnr_db: over the crops; None where nothing was changed.
        max_change_levels: the largest change of a sample as the file stores it, in levels of 255.
    """

    verdict: Verdict
    reasons: list[str]
    psnr_db: float | None
    max_change_levels: int
    edits: list[EditResult] = field(default_factory=list)


def judge(
    edits: Sequence[EditResult], largest: int, budget: Budget, settings: Verify
) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, the gravest first; thresholds by the factor by which they are missed.

    * `failed`: the budget is exceeded, a number is not finite, or of some region the trigger edit through a
      surrogate is missing, breaks by less than an eighth of what is asked, or no more than plain noise
      breaks it.
    * `weak`: some threshold is missed.
    * `protected`: all thresholds are met, by held-out editors too.

    Args:
        largest: the largest change of a sample as the file stores it, in levels of 255.
    """
    failed: list[str] = []
    missed: list[tuple[float, str]] = []
    if largest > budget.levels:
        failed.append(f"largest change is {largest} levels, the budget {budget.levels}")
    for edit in edits:
        path = "" if edit.path == EditPath.CROP else f" of the {edit.path} picture"
        name = f"region {edit.region}: {edit.mask_kind} edit{path} by {edit.editor}"
        if not np.isfinite([edit.ssim, edit.l1, edit.control_ssim or 0.0]).all():
            failed.append(f"{name} gave no finite picture")
        else:
            missed += [(factor, f"{name} {miss}") for factor, miss in _missed(edit, settings)]
            if _decides(edit):
                failed += _not_broken(edit, name, settings)
    for region in sorted({edit.region for edit in edits}):
        if not any(edit.region == region and _decides(edit) for edit in edits):
            failed.append(f"region {region}: no trigger edit by a surrogate was replayed")
        if not any(edit.region == region and edit.mask_kind == MaskKind.FAR for edit in edits):
            missed.append((0.0, f"region {region}: no room in its crop for an edit 32 px away; not measured"))
    if not edits:
        failed.append("no edit was replayed")
    weak = [reason for _, reason in sorted(missed, key=lambda one: -one[0])]
    verdict = Verdict.FAILED if failed else Verdict.WEAK if weak else Verdict.PROTECTED
    return verdict, failed + weak


def misses(edit: EditResult, settings: Verify) -> list[str]:
    """The thresholds that an edit misses, in words."""
    return [miss for _, miss in _missed(edit, settings)]


def asked_in_words(edit: EditResult, settings: Verify) -> str:
    """The thresholds that are asked of an edit, for a table."""
    if edit.mask_kind not in BREAKING:
        return f"SSIM >= {_floor(edit, settings):g}"
    most, least, seen = _asked(edit, settings)
    return f"SSIM <= {most:g}, L1 >= {least:g}, seen >= {seen:.0%}"


def _missed(edit: EditResult, settings: Verify) -> list[tuple[float, str]]:
    """The thresholds that an edit misses: by which factor, and in words."""
    if edit.mask_kind not in BREAKING:
        floor = _floor(edit, settings)
        miss = f"changes to SSIM {edit.ssim:.3f}, at least {floor:g} asked"
        return [] if edit.ssim >= floor else [(_factor(1 - edit.ssim, 1 - floor), miss)]
    most, least, seen = _asked(edit, settings)
    found = []
    if not edit.ssim <= most:
        miss = f"keeps SSIM {edit.ssim:.3f} of the clean edit, at most {most:g} asked"
        found.append((_factor(1 - most, 1 - edit.ssim), miss))
    if not edit.l1 >= least:
        miss = f"moves by L1 {edit.l1:.3f}, at least {least:g} asked"
        found.append((_factor(least, edit.l1), miss))
    if edit.visible is not None and not edit.visible >= seen:
        miss = f"is plainly broken over {edit.visible:.0%} of its area only, at least {seen:.0%} asked"
        found.append((_factor(seen, edit.visible), miss))
    return found


def _factor(larger: float, smaller: float) -> float:
    return larger / smaller if smaller > 0 else float("inf")


def _floor(edit: EditResult, settings: Verify) -> float:
    """The least SSIM that a benign edit must keep."""
    return settings.near_ssim_min if edit.mask_kind == MaskKind.NEAR else settings.far_ssim_min


def stricter(settings: Verify) -> Verify:
    """Thresholds with a margin. Work that ends early must meet these, since the verdict draws other edits."""
    return settings.model_copy(
        update={
            "trigger_ssim_max": settings.trigger_ssim_max - MARGIN,
            "incomplete_ssim_max": settings.incomplete_ssim_max - MARGIN,
            "near_ssim_min": settings.near_ssim_min + MARGIN / 3,
            "far_ssim_min": settings.far_ssim_min + MARGIN / 3,
            "trigger_l1_min": settings.trigger_l1_min * 1.1,
            "incomplete_l1_min": settings.incomplete_l1_min * 1.1,
            "trigger_visible_min": min(settings.trigger_visible_min * 1.1, 1),
            "incomplete_visible_min": min(settings.incomplete_visible_min * 1.1, 1),
        }
    )


def _decides(edit: EditResult) -> bool:
    """Whether the region counts as not protected at all if this edit does not break."""
    return edit.mask_kind == MaskKind.TRIGGER and edit.path == EditPath.CROP and not edit.held_out


def _asked(edit: EditResult, settings: Verify) -> tuple[float, float, float]:
    """The largest SSIM, the smallest L1 and the smallest visible share that a broken edit may have."""
    if edit.mask_kind != MaskKind.TRIGGER or edit.path != EditPath.CROP:
        return settings.incomplete_ssim_max, settings.incomplete_l1_min, settings.incomplete_visible_min
    return settings.trigger_ssim_max, settings.trigger_l1_min, settings.trigger_visible_min


def _not_broken(edit: EditResult, name: str, settings: Verify) -> list[str]:
    """Why a trigger edit counts as not broken at all; empty if it does not."""
    most, least, _ = _asked(edit, settings)
    effect, noise = 1 - edit.ssim, 1 - (1.0 if edit.control_ssim is None else edit.control_ssim)
    if effect < (1 - most) / HARDLY or edit.l1 < least / HARDLY:
        return [f"{name} hardly breaks (SSIM {edit.ssim:.2f}, L1 {edit.l1:.3f})"]
    if effect < settings.control_factor * noise:
        return [f"{name} breaks by {effect:.2f}, plain noise by {noise:.2f}"]
    return []
