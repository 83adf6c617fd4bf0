"""The receipt: built, read, amended and written here and nowhere else. No torch, no model.

A receipt is a JSON object; its fields are described in the reference documentation. None of these functions
changes the document that it is given.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire import __version__
from backfire.evaluate import premis, words
from backfire.evaluate.judge import (
    BREAKING,
    EditResult,
    Judgement,
    first_paths,
    in_tools,
    is_asked,
    of_larger_masks,
)
from backfire.types import Choice, Region, Verdict

if TYPE_CHECKING:
    from backfire.evaluate.sheet import Sheet
    from backfire.inpaint.base import Editor

Receipt = dict[str, Any]

SCHEMA = 1
PROMISE = (
    "Measured on the editors named here, on the decoded bytes of this very file. It raises the cost of an "
    "edit; it promises nothing about other editors, nor after the file is recompressed or resized."
)


@dataclass(frozen=True)
class EditorsUsed:
    """Which editors a job used.

    Attributes:
        gradients: by surrogate, the mean absolute gradient before balancing, see `optimiser.Optimised`; empty
            where nothing was optimised.
    """

    surrogates: Sequence[Editor] = ()
    held_out: Sequence[Editor] = ()
    gradients: Sequence[float] = ()

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The fields `surrogates` and `held_out`."""
        surrogates: list[dict[str, Any]] = [{**_editor(editor)} for editor in self.surrogates]
        for row, gradient in zip(surrogates, self.gradients, strict=False):
            row["gradient"] = float(f"{gradient:.3g}")
        return {"surrogates": surrogates, "held_out": [_editor(editor) for editor in self.held_out]}


def build(
    judgement: Judgement,
    regions: Sequence[Region],
    editors: EditorsUsed,
    facts: dict[str, Any],
    sheet: Sheet | None = None,
) -> Receipt:
    """The receipt of a job.

    Args:
        regions: in the order in which the edits count them.
        facts: digests, times and facts of the file and of the work.
        sheet: the sheet, where there is one; the receipt says where on it each edit is shown.
    """
    edits = [edit.row() for edit in judgement.edits]
    for index, place in (sheet.places if sheet else {}).items():
        edits[index]["on_sheet"] = [*place]
    document = {
        "schema": SCHEMA,
        "verdict": judgement.verdict.value,
        "reasons": judgement.reasons,
        **facts,
        "regions": [region.row() for region in regions],
        **editors.rows(),
        "psnr_db": None if judgement.psnr_db is None else round(judgement.psnr_db, 2),
        "max_change_levels": judgement.max_change_levels,
        "thresholds": judgement.thresholds(),
        "tools": judgement.tools,
        "tools_dilated": judgement.tools_dilated,
        "not_measured": judgement.not_measured,
        "edits": edits,
        **({"sheet": {"width": sheet.width, "height": sheet.height}} if sheet else {}),
        "promise": PROMISE,
        "versions": {
            "backfire": __version__,
            "torch": version("torch"),
            "numpy": version("numpy"),
            "pillow": version("pillow"),
            "python": platform.python_version(),
        },
    }
    return {**document, "events": premis.of_job(document, at=time.time())}


def _editor(editor: Editor) -> dict[str, str]:
    return {"name": editor.name, "weights_sha256": editor.weights_sha256}


def to_json(document: Receipt) -> bytes:
    """The file: readable, in a stable order, UTF-8, with a newline at the end.

    What UTF-8 cannot hold (half of a surrogate pair in a name) becomes a question mark, and what JSON cannot
    (a number that is not finite) null.
    """
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(data: bytes) -> Receipt:
    """A receipt as it was read from its file.

    Raises:
        ValueError: the file is cut short, or holds no JSON object.
    """
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError(f"receipt: got a JSON {type(document).__name__}, expected an object")
    return document


def with_archived(document: Receipt, *, at: float, sha256: str, where: str) -> Receipt:
    """The receipt with the fixity check of an original that was moved into the archive.

    Args:
        at: when it was read back, Unix seconds.
        sha256: of the original, as read back from the archive.
        where: its path in the archive.
    """
    return premis.added(document, premis.archived(key=document["key"], at=at, sha256=sha256, where=where))


def with_taken_over(document: Receipt, *, file: str, worked_as: str) -> Receipt:
    """The receipt of a job that takes over the result of another one with the same key.

    Args:
        file: the name of the picture whose receipt it becomes.
        worked_as: the name of the picture that was worked.
    """
    kept = {
        name: value for name, value in document.items() if name != "decision"
    }  # that was of the other one
    return {**kept, "file": file, "worked_as": worked_as}


def with_decision(document: Receipt, *, choice: Choice, by: str, at: float) -> Receipt:
    """The receipt of a job that was held for review, with what a person decided about it.

    Args:
        by: who decided.
        at: when, Unix seconds.
    """
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return {**document, "decision": {"choice": choice.value, "by": by, "at": moment}}


def by_hand(document: Receipt, output: str | None, mask: Path | None = None) -> Receipt:
    """The receipt of a picture that was protected by hand, without a daemon.

    Of a path that leads elsewhere only the name is kept, as the receipt may be published beside the picture.

    Args:
        output: the path of the result, None where none was written.
        mask: what was named as its mask.
    """

    def kept(path: Path) -> str:
        return path.name if leads_elsewhere(path) else str(path)

    named = {} if mask is None else {"mask": kept(mask)}
    return {**document, **named, "output": None if output is None else kept(Path(output))}


def leads_elsewhere(path: Path) -> bool:
    """Whether a path is absolute or leads out of the folder that it begins in."""
    return path.is_absolute() or ".." in path.parts


def in_short(reasons: Sequence[str]) -> str | None:
    """The first of a verdict's reasons and how many more there are; None where there are none."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else None


def _asked(document: Receipt) -> list[EditResult]:
    """The edits by surrogates that the verdict rests on."""
    edits = [EditResult.of(row) for row in document.get("edits") or () if not row.get("held_out")]
    first = first_paths(edits)
    return [one for one in edits if is_asked(one, on_first_path=one.path == first[one.editor, one.region])]


def in_words(document: Receipt) -> list[str]:
    """The verdict and what the surrogates measured, a sentence each, for a person.

    Only the verdict where nothing was edited.
    """
    verdict, reasons = document["verdict"], document["reasons"]
    edits = _asked(document)
    touching = [edit.ssim for edit in edits if edit.mask_kind in BREAKING]
    elsewhere = [edit.ssim for edit in edits if edit.mask_kind not in BREAKING]
    if verdict == Verdict.PROTECTED:
        said = "protected: edits of the region come out broken"
        # Where regions leave no space beside them, as in a grid over the whole picture, none was made.
        said += ", edits elsewhere come out as usual" if elsewhere else ""
    else:
        said = f"{verdict}: {words.reason(in_short(reasons) or '')}" if reasons else str(verdict)
    told = document.get("tools")
    if told and all(told.values()):
        # Beside another verdict than `protected` the bare sentence reads as if all were well.
        about = "" if verdict == Verdict.PROTECTED else "edits of exactly the region are "
        said += f"; {about}{in_tools(told)}"
    if larger := of_larger_masks(verdict, document.get("tools_dilated") or {}):
        said += f"; {larger}"
    seen = [edit.visible for edit in edits if edit.visible is not None]
    if not touching:
        return [said]
    names = ", ".join(dict.fromkeys(edit.editor for edit in edits))
    measured = (
        f"measured with {names} by comparing the same edits of original and copy (SSIM, 1 = no effect): "
        f"{max(touching):.2f} or less for edits of the region ({len(touching)})"
    )
    if seen:
        measured += f", plainly seen over {min(seen):.0%} of their area or more"
    if elsewhere:
        measured += f", {min(elsewhere):.2f} or more for edits elsewhere ({len(elsewhere)})"
    if document.get("psnr_db") is not None:
        measured += f"; no pixel changed by more than {document['max_change_levels']} of 255 levels"
        measured += f" (PSNR {document['psnr_db']:.1f} dB)"
    if came := document.get("scaled_from"):
        measured += f"; scaled down from {came[0]}x{came[1]} pixels before it was protected"
    return [said, measured]
