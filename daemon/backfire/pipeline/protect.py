"""Protect one picture, from its bytes to the bytes to publish. Knows no folder and no database.

decode -> detect -> crop -> optimise -> encode -> decode again -> replay and judge -> receipt and sheet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from backfire import imaging
from backfire.attack_paths.cropping import Crop
from backfire.config import Settings
from backfire.detectors import Source
from backfire.detectors.run import Found
from backfire.errors import BudgetExceeded, Code, InputError
from backfire.evaluate.judge import Judgement
from backfire.evaluate.replay import Asked, Editors, holds
from backfire.imaging import Encoded
from backfire.inpaint import hardware
from backfire.inpaint.hardware import PeakMemory
from backfire.perturb.optimiser import EarlyStop, Optimiser
from backfire.pipeline import memory
from backfire.pipeline.memory import Rung
from backfire.pipeline.result import PhaseProgress, Result, no_progress
from backfire.pipeline.run import Judged, Published, Run, device_name
from backfire.types import Budget, Rgb, Verdict


def protect(
    data: bytes,
    source: Source,
    settings: Settings,
    *,
    progress: PhaseProgress = no_progress,
    rung: int = 0,
    device: str | None = None,
) -> Result:
    """Protect one picture.

    Args:
        data: the picture file's bytes.
        source: its name for messages, and its sidecar masks.
        settings: only regions, protect, verify, output, editors and models are used.
        progress: called as progress(phase, done, total); may raise to stop.
        rung: rungs of the memory ladder to skip, see `memory.try_rungs`.
        device: in place of `protect.device` where that is `auto`.

    Raises:
        JobError: see `backfire.errors`. A verdict of `failed` is no error: it stands in the result.
    """
    run = Run(data, source, settings, progress)
    found = run.detect()
    if not found.regions:
        return _pass_through(run, found)
    where = device if device and settings.protect.device == "auto" else settings.protect.device
    working = settings.protect.model_copy(update={"device": where})
    ladder = memory.rungs(working, hardware.pick_device(where))
    return memory.try_rungs(ladder, partial(_protect_on, run, found), start=rung)


def _protect_on(run: Run, found: Found, rung: Rung) -> Result:
    """The steps that need memory, under the settings of one rung; the key stays that of the configuration."""
    picture, asked, output = run.picture, run.settings.protect, run.settings.output
    with run.phase("load"):
        editors = run.load_editors(rung.protect, frugal=rung.frugal)
    peak = PeakMemory(editors.device)
    crops = run.crops(found.regions, rung.protect)
    with run.phase("optimise"):
        optimised = Optimiser(rung.protect, editors.surrogates, editors.device).optimise(
            picture.rgb,
            crops,
            grey=picture.grey or imaging.luma_alone(picture, format=output.format, jpeg=output.jpeg),
            rng=run.rng("optimise"),
            progress=lambda done, total: run.progress("optimise", done, total),
            early_stop=_early_stop(run, editors) if asked.stop_early or asked.escalate else None,
        )
    budget = optimised.budget
    with run.phase("encode"):
        run.progress("encode", 0, 1)
        encoded = _encode(run, optimised.rgb, budget)
        published = _decode_again(run, encoded.data, budget)
    judged = run.judge(published, crops, editors, budget)
    facts = {
        **_facts(run, encoded.data, encoded.how, found, encoded.left_out),
        "method": asked.method,
        "epsilon": budget.epsilon,
        "iterations": asked.iterations,
        "iterations_made": optimised.iterations,
        "device": device_name(editors.device),
        "memory_rung": rung.name,
        "peak_memory_mb": peak.bytes >> 20,
    }
    if asked.escalate:
        facts["rounds"] = [n for crop, n in zip(crops, optimised.rounds, strict=True) for _ in crop.regions]
    if asked.keep_region_exact:
        facts["region_change_levels"] = _largest_inside(picture.rgb, published.rgb, crops)
    receipt, sheet = run.report(judged, crops, editors, facts, optimised)
    return Result(judged.judgement.verdict, encoded.data, encoded.extension, receipt, sheet)


def _pass_through(run: Run, found: Found) -> Result:
    """No region under `none_found: pass`: the very bytes that came in, where the output settings allow it."""
    settings, data, how, largest = run.settings, run.data, "unchanged", 0
    left_out: Sequence[str] = ()
    extension = os.path.splitext(run.source.name)[1].lower()
    if (settings.output.format, settings.output.metadata) != ("same", "keep"):
        budget = Budget(settings.protect.epsilon)
        encoded = _encode(run, run.picture.rgb, budget)
        data, extension, how, left_out = encoded.data, encoded.extension, encoded.how, encoded.left_out
        largest = _decode_again(run, data, budget).largest
    names = ", ".join(settings.regions.detectors)
    reasons = [f"no region found by {names}; published without protection", *found.notes]
    facts = {
        **_facts(run, data, how, found, left_out),
        "method": None,
        "epsilon": 0,
        "iterations": 0,
        "device": "none",
    }
    judgement = Judgement(Verdict.UNPROTECTED, reasons, None, largest)
    receipt, _ = run.report(Judged(judgement), (), None, facts)
    return Result(Verdict.UNPROTECTED, data, extension, receipt, None)


def _facts(run: Run, data: bytes, how: str, found: Found, left_out: Sequence[str]) -> dict[str, Any]:
    height, width = run.picture.rgb.shape[:2]
    written = {"written_as": how, "left_out": list(left_out)}
    return {**run.facts(data, found), **written, "width": width, "height": height}


def _encode(run: Run, rgb: Rgb, budget: Budget) -> Encoded:
    """The picture with other pixels, as the output settings have it."""
    output = run.settings.output
    return imaging.encode(
        run.picture,
        rgb,
        levels=budget.levels,
        format=output.format,
        metadata=output.metadata,
        jpeg=output.jpeg,
        opaque=output.opaque,
    )


def _decode_again(run: Run, data: bytes, budget: Budget) -> Published:
    """What somebody will see of the bytes to publish.

    Raises:
        BudgetExceeded: they differ from the original by more than the budget.
        InputError: they hold a picture of another size.
    """
    name = run.source.name
    decoded = imaging.decode(data, name=f"{name} as written", max_pixels=run.settings.output.max_pixels)
    if decoded.rgb.shape != run.picture.rgb.shape:
        raise InputError(
            Code.INTERNAL, f"{name}: came out {decoded.rgb.shape}, went in {run.picture.rgb.shape}"
        )
    largest = imaging.largest_change(run.picture, decoded)
    if largest > budget.levels:
        raise BudgetExceeded(
            f"{name}: the written file differs from the original by {largest} levels, the budget is "
            f"{budget.levels} levels; set output.format to png or raise protect.epsilon"
        )
    return Published(decoded.rgb, largest)


def _early_stop(run: Run, editors: Editors) -> EarlyStop:
    """Whether a crop needs no more work, asked by the optimiser; see `optimiser.EarlyStop`."""
    rng, settings = run.rng("enough"), run.settings

    def early_stop(so_far: Rgb, crop: Crop, after: Budget | None) -> bool:
        if after is not None:  # this is asked seldom, so of the file itself: its coding weakens the effect
            try:
                so_far = _decode_again(run, _encode(run, so_far, after).data, after).rgb
            except BudgetExceeded:
                return False
        asked = Asked(
            settings.verify,
            broken_only=after is not None,
            # At another scale nothing breaks that was not optimised through: no further round mends that.
            resized=after is None or "paths" in settings.protect.robust_to,
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
