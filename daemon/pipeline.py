"""One picture from its bytes to the bytes to publish: the steps of a job, in order, without folders.

decode -> detect -> crop -> optimise -> encode -> decode again -> verify -> receipt and sheet.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from daemon import editors, geometry, images, protect, report, verify
from daemon.config import Settings
from daemon.detectors import Source
from daemon.domain import Budget, Region, Rgb, Verdict, job_key, mask_digest
from daemon.editors.base import Editor
from daemon.errors import BudgetExceeded, Code, InputError
from daemon.protect import Phase
from daemon.verify import Verification


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


def process(data: bytes, source: Source, settings: Settings, *, progress: Phase = _nothing) -> Result:
    """Protect one picture.

    Args:
        data: the picture file's bytes.
        source: its name for messages, and its sidecar masks.
        settings: only regions, protect, verify and output are used.
        progress: called as progress(phase, done, total); may raise to stop.

    Raises:
        JobError: see `daemon.errors`; a verdict of `failed` is no error here but in the result.
    """
    watch = _Watch()
    began = time.perf_counter()
    input_sha, mask_sha = hashlib.sha256(data).hexdigest(), _mask_digest(source)
    key = job_key(input_sha, mask_sha, settings.sha256)

    with watch.phase("decode"):
        progress("decode", 0, 1)
        picture = images.decode(data, name=source.name, max_pixels=settings.output.max_pixels)
    with watch.phase("detect"):
        progress("detect", 0, 1)
        regions = protect.find(picture.rgb, source, settings.regions)
    if not regions:
        return _passed(data, source, input_sha, mask_sha, settings, watch, began)

    with watch.phase("load"):
        device = protect.pick_device(settings.protect.device)
        surrogates = [editors.get(name, device) for name in settings.protect.surrogates]
        held_out = [editors.get(name, device) for name in settings.verify.held_out]
    height, width = picture.rgb.shape[:2]
    crops = geometry.plan(
        regions, height, width, margin=settings.protect.margin_px, work=settings.protect.work_px
    )
    regions = [region for crop in crops for region in crop.regions]
    budget = Budget(settings.protect.epsilon)

    with watch.phase("optimise"):
        changed = protect.optimise(
            picture.rgb,
            picture.grey,
            crops,
            settings.protect,
            surrogates,
            device=device,
            rng=generator(key, "optimise"),
            progress=lambda done, total: progress("optimise", done, total),
        )
    with watch.phase("encode"):
        progress("encode", 0, 1)
        encoded = images.encode(
            picture,
            changed,
            levels=budget.levels,
            format=settings.output.format,
            metadata=settings.output.metadata,
        )
        published = _decoded_again(encoded.data, source, picture.rgb, settings, budget)
    with watch.phase("verify"):
        verification = verify.verify(
            picture.rgb,
            published,
            crops,
            surrogates,
            held_out,
            budget,
            settings.verify,
            target=settings.protect.target,
            device=device,
            rng=generator(key, "verify"),
            progress=lambda done, total: progress("verify", done, total),
        )
    facts = {
        "file": source.name,
        "written_as": encoded.how,
        **_digests(data, encoded.data, mask_sha, settings, key),
        "width": width,
        "height": height,
        "method": settings.protect.method,
        "epsilon": settings.protect.epsilon,
        "iterations": settings.protect.iterations,
        "device": _device_name(device),
    }
    receipt, sheet = _told(verification, regions, surrogates, held_out, facts, source.name, watch, began)
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
    picture = images.decode(original, name=source.name, max_pixels=settings.output.max_pixels)
    other = images.decode(protected, name="the protected picture", max_pixels=settings.output.max_pixels)
    if other.rgb.shape != picture.rgb.shape:
        got, want = other.rgb.shape[1::-1], picture.rgb.shape[1::-1]
        message = (
            f"the protected picture is {got[0]}x{got[1]}, the original {want[0]}x{want[1]}; "
            "verify needs the file as it was published, not a resized copy"
        )
        raise InputError(Code.UNREADABLE, message)
    regions = protect.find(picture.rgb, source, settings.regions)
    device = protect.pick_device(settings.protect.device)
    surrogates = [editors.get(name, device) for name in settings.protect.surrogates]
    held_out = [editors.get(name, device) for name in settings.verify.held_out]
    crops = geometry.plan(
        regions,
        picture.rgb.shape[0],
        picture.rgb.shape[1],
        margin=settings.protect.margin_px,
        work=settings.protect.work_px,
    )
    regions = [region for crop in crops for region in crop.regions]
    mask_sha = _mask_digest(source)
    key = job_key(hashlib.sha256(original).hexdigest(), mask_sha, settings.sha256)
    with watch.phase("verify"):
        verification = verify.verify(
            picture.rgb,
            other.rgb,
            crops,
            surrogates,
            held_out,
            Budget(settings.protect.epsilon),
            settings.verify,
            target=settings.protect.target,
            device=device,
            rng=generator(key, "verify"),
            progress=lambda done, total: progress("verify", done, total),
        )
    facts = {
        "file": source.name,
        **_digests(original, protected, mask_sha, settings, key),
        "device": _device_name(device),
    }
    receipt, sheet = _told(verification, regions, surrogates, held_out, facts, source.name, watch, began)
    return Result(verification.verdict, protected, "", receipt, sheet)


def _decoded_again(data: bytes, source: Source, original: Rgb, settings: Settings, budget: Budget) -> Rgb:
    """The pixels somebody will get from the bytes to publish; refused if they left the budget."""
    published = images.decode(
        data, name=f"{source.name} as written", max_pixels=settings.output.max_pixels
    ).rgb
    if published.shape != original.shape:
        raise InputError(
            Code.INTERNAL, f"{source.name}: came out {published.shape}, went in {original.shape}"
        )
    largest = int(np.abs(published.astype(np.int16) - original).max())
    if largest > budget.levels:
        raise BudgetExceeded(
            f"{source.name}: the written file differs from the original by {largest} levels, the budget "
            f"is {budget.epsilon:g}; set output.format to png or raise protect.epsilon"
        )
    return published


def _passed(
    data: bytes,
    source: Source,
    input_sha: str,
    mask_sha: str | None,
    settings: Settings,
    watch: _Watch,
    began: float,
) -> Result:
    """No region and `none_found: pass`: the very bytes that came in, and a receipt that says so."""
    names = ", ".join(settings.regions.detectors)
    verification = Verification(
        Verdict.UNPROTECTED, [f"no region found by {names}; passed on unchanged"], None, 0
    )
    facts = {
        "file": source.name,
        "written_as": "unchanged",
        **_digests(data, data, mask_sha, settings, job_key(input_sha, mask_sha, settings.sha256)),
    }
    receipt, _ = _told(verification, [], [], [], facts, source.name, watch, began)
    extension = "." + source.name.rpartition(".")[2].lower()
    return Result(Verdict.UNPROTECTED, data, extension, receipt, None)


def _digests(
    original: bytes, output: bytes, mask_sha: str | None, settings: Settings, key: str
) -> dict[str, Any]:
    return {
        "key": key,
        "input_sha256": hashlib.sha256(original).hexdigest(),
        "output_sha256": hashlib.sha256(output).hexdigest(),
        "mask_sha256": mask_sha,
        "config_sha256": settings.sha256,
    }


def _told(
    verification: Verification,
    regions: Sequence[Region],
    surrogates: Sequence[Editor],
    held_out: Sequence[Editor],
    facts: dict[str, Any],
    title: str,
    watch: _Watch,
    began: float,
) -> tuple[dict[str, Any], bytes | None]:
    """Receipt and sheet."""
    with watch.phase("report"):
        sheet = report.sheet(title, verification) if verification.panels else None
    times = {"elapsed_s": round(time.perf_counter() - began, 3), "timings_s": watch.seconds}
    document = report.receipt(
        verification=verification,
        regions=regions,
        surrogates=surrogates,
        held_out=held_out,
        facts={**facts, **times},
    )
    return document, sheet


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
