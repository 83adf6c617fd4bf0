"""What is left of a protection in a copy that a site saved again, in plain words. No torch, no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from backfire.evaluate.receipt import Receipt
from backfire.evaluate.words import tool
from backfire.types import MaskKind

BARELY = 0.1
"""The share of the region below which nobody notices that its edit is another."""
COLOUR_OFF = 4.0
"""From so many levels on it is said that a copy's colours are off."""


def in_words(now: Receipt, then: Receipt | None = None) -> Iterator[str]:
    """What is left in per cent, a sentence on the copy, then one for each tool: how edits come out by now.

    Of several regions and surrogates the one that is least broken counts. The effect in a tool is 1 - SSIM.

    Args:
        now: the receipt of the copy.
        then: that of the published file, where it is known.
    """
    worst, before = _worst(now), _worst(then) if then else {}
    copy = now["as_published"]
    alike = copy.get("saved_alike", True)
    if worst:
        yield _left(worst, before, given=then is not None, at_most="" if alike else "at most ")
    size = f"{copy['width']}x{copy['height']} {copy['format']}, {copy['scale']:.0%} of the published size"
    yield f"the copy: {size}; it lies on the picture to {max(copy['shift_px'], 0.05):.2g} px"
    if copy["colour_off_levels"] >= COLOUR_OFF:
        yield (
            f"its colours are off by {copy['colour_off_levels']:.0f} levels in the mean, by a filter or "
            "because the site dropped the colour profile; what that does to edits is counted as if it were "
            "protection"
        )
    if not alike:
        yield (
            f"how coarsely this {copy['format']} was saved cannot be told, as it can of a JPEG; what saving "
            "with losses does to edits is counted as if it were protection"
        )
    for path, edit in worst.items():
        was = before.get(path)
        seen = f"plainly another over {edit['visible']:.0%} of the region"
        seen += f" ({was['visible']:.0%} as published)" if was else ""
        ssim = f"SSIM {edit['ssim']:.2f}" + (f" ({was['ssim']:.2f})" if was else "")
        yield f"{tool(path)}: {_said(edit['visible'], bool(now['tools'].get(path)))}: {seen}, {ssim}"


def _left(
    now: Mapping[str, Mapping[str, Any]],
    then: Mapping[str, Mapping[str, Any]],
    *,
    given: bool,
    at_most: str = "",
) -> str:
    """How much of the effect on the published file is left in the mean of the tools.

    Args:
        given: whether the published file's receipt is known, even if it has none of the tools.
        at_most: what is said before the share.
    """
    tools = [path for path in now if path in then] or [*now]

    def mean(edits: Mapping[str, Mapping[str, Any]], figure: Callable[[Any], float]) -> float:
        return sum(figure(edits[path]) for path in tools) / len(tools)

    in_mean = "in the mean of the tools"
    seen = f"an edit of the region is plainly another over {mean(now, lambda one: one['visible']):.0%} of it"
    if not all(path in then for path in tools):
        if given:
            why = "how much of the published file's effect that is cannot be said"
            return f"{seen} {in_mean}; {why}, as its receipt has none of these tools"
        remedy = "name the published file in place of the original to learn how much of its effect that is"
        return f"{seen} {in_mean}; {remedy}"
    was = mean(then, lambda one: 1 - one["ssim"])
    left = min(max(mean(now, lambda one: 1 - one["ssim"]) / was, 0.0), 1.0) if was > 0 else 0.0
    seen += f", {mean(then, lambda one: one['visible']):.0%} as published"
    return f"{at_most}{left:.0%} of the effect of the published file is left (1 - SSIM, {in_mean}); {seen}"


def _said(visible: float, broken: bool) -> str:
    if broken:
        return "edits still come out broken"
    return "edits come out as if it were not protected" if visible < BARELY else "edits are spoilt in part"


def _worst(receipt: Receipt) -> dict[str, dict[str, Any]]:
    """By attack path the edit of a region that is least broken, by any surrogate."""
    found: dict[str, dict[str, Any]] = {}
    for edit in receipt.get("edits") or ():
        if edit["mask_kind"] != MaskKind.TRIGGER or edit["held_out"]:
            continue
        if edit.get("visible") is None or edit["ssim"] is None:
            continue
        known = found.get(edit["path"])
        if known is None or (edit["visible"], -edit["ssim"]) < (known["visible"], -known["ssim"]):
            found[edit["path"]] = edit
    return found
