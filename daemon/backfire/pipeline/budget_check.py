"""Whether a file to be published keeps within the budget, from its own bytes. Needs no model and no torch."""

from __future__ import annotations

from backfire import imaging
from backfire.config import Settings
from backfire.errors import BudgetExceeded, Code, InputError
from backfire.imaging import Picture
from backfire.types import Budget


def decode_within(
    data: bytes, original: Picture, budget: Budget, *, name: str, max_pixels: int
) -> tuple[Picture, int]:
    """What somebody will see of the bytes to publish, and the largest change in levels of 255.

    Args:
        data: the file's bytes.
        original: the picture at the size to be published.
        name: the original's, for messages.
        max_pixels: more are refused.

    Raises:
        BudgetExceeded: they differ from the original by more than the budget.
        InputError: they hold a picture of another size, or none.
    """
    decoded = imaging.decode(data, name=f"{name} as written", max_pixels=max_pixels)
    if decoded.rgb.shape != original.rgb.shape:
        raise InputError(Code.INTERNAL, f"{name}: came out {decoded.rgb.shape}, went in {original.rgb.shape}")
    largest = imaging.largest_change(original, decoded)
    if largest > budget.levels:
        raise BudgetExceeded(
            f"{name}: the written file differs from the original by {largest} levels, the budget is "
            f"{budget.levels} levels; set output.format to png or raise protect.epsilon"
        )
    return decoded, largest


def require_within(data: bytes, original: bytes, settings: Settings, *, name: str) -> None:
    """Check a file that was made elsewhere against its original and the largest budget that it may use.

    Args:
        data, original: the bytes of both files.
        settings: under which it was made.
        name: the original's, for messages.

    Raises:
        BudgetExceeded, InputError: see `decode_within`.
    """
    if data == original:
        return
    output = settings.output
    given = imaging.decode(original, name=name, max_pixels=output.max_pixels, frames=output.frames)
    picture = imaging.scaled(given, output.long_px, jpeg=output.jpeg)
    budget = Budget(settings.protect.rounds()[-1].epsilon)
    decode_within(data, picture, budget, name=name, max_pixels=output.max_pixels)
