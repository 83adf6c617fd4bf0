"""What edits and tools are called wherever a person reads of them: on the command line and on the sheet.

The status page says the same, in its own texts.
"""

from __future__ import annotations

import re

from backfire.attack_paths import PATHS
from backfire.types import MaskKind

EDITS = {
    MaskKind.TRIGGER: "of the region",
    MaskKind.DILATED: "of the region and a little more",
    MaskKind.PARTIAL: "of half the region",
    MaskKind.NEAR: "beside the region",
    MaskKind.FAR: "elsewhere",
}
"""What an edit is of, to be said behind the word edit."""
ONLY_JUDGED = "only judged"
"""What is said of a held-out editor."""
_NAMED = re.compile(rf"\b(?P<kind>{'|'.join(EDITS)}) edit in (?P<path>[\w-]+) by\b")
"""An edit as a reason names it."""
_HELD_OUT = re.compile(r"\bthe held-out editor (?P<editor>.+?)(?= break in | cannot judge)")
"""A held-out editor as a reason names it."""


def tool(path: str, *, flattened: bool = False) -> str:
    """The tool of an attack path; a path that is not known, as in a receipt of old, keeps its own name.

    Args:
        flattened: whether the picture was laid on white in it.
    """
    name = PATHS[path].tool if path in PATHS else path
    return f"{name}, on white" if flattened else name


def reason(text: str) -> str:
    """A verdict's reason with the names that people know; the receipt keeps those that settings use."""

    def said(found: re.Match[str]) -> str:
        kind = EDITS[MaskKind(found["kind"])]
        return f"edit {kind} in {tool(found['path'])} by"

    text = _HELD_OUT.sub(rf"\g<editor> ({ONLY_JUDGED})", text)
    return _NAMED.sub(said, text)
