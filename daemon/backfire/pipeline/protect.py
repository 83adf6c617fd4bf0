"""Protect one picture, from its bytes to the bytes to publish. Knows no folder and no database.

decode -> detect -> crop -> optimise -> encode, sign -> decode again -> replay and judge -> receipt and sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from backfire import imaging
from backfire.attack_paths.cropping import Crop
from backfire.config import Settings
from backfire.detectors import Source
from backfire.detectors.run import Found
from backfire.errors import BudgetExceeded
from backfire.evaluate.edits import Editors
from backfire.evaluate.judge import Judgement
from backfire.evaluate.replay import Asked, holds
from backfire.inpaint import hardware
from backfire.inpaint.hardware import PeakMemory
from backfire.perturb.optimiser import EarlyStop, Optimiser
from backfire.pipeline import memory, writing
from backfire.pipeline.memory import Rung
from backfire.pipeline.result import PhaseProgress, Result, no_progress
from backfire.pipeline.run import Judged, Run, device_name
from backfire.pipeline.writing import Written
from backfire.provenance import Work
from backfire.types import Budget, Rgb, Verdict


def protect(
    data: bytes,
    source: Source,
    settings: Settings,
    *,
    progress: PhaseProgress = no_progress,
    rung: int = 0,
    device: str | None = None,
    reviewed: bool = False,
) -> Result:
    """Protect one picture.

    Args:
        data: the picture file's bytes.
        source: its name for messages, and its sidecar masks.
        settings: only regions, protect, verify, output, editors and models are used.
        progress: called as progress(phase, done, total); may raise to stop.
        rung: rungs of the memory ladder to skip, see `memory.try_rungs`.
        device: in place of `protect.device` where that is `auto`.
        reviewed: see `detectors.run.find`.

    Raises:
        JobError: see `backfire.errors`. A verdict of `failed` is no error: it stands in the result.
    """
    run = Run(data, source, settings, progress)
    found = run.detect(reviewed=reviewed)
    if not found.regions:
        return _pass_through(run, found)
    where = device if device and settings.protect.device == "auto" else settings.protect.device
    working = settings.protect.model_copy(update={"device": where})
    ladder = memory.rungs(working, hardware.pick_device(where))
    work = partial(_protect_on, run, found, killed=rung > 0)
    return memory.try_rungs(ladder, work, start=rung)


def _protect_on(run: Run, found: Found, rung: Rung, *, killed: bool) -> Result:
    """The steps that need memory, under the settings of one rung; the key stays that of the configuration.

    Args:
        run, found, rung: the picture, its regions, and how much memory may be used.
        killed: whether the process was killed at the picture before.
    """
    picture, asked, output = run.picture, run.settings.protect, run.settings.output
    with run.phase("load"):
        editors = run.load_editors(rung.protect, frugal=rung.frugal)
    peak = PeakMemory(editors.device)
    crops = run.crops(found.regions, rung.protect)
    with run.phase("optimise"), hardware.memory_kept():
        through = [editors.paths_of(one) for one in editors.surrogates]
        optimised = Optimiser(rung.protect, editors.surrogates, editors.device, through=through).optimise(
            picture.rgb,
            crops,
            grey=picture.colourless or imaging.luma_alone(picture, format=output.format, jpeg=output.jpeg),
            rng=run.rng("optimise"),
            progress=lambda done, total: run.progress("optimise", done, total),
            early_stop=_early_stop(run, editors, rung) if asked.stop_early or asked.escalate else None,
        )
    budget = optimised.budget
    areas = writing.areas(picture.rgb, optimised.rgb, crops)
    work = Work(areas, budget.epsilon, asked.method, optimised.iterations)
    written = writing.write(run, optimised.rgb, budget, work)
    # As large as the configuration says, also where memory was enough only for a smaller optimisation.
    crops = run.crops(found.regions, asked)
    # A kill cannot be caught as an error can: it might come again where all is judged at full size.
    judged = _judged(run, written, crops, editors, budget, rung, smaller_at_once=killed)
    facts = {
        **_facts(run, written, found),
        "method": asked.method,
        "epsilon": budget.epsilon,
        "iterations": asked.iterations,
        "iterations_made": optimised.iterations,
        "device": device_name(editors.device),
        "memory_rung": rung.name,
        "peak_memory_mb": peak.bytes >> 20,
    }
    if asked.escalate:
        regions = [region for crop in crops for region in crop.regions]
        facts["rounds"] = [optimised.rounds[optimised.crop_of(region)] for region in regions]
    if asked.keep_region_exact:
        facts["region_change_levels"] = _largest_inside(picture.rgb, written.published.rgb, crops)
    receipt, sheet = run.report(judged, crops, editors, facts, optimised)
    return Result(judged.judgement.verdict, written.data, written.extension, receipt, sheet)


def _pass_through(run: Run, found: Found) -> Result:
    """No region was found: the very bytes that came in, where the output settings allow it.

    A picture that is to be scaled is, as those who take it from the outbox expect that size.
    """
    settings, budget = run.settings, Budget(run.settings.protect.epsilon)
    if writing.may_stay(run):
        written = writing.unchanged(run)
    else:
        written = writing.write(run, run.picture.rgb, budget, None)
    names = ", ".join(settings.regions.detectors)
    reasons = [f"no region found by {names}; nothing is protected", *found.notes]
    facts = {
        **_facts(run, written, found),
        "method": None,
        "epsilon": 0,
        "iterations": 0,
        "device": "none",
    }
    judgement = Judgement(Verdict.UNPROTECTED, reasons, None, written.published.largest)
    receipt, _ = run.report(Judged(judgement), (), None, facts)
    return Result(Verdict.UNPROTECTED, written.data, written.extension, receipt, None)


def _facts(run: Run, written: Written, found: Found) -> dict[str, Any]:
    height, width = run.picture.rgb.shape[:2]
    return {**run.facts(written.data, found), **written.facts, "width": width, "height": height}


def _judged(
    run: Run,
    written: Written,
    crops: Sequence[Crop],
    editors: Editors,
    budget: Budget,
    rung: Rung,
    *,
    smaller_at_once: bool,
) -> Judged:
    """The verdict on what was written.

    What was optimised smaller for want of memory is judged as large as all pictures. Where memory is not
    enough for that either, or `smaller_at_once` says so, it is judged smaller, and is `weak` at best.
    """
    # Also on the first rung: a lowered `work_px` is to cost no second optimisation.
    smaller = replace(editors, most_px=min(editors.most_px, 2 * rung.protect.work_px))

    def on(one: Rung) -> Judged:
        if one is full:
            return run.judge(written.published, crops, editors, budget)
        judged = run.judge(written.published, crops, smaller, budget)
        return replace(judged, judgement=_at_best_weak(judged.judgement))

    full = replace(rung, protect=run.settings.protect)
    if smaller.most_px >= editors.most_px:
        return on(full)
    return memory.try_rungs([full, rung], on, start=int(smaller_at_once))


def _at_best_weak(judgement: Judgement) -> Judgement:
    verdict = Verdict.WEAK if judgement.verdict == Verdict.PROTECTED else judgement.verdict
    reason = "memory was not enough to judge edits as large as those of all pictures, so they were smaller"
    return replace(judgement, verdict=verdict, reasons=[*judgement.reasons, reason])


def _early_stop(run: Run, editors: Editors, rung: Rung) -> EarlyStop:
    """Whether a crop needs no more work, asked by the optimiser; see `optimiser.EarlyStop`."""
    rng, settings = run.rng("enough"), run.settings
    if rung.frugal:
        editors = replace(editors, most_px=2 * rung.protect.work_px)

    def early_stop(so_far: Rgb, crop: Crop, after: Budget | None) -> bool:
        if after is not None:  # this is asked seldom, so of the file itself: its coding weakens the effect
            try:
                so_far = writing.decode_again(run, writing.encode(run, so_far, after).data, after).rgb
            except BudgetExceeded:
                return False
        asked = Asked(
            settings.verify,
            broken_only=after is not None,
            # In another tool nothing breaks that was not optimised through: no further round mends that.
            everywhere=settings.protect.paths == "all",
        )
        return holds(
            run.picture.rgb,
            so_far,
            crop,
            editors,
            asked=asked,
            rng=rng,
            progress=lambda done, total: run.progress("verify", done, total),
        )

    return early_stop


def _largest_inside(original: Rgb, published: Rgb, crops: Sequence[Crop]) -> int:
    """The largest change of a protected pixel, in levels of 255."""
    planes = [(original[crop.box.slices], published[crop.box.slices], crop.inside()) for crop in crops]
    return max(imaging.max_change(before[inside], after[inside]) for before, after, inside in planes)
