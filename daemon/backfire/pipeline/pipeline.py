"""One picture from its bytes to the bytes to publish: the steps of a job, in order, without folders.

decode -> detect -> crop -> optimise -> encode -> decode again -> verify -> receipt and sheet.
Longer than 300 lines so that the job and its replay (`backfire verify`) share one set of steps.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backfire import imaging, inpaint
from backfire.attack_paths import geometry
from backfire.attack_paths.geometry import Crop
from backfire.config import Output, Protect, Settings
from backfire.detect import Source, run
from backfire.detect.run import Found
from backfire.errors import BudgetExceeded, Code, InputError
from backfire.evaluate import report, verify
from backfire.evaluate.report import Heat
from backfire.evaluate.verify import Verification
from backfire.imaging import Encoded, Picture
from backfire.inpaint.base import Editor
from backfire.inpaint.hardware import PeakMemory
from backfire.perturb import optimiser
from backfire.perturb.optimiser import Enough, Phase, Protected
from backfire.pipeline import memory
from backfire.pipeline.memory import Rung
from backfire.types import Budget, Region, Rgb, Verdict, job_key, mask_digest


@dataclass(frozen=True, eq=False)
class Result:
    """What a job produced.

    Attributes:
        data: the bytes to publish.
        extension: with the dot, lower case; what `data` is.
        receipt: the receipt, see the README.
        sheet: the before/after sheet, JPEG; None where nothing was protected.
    """

    verdict: Verdict
    data: bytes
    extension: str
    receipt: dict[str, Any]
    sheet: bytes | None


def _mask_digest(source: Source) -> str | None:
    return mask_digest([hashlib.sha256(sidecar.data).hexdigest() for sidecar in source.sidecars])


def generator(key: str, purpose: str) -> np.random.Generator:
    """Randomness from the job's key; each purpose has its own stream."""
    return np.random.default_rng(list(hashlib.sha256(f"{key}:{purpose}".encode()).digest()))


class _Watch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)


def _nothing(phase: str, done: int, total: int) -> None:
    pass


def process(
    data: bytes,
    source: Source,
    settings: Settings,
    *,
    progress: Phase = _nothing,
    rung: int = 0,
    device: str | None = None,
) -> Result:
    """Protect one picture.

    Args:
        data: the picture file's bytes.
        source: its name for messages, and its sidecar masks.
        settings: only regions, protect, verify and output are used.
        progress: called as progress(phase, done, total); may raise to stop.
        rung: rungs of the memory ladder to skip, see `memory.descend`.
        device: in place of `protect.device` where that is `auto`.

    Raises:
        JobError: see `backfire.errors`; a verdict of `failed` is no error here but in the result.
    """
    watch = _Watch()
    began = time.perf_counter()
    with watch.phase("decode"), memory.watched(source.name):
        progress("decode", 0, 1)
        picture = imaging.decode(
            data, name=source.name, max_pixels=settings.output.max_pixels, frames=settings.output.frames
        )
    with watch.phase("detect"), memory.watched(source.name):
        progress("detect", 0, 1)
        found = run.find(picture, source, settings.regions)
    if not found.regions:
        return _passed(data, picture, source, settings, found, watch, began)

    where = device if device and settings.protect.device == "auto" else settings.protect.device
    working = settings.protect.model_copy(update={"device": where})
    ladder = memory.rungs(working, optimiser.pick_device(where))
    return memory.descend(
        ladder,
        lambda step: _protected(data, picture, found, source, settings, step, progress, watch, began),
        start=rung,
    )


def _protected(
    data: bytes,
    picture: Picture,
    found: Found,
    source: Source,
    settings: Settings,
    rung: Rung,
    progress: Phase,
    watch: _Watch,
    began: float,
) -> Result:
    """The steps that need memory, as one rung of the ladder has them; the key stays the configuration's."""
    key = _digests(data, b"", source, settings)["key"]
    with watch.phase("load"), memory.watched(source.name):
        bench = _Bench.of(settings, rung.protect, frugal=rung.frugal)
    peak = PeakMemory(bench.device)
    crops = _crops(picture.rgb, found.regions, rung.protect)
    asked = settings.protect.stop_early or settings.protect.escalate
    output = settings.output

    with watch.phase("optimise"), memory.watched(source.name):
        optimised = optimiser.optimise(
            picture.rgb,
            picture.grey or imaging.luma_alone(picture, format=output.format, jpeg=output.jpeg),
            crops,
            rung.protect,
            bench.surrogates,
            device=bench.device,
            rng=generator(key, "optimise"),
            progress=lambda done, total: progress("optimise", done, total),
            enough=_enough(picture, source, bench, settings, key, progress) if asked else None,
        )
    budget = optimised.budget
    with watch.phase("encode"):
        progress("encode", 0, 1)
        encoded = _encoded(picture, optimised.rgb, budget, output)
        published, largest = _decoded_again(encoded.data, source, picture, settings, budget)
    with watch.phase("verify"), memory.watched(source.name):
        edits = _edits_key(data, source)
        verification = _verified(
            picture.rgb, published, largest, crops, bench, settings, budget, edits, progress
        )
    facts = {
        "file": source.name,
        "written_as": encoded.how,
        **_digests(data, encoded.data, source, settings),
        "width": picture.rgb.shape[1],
        "height": picture.rgb.shape[0],
        "skipped_detectors": found.skipped,
        "method": settings.protect.method,
        "epsilon": budget.epsilon,
        "iterations": settings.protect.iterations,
        "iterations_made": optimised.iterations,
        "device": bench.device_name,
        "memory_rung": rung.name,
        "peak_memory_mb": peak.bytes >> 20,
    }
    if settings.protect.escalate:
        facts["rounds"] = [n for crop, n in zip(crops, optimised.rounds, strict=True) for _ in crop.regions]
    if settings.protect.keep_region_exact:
        facts["region_change_levels"] = _inside(picture.rgb, published, crops)
    receipt, sheet = _told(verification, crops, bench, facts, source.name, watch, began, optimised=optimised)
    return Result(verification.verdict, encoded.data, encoded.extension, receipt, sheet)


def replay(
    original: bytes, protected: bytes, source: Source, settings: Settings, *, progress: Phase = _nothing
) -> Result:
    """Verify a published file against its original: the command `backfire verify`.

    Args:
        original, protected: the two files' bytes.
        source: the original's name and the masks of the protected regions; without masks the
            configured detectors say what is protected.
    """
    watch = _Watch()
    began = time.perf_counter()
    picture = imaging.decode(
        original, name=source.name, max_pixels=settings.output.max_pixels, frames=settings.output.frames
    )
    other = imaging.decode(protected, name="the protected picture", max_pixels=settings.output.max_pixels)
    if other.rgb.shape != picture.rgb.shape:
        got, want = other.rgb.shape[1::-1], picture.rgb.shape[1::-1]
        message = (
            f"the protected picture is {got[0]}x{got[1]}, the original {want[0]}x{want[1]}; "
            "verify needs the file as it was published, not a resized copy"
        )
        raise InputError(Code.UNREADABLE, message)
    found = run.find(picture, source, settings.regions)
    bench = _Bench.of(settings, settings.protect)
    crops = _crops(picture.rgb, found.regions, settings.protect)
    with watch.phase("verify"), memory.watched(source.name):
        largest = imaging.largest_change(picture, other)
        budget = Budget(settings.protect.rounds()[-1].epsilon)
        edits = _edits_key(original, source)
        verification = _verified(
            picture.rgb, other.rgb, largest, crops, bench, settings, budget, edits, progress
        )
    facts = {
        "file": source.name,
        **_digests(original, protected, source, settings),
        "skipped_detectors": found.skipped,
        "device": bench.device_name,
    }
    receipt, sheet = _told(verification, crops, bench, facts, source.name, watch, began)
    return Result(verification.verdict, protected, "", receipt, sheet)


def _encoded(picture: Picture, rgb: Rgb, budget: Budget, output: Output) -> Encoded:
    """The picture with other pixels, as the output settings have it."""
    return imaging.encode(
        picture,
        rgb,
        levels=budget.levels,
        format=output.format,
        metadata=output.metadata,
        jpeg=output.jpeg,
    )


def _decoded_again(
    data: bytes, source: Source, original: Picture, settings: Settings, budget: Budget
) -> tuple[Rgb, int]:
    """What somebody will see of the bytes to publish, and the largest change of a stored sample.

    Refused if that left the budget.
    """
    published = imaging.decode(data, name=f"{source.name} as written", max_pixels=settings.output.max_pixels)
    if published.rgb.shape != original.rgb.shape:
        raise InputError(
            Code.INTERNAL, f"{source.name}: came out {published.rgb.shape}, went in {original.rgb.shape}"
        )
    largest = imaging.largest_change(original, published)
    if largest > budget.levels:
        raise BudgetExceeded(
            f"{source.name}: the written file differs from the original by {largest} levels, the budget "
            f"is {budget.epsilon:g}; set output.format to png or raise protect.epsilon"
        )
    return published.rgb, largest


def _passed(
    data: bytes,
    picture: Picture,
    source: Source,
    settings: Settings,
    found: Found,
    watch: _Watch,
    began: float,
) -> Result:
    """No region and `none_found: pass`: the very bytes that came in where the output settings allow it."""
    output, how, largest = data, "unchanged", 0
    extension = os.path.splitext(source.name)[1].lower()
    if (settings.output.format, settings.output.metadata) != ("same", "keep"):
        encoded = _encoded(picture, picture.rgb, Budget(settings.protect.epsilon), settings.output)
        output, extension, how = encoded.data, encoded.extension, encoded.how
        _, largest = _decoded_again(output, source, picture, settings, Budget(settings.protect.epsilon))
    names = ", ".join(settings.regions.detectors)
    reasons = [f"no region found by {names}; published without protection", *found.notes]
    facts = {
        "file": source.name,
        "written_as": how,
        **_digests(data, output, source, settings),
        "width": picture.rgb.shape[1],
        "height": picture.rgb.shape[0],
        "skipped_detectors": found.skipped,
        "method": None,
        "epsilon": 0,
        "iterations": 0,
        "device": "none",
    }
    verification = Verification(Verdict.UNPROTECTED, reasons, None, largest)
    receipt, _ = _told(verification, (), None, facts, source.name, watch, began)
    return Result(Verdict.UNPROTECTED, output, extension, receipt, None)


def _edits_key(original: bytes, source: Source) -> str:
    """What seeds the edits that judge: of picture and mask alone, so that `replay` draws them again whatever
    the settings, and those of one picture can be compared."""
    return job_key(hashlib.sha256(original).hexdigest(), _mask_digest(source), "")


def _digests(original: bytes, output: bytes, source: Source, settings: Settings) -> dict[str, Any]:
    input_sha, mask_sha = hashlib.sha256(original).hexdigest(), _mask_digest(source)
    return {
        "key": job_key(input_sha, mask_sha, settings.sha256),
        "input_sha256": input_sha,
        "output_sha256": hashlib.sha256(output).hexdigest(),
        "mask_sha256": mask_sha,
        "config_sha256": settings.sha256,
    }


@dataclass(frozen=True, eq=False)
class _Bench:
    """The device and the editors on it."""

    device: torch.device
    surrogates: Sequence[Editor]
    held_out: Sequence[Editor]

    @classmethod
    def of(cls, settings: Settings, working: Protect, *, frugal: bool = False) -> _Bench:
        """`working`: the protect section as the rung of the memory ladder has it."""
        device = optimiser.pick_device(working.device)

        def editor(name: str) -> Editor:
            found = inpaint.get(name, device, settings)
            return memory.Frugal(found) if frugal else found

        return cls(device, [*map(editor, working.surrogates)], [*map(editor, settings.verify.held_out)])

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)


def _crops(rgb: Rgb, regions: Sequence[Region], settings: Protect) -> list[Crop]:
    height, width = rgb.shape[:2]
    margin, work, whole = settings.margin_px, settings.work_px, settings.whole_px
    return geometry.plan(regions, height, width, margin=margin, work=work, whole=whole)


def _verified(
    original: Rgb,
    published: Rgb,
    largest: int,
    crops: Sequence[Crop],
    bench: _Bench,
    settings: Settings,
    budget: Budget,
    key: str,
    progress: Phase,
) -> Verification:
    return verify.verify(
        original,
        published,
        crops,
        bench.surrogates,
        bench.held_out,
        budget,
        settings.verify,
        largest=largest,
        target=settings.protect.target,
        device=bench.device,
        rng=generator(key, "verify"),
        progress=lambda done, total: progress("verify", done, total),
    )


def _enough(
    picture: Picture, source: Source, bench: _Bench, settings: Settings, key: str, progress: Phase
) -> Enough:
    rng = generator(key, "enough")

    def enough(so_far: Rgb, crop: Crop, after: Budget | None) -> bool:
        if after is not None:  # seldom asked, so of the file itself: its coding takes of the effect
            file = _encoded(picture, so_far, after, settings.output)
            try:
                so_far, _ = _decoded_again(file.data, source, picture, settings, after)
            except BudgetExceeded:
                return False
        return verify.holds(
            picture.rgb,
            so_far,
            crop,
            bench.surrogates,
            settings.verify,
            broken=after is not None,
            # At another scale nothing breaks that was not optimised through: no further round mends it.
            resized=after is None or "paths" in settings.protect.robust_to,
            device=bench.device,
            rng=rng,
            progress=lambda done, total: progress("verify", done, total),
        )

    return enough


def _inside(original: Rgb, published: Rgb, crops: Sequence[Crop]) -> int:
    """The largest change of a protected pixel, in levels of 255."""
    planes = [(original[crop.box.slices], published[crop.box.slices], crop.inside()) for crop in crops]
    return max(imaging.max_change(before[inside], after[inside]) for before, after, inside in planes)


def _told(
    verification: Verification,
    crops: Sequence[Crop],
    bench: _Bench | None,
    facts: dict[str, Any],
    title: str,
    watch: _Watch,
    began: float,
    *,
    optimised: Protected | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """Receipt and sheet; regions in the order in which the edits count them."""
    with watch.phase("report"):
        heat = _heat(crops, bench, optimised) if bench and optimised else []
        sheet = report.sheet(title, verification, heat) if verification.panels else None
    times = {"elapsed_s": round(time.perf_counter() - began, 3), "timings_s": watch.seconds}
    document = report.receipt(
        verification=verification,
        regions=[region for crop in crops for region in crop.regions],
        surrogates=bench.surrogates if bench else (),
        held_out=bench.held_out if bench else (),
        gradients=optimised.gradients if optimised else (),
        facts={**facts, **times},
    )
    return document, sheet


def _heat(crops: Sequence[Crop], bench: _Bench, optimised: Protected) -> list[list[Heat]]:
    """By region, as the edits count them: what each surrogate pulled at."""
    return [
        [Heat(editor.name, plane) for editor, plane in zip(bench.surrogates, planes, strict=True)]
        for crop, planes in zip(crops, optimised.heat, strict=True)
        for _ in crop.regions
    ]
