"""Verify a published file against its original: the command `backfire verify`."""

from __future__ import annotations

from backfire import imaging
from backfire.config import Settings
from backfire.detectors import Source
from backfire.errors import Code, InputError
from backfire.pipeline.result import PhaseProgress, Result, no_progress
from backfire.pipeline.run import Published, Run, device_name
from backfire.types import Budget


def verify(
    original: bytes,
    protected: bytes,
    source: Source,
    settings: Settings,
    *,
    progress: PhaseProgress = no_progress,
) -> Result:
    """Replay the edits on a published file, and judge them as when it was made.

    Args:
        original, protected: the two files' bytes.
        source: the original's name and the masks of the protected regions; without masks the configured
            detectors say what is protected.
        settings: as of `protect`; the largest budget that `protect.escalate` allows is the bound.
        progress: called as progress(phase, done, total); may raise to stop.

    Raises:
        JobError: see `backfire.errors`; an InputError where the two pictures differ in size.
    """
    run = Run(original, source, settings, progress)
    max_pixels = settings.output.max_pixels
    other = imaging.decode(protected, name="the protected picture", max_pixels=max_pixels)
    if other.rgb.shape != run.picture.rgb.shape:
        got, want = other.rgb.shape[1::-1], run.picture.rgb.shape[1::-1]
        message = (
            f"the protected picture is {got[0]}x{got[1]}, the original {want[0]}x{want[1]} under these "
            "settings; verify needs the file as it was published, and the output.long_px of then"
        )
        raise InputError(Code.UNREADABLE, message)
    found = run.detect()
    editors = run.load_editors(settings.protect)
    crops = run.crops(found.regions, settings.protect)
    published = Published(
        other.rgb, imaging.largest_change(run.picture, other), flat=imaging.flattened(other)
    )
    judged = run.judge(published, crops, editors, Budget(settings.protect.rounds()[-1].epsilon))
    facts = {**run.facts(protected, found), "device": device_name(editors.device)}
    receipt, sheet = run.report(judged, crops, editors, facts)
    return Result(judged.judgement.verdict, protected, "", receipt, sheet)
