"""What a run produces, and how it reports its progress. Loads no torch, so that anybody may import it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backfire.evaluate.receipt import Receipt
from backfire.types import Verdict

PhaseProgress = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) while a picture is worked on; may raise to stop the work.

The phases are `decode`, `detect`, `optimise`, `encode` and `verify`, in this order; where work may end early,
`verify` is also reported between steps of `optimise`."""


def no_progress(phase: str, done: int, total: int) -> None:
    """A `PhaseProgress` that does nothing."""


@dataclass(frozen=True, eq=False)
class Result:
    """What protecting or verifying a picture gave.

    Attributes:
        verdict: `protected`, `weak`, `failed`, or `unprotected` where no region was found and
            `regions.none_found` is `pass`, or `review` in the daemon.
        data: the bytes to publish; of a verified file its own. They are there whatever the verdict is.
        extension: with the dot, lower case; what `data` is. Empty for a verified file.
        receipt: what was measured and how, ready to be written by `json.dump`.
        sheet: the before/after sheet, a JPEG; None where nothing was protected.
    """

    verdict: Verdict
    data: bytes
    extension: str
    receipt: Receipt
    sheet: bytes | None
