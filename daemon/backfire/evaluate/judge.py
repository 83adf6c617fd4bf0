"""The verdict: replayed edits compared with the thresholds of the settings. No torch, no model.

It is one long module because the rules of a verdict are to be read together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np

from backfire.config import Verify
from backfire.evaluate.words import EDITS, tool
from backfire.types import Budget, MaskKind, Verdict

HARDLY = 8
"""A trigger edit that breaks by less than this fraction of what is asked counts as not broken at all."""
BREAKING = (MaskKind.TRIGGER, MaskKind.DILATED, MaskKind.PARTIAL)
"""Edits that touch the region, and are to break."""
THRESHOLDS = (
    "trigger_ssim_max",
    "trigger_l1_min",
    "trigger_visible_min",
    "incomplete_ssim_max",
    "incomplete_l1_min",
    "incomplete_visible_min",
    "plain_visible_min",
    "incomplete_plain_visible_min",
    "near_ssim_min",
    "far_ssim_min",
    "control_factor",
)
"""The settings that a verdict rests on."""
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
        control_ssim: the SSIM for random noise as large as the perturbation (trigger edits by surrogates
            only).
        target_distance: L1 to the target picture (`target: flat` and `inverted` only).
        held_out: whether the editor is not optimised against; it makes trigger edits alone.
        path: the attack path; on others than the editor's first only trigger and dilated edits are replayed.
        flattened: whether both pictures were laid on white, as tools do that know no transparency.
    """

    editor: str
    region: int
    mask_kind: MaskKind
    ssim: float
    l1: float
    held_out: bool
    control_ssim: float | None = None
    target_distance: float | None = None
    path: str = "iopaint"
    visible: float | None = None
    flattened: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The edit of a receipt's row, which may say more of it, such as where it is on the sheet."""
        known = {one.name for one in fields(cls)}
        found: dict[str, Any] = {name: value for name, value in row.items() if name in known}
        # JSON has no number for what is not finite.
        found |= {name: np.nan for name in ("ssim", "l1") if row.get(name, 0) is None}
        return cls(**found)

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
        not_measured: what could not be replayed, in words; it weakens nothing.
        tools: see the function `tools`; edits of a little more or less than the region do not count in it.
        tools_dilated: the same of edits of a little more than the region.
        settings: the thresholds; None where nothing was edited.
    """

    verdict: Verdict
    reasons: list[str]
    psnr_db: float | None
    max_change_levels: int
    edits: list[EditResult] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    tools: dict[str, bool] = field(default_factory=dict)
    tools_dilated: dict[str, bool] = field(default_factory=dict)
    settings: Verify | None = None

    def thresholds(self) -> dict[str, float]:
        """The thresholds that the verdict rests on."""
        return {} if self.settings is None else self.settings.model_dump(include=set(THRESHOLDS))


def asking_nothing(settings: Verify) -> dict[str, float]:
    """The thresholds, with their values, that the edits of every picture meet, protected or not.

    A trigger edit that changes nothing, or no more than noise does, is `failed` even so.
    """
    values = settings.model_dump(include=set(THRESHOLDS))
    ends = {name: 1.0 if name.endswith("_max") or name == "control_factor" else 0.0 for name in values}
    return {
        name: value
        for name, value in values.items()
        if (value >= ends[name] if name.endswith("_max") else value <= ends[name])
    }


def judge(
    edits: Sequence[EditResult],
    largest: int,
    budget: Budget,
    settings: Verify,
    *,
    regions: int = 0,
    cannot_judge: Sequence[str] = (),
) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, the gravest first; thresholds by the factor by which they are missed.

    * `failed`: the budget is exceeded, a surrogate's edit is not finite, or of some region the trigger edit
      through a surrogate, on the first attack path, is missing, changes nothing, breaks by less than an
      eighth of what is asked, or no more than plain noise breaks it.
    * `weak`: some threshold is missed, or in some other tool the edit changes nothing, or by less than twice
      (`control_factor`) what plain noise changes it while more than half of that edit is left; where edits
      do not break in some tool, that is named.
    * `protected`: all thresholds are met that are asked, see `is_asked`, and the effect carries over: by each
      held-out editor, the edit of the region breaks in half of its tools at least.

    Args:
        edits: of each region and editor, those on its first attack path first.
        largest: the largest change of a sample as the file stores it, in levels of 255.
        regions: how many there are, of some of which there may be no edit; 0 for those that edits are of.
        cannot_judge: see `Replayed`; each makes the verdict `weak`.
    """
    failed: list[str] = []
    missed: list[tuple[float, str]] = []
    decided: set[int] = set()
    first = first_paths(edits)
    broken = tools(edits, settings)
    if largest > budget.levels:
        failed.append(f"largest change is {largest} levels, the budget {budget.levels}")
    for edit in edits:
        on_first_path = edit.path == first[edit.editor, edit.region]
        decides = on_first_path and edit.mask_kind == MaskKind.TRIGGER and not edit.held_out
        name = f"region {edit.region}: {edit.mask_kind} edit in {edit.path} by {edit.editor}"
        name += " of the picture on white" if edit.flattened else ""
        if not is_finite(edit):
            why = f"{name} gave no finite picture"
            if edit.held_out:
                missed.append((float("inf"), why))
            else:
                failed.append(why)
        elif not edit.held_out:
            if is_asked(edit, on_first_path=on_first_path):
                missed += [
                    (factor, f"{name} {miss}") for factor, miss in _missed(edit, settings, on_first_path)
                ]
            if decides:
                decided.add(edit.region)
                failed += _not_broken(edit, name, settings)
    for region in sorted({*range(regions), *(edit.region for edit in edits)} - decided):
        failed.append(f"region {region}: no trigger edit by a surrogate was replayed")
    if not edits:
        failed.append("no edit was replayed")
    missed += _not_carried_over(edits, settings)
    missed += [(float("inf"), reason) for reason in cannot_judge]
    told = [in_tools(broken)] if not all(broken.values()) else []
    weak = told + [reason for _, reason in sorted(missed, key=lambda one: -one[0])]
    verdict = Verdict.FAILED if failed else Verdict.WEAK if weak else Verdict.PROTECTED
    return verdict, [*dict.fromkeys(failed + weak)]


def is_asked(edit: EditResult, *, on_first_path: bool) -> bool:
    """Whether the verdict rests on an edit, of which else it is only told what becomes of it.

    On its editor's first attack path it rests on every kind, elsewhere on the edit of the region alone.

    Args:
        on_first_path: as in `misses`.
    """
    return on_first_path or edit.mask_kind == MaskKind.TRIGGER


def tools(
    edits: Sequence[EditResult], settings: Verify, kind: MaskKind = MaskKind.TRIGGER
) -> dict[str, bool]:
    """By attack path, whether the edits of a kind break, of every region and by every surrogate.

    It is no verdict: where a dilated or a partial edit misses its thresholds on the first path, it is `weak`
    although the edit of exactly the region breaks in every tool.
    """
    first = first_paths(edits)
    broken: dict[str, bool] = {}
    for edit in edits:
        if edit.mask_kind == kind and not edit.held_out:
            missed = misses(edit, settings, on_first_path=edit.path == first[edit.editor, edit.region])
            broken[edit.path] = broken.get(edit.path, True) and not missed
    return broken


def _not_carried_over(edits: Sequence[EditResult], settings: Verify) -> Iterator[tuple[float, str]]:
    """The regions whose edit by a held-out editor breaks in less than half of its tools; as `_missed`."""
    groups: dict[tuple[str, int, bool], list[EditResult]] = {}
    for edit in edits:
        if edit.held_out and edit.mask_kind == MaskKind.TRIGGER:
            groups.setdefault((edit.editor, edit.region, edit.flattened), []).append(edit)
    for (editor, region, flattened), own in groups.items():
        broken = sum(not misses(edit, settings, on_first_path=False) for edit in own)
        if 2 * broken < len(own):
            said = f"edits by the held-out editor {editor} "
            said += "of the picture on white " if flattened else ""
            said += f"break in {broken} of {len(own)} tools, half asked"
            yield len(own) / 2 / max(broken, 0.5), f"region {region}: {said}"


def in_tools(broken: Mapping[str, bool]) -> str:
    """In which tools edits break, and in which they do not, for a person; as `tools` returns it."""
    said = [
        f"{start} {', '.join(map(tool, named))}"
        for start, named in (
            ("broken in", [name for name, breaks in broken.items() if breaks]),
            ("not broken in", [name for name, breaks in broken.items() if not breaks]),
        )
        if named
    ]
    return "; ".join(said)


def of_larger_masks(verdict: str, broken: Mapping[str, bool]) -> str:
    """In which tools edits of a little more than the region break, for a person; empty if it is not told.

    Of a `failed` picture it is not, of which the edit of the region itself hardly breaks.

    Args:
        broken: as `Judgement.tools_dilated`.
    """
    if verdict == Verdict.FAILED or not broken:
        return ""
    return f"edits {EDITS[MaskKind.DILATED]}: {in_tools(broken)}"


def misses(edit: EditResult, settings: Verify, *, on_first_path: bool = True) -> list[str]:
    """The thresholds that an edit misses, in words.

    Args:
        on_first_path: whether it was replayed on the editor's first attack path, see `first_paths`.
    """
    return [miss for _, miss in _missed(edit, settings, on_first_path)]


def worst(calls: Sequence[EditResult], settings: Verify, *, on_first_path: bool = True) -> EditResult:
    """Of the calls in which a tool makes one edit, that which counts: it misses most, or keeps the most SSIM.

    Args:
        on_first_path: as in `misses`.
    """

    def gravity(edit: EditResult) -> tuple[bool, bool, float, float]:
        decides = on_first_path and edit.mask_kind == MaskKind.TRIGGER and not edit.held_out
        most = max((factor for factor, _ in _missed(edit, settings, on_first_path)), default=0.0)
        return not is_finite(edit), decides and bool(_not_broken(edit, "", settings)), most, edit.ssim

    return max(calls, key=gravity)


def is_finite(edit: EditResult) -> bool:
    """Whether an edit's figures are numbers; they are not where an editor gave no finite picture."""
    return bool(np.isfinite([edit.ssim, edit.l1, edit.control_ssim or 0.0]).all())


def limits(edit: EditResult, settings: Verify, *, on_first_path: bool = True) -> tuple[str, str, str]:
    """What is asked of SSIM, L1 and the share that is seen, for a table; `on_first_path` as in `misses`.

    A figure of which nothing is asked has an empty text.
    """
    if edit.mask_kind not in BREAKING:
        return f">={_floor(edit, settings):g}", "", ""
    most, least, seen = _asked(edit, settings, on_first_path)
    most_ssim = "" if _is_plain(edit, settings, on_first_path) else f"<={most:g}"
    return most_ssim, f">={least:g}", "" if edit.visible is None else f">={seen:.0%}"


def _missed(edit: EditResult, settings: Verify, on_first_path: bool) -> list[tuple[float, str]]:
    """The thresholds that an edit misses: by which factor, and in words."""
    if edit.mask_kind not in BREAKING:
        floor = _floor(edit, settings)
        miss = f"changes to SSIM {edit.ssim:.3f}, at least {floor:g} asked"
        return [] if edit.ssim >= floor else [(_factor(1 - edit.ssim, 1 - floor), miss)]
    most, least, seen = _asked(edit, settings, on_first_path)
    found = []
    effect, noise = 1 - edit.ssim, 0.0 if edit.control_ssim is None else 1 - edit.control_ssim
    by_noise = f"breaks by {effect:.2f}, plain noise by {noise:.2f}"
    # Asked whatever the settings are, so that thresholds that ask nothing make no tool "broken".
    if edit.l1 == 0 or effect <= noise:
        found.append((float("inf"), by_noise))
    # Where noise alone breaks half of an edit, nothing can break it twice as much: then, elsewhere than on
    # the first path, twice as little must be left of it.
    elif effect < settings.control_factor * noise and (
        on_first_path or edit.ssim * settings.control_factor > 1 - noise
    ):
        found.append((settings.control_factor * noise / effect, by_noise))
    if not edit.ssim <= most and not _is_plain(edit, settings, on_first_path):
        miss = f"keeps SSIM {edit.ssim:.3f} of the clean edit, at most {most:g} asked"
        found.append((_factor(1 - most, 1 - edit.ssim), miss))
    if not edit.l1 >= least:
        miss = f"moves by L1 {edit.l1:.3f}, at least {least:g} asked"
        found.append((_factor(least, edit.l1), miss))
    if edit.visible is not None and not edit.visible >= seen:
        miss = f"is plainly broken over {edit.visible:.0%} of its area only, at least {seen:.0%} asked"
        found.append((_factor(seen, edit.visible), miss))
    return found


def _is_plain(edit: EditResult, settings: Verify, on_first_path: bool) -> bool:
    """Whether a person sees another edit nearly everywhere, so that SSIM is not asked.

    SSIM says little of areas without texture: one that is filled evenly in a wrong colour keeps most of it.
    """
    share = (
        settings.plain_visible_min
        if _is_whole(edit, on_first_path)
        else settings.incomplete_plain_visible_min
    )
    return edit.visible is not None and edit.visible >= share


def _is_whole(edit: EditResult, on_first_path: bool) -> bool:
    """Whether the thresholds of a trigger edit are asked, and not those of an incomplete one."""
    return edit.mask_kind == MaskKind.TRIGGER and on_first_path and not edit.held_out


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
            "plain_visible_min": min(settings.plain_visible_min * 1.1, 1),
            "incomplete_plain_visible_min": min(settings.incomplete_plain_visible_min * 1.1, 1),
        }
    )


def first_paths(edits: Sequence[EditResult]) -> dict[tuple[str, int], str]:
    """By editor and region, the attack path of the first edit."""
    found: dict[tuple[str, int], str] = {}
    for edit in edits:
        found.setdefault((edit.editor, edit.region), edit.path)
    return found


def _asked(edit: EditResult, settings: Verify, on_first_path: bool) -> tuple[float, float, float]:
    """The largest SSIM, the smallest L1 and the smallest visible share that a broken edit may have."""
    if not _is_whole(edit, on_first_path):
        return settings.incomplete_ssim_max, settings.incomplete_l1_min, settings.incomplete_visible_min
    return settings.trigger_ssim_max, settings.trigger_l1_min, settings.trigger_visible_min


def _not_broken(edit: EditResult, name: str, settings: Verify) -> list[str]:
    """Why a trigger edit counts as not broken at all; empty if it does not."""
    most, least, _ = _asked(edit, settings, True)
    effect, noise = 1 - edit.ssim, 1 - (1.0 if edit.control_ssim is None else edit.control_ssim)
    if effect < (1 - most) / HARDLY or edit.l1 < least / HARDLY or edit.l1 == 0:
        return [f"{name} hardly breaks (SSIM {edit.ssim:.2f}, L1 {edit.l1:.3f})"]
    if effect < settings.control_factor * noise or effect <= noise:
        return [f"{name} breaks by {effect:.2f}, plain noise by {noise:.2f}"]
    return []
