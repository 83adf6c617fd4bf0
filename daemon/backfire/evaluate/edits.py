"""One edit as a tool has an editor make it, on all pictures that are compared, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from backfire import attack_paths
from backfire.attack_paths.hand_over import mask_of, put_back_part
from backfire.attack_paths.handed import Handed
from backfire.attack_paths.tensors import handed_pictures, picture_parts, to_picture
from backfire.evaluate.judge import BREAKING
from backfire.evaluate.metrics import Picture, masked_ssim
from backfire.evaluate.visibility import visible
from backfire.inpaint.base import Editor
from backfire.inpaint.targets import target_picture
from backfire.types import Box, Mask, MaskKind, Rgb

MOST_CALLS = 4
"""A tool that calls its model for each contour of a mask is followed for so many of them, the largest."""
CONTEXT = 40
"""Pixels around an edit that are looked at with it, by windows and by the eye's blur."""


@dataclass(frozen=True, eq=False)
class Editors:
    """The editors that edits are replayed with, and the device that they lie on.

    Attributes:
        paths: by editor, the attack paths on which it is replayed; IOPaint's for one that is not named.
        most_px: the long side, in pixels, of what an editor is given at most; larger crops are scaled down.
    """

    device: torch.device
    surrogates: Sequence[Editor]
    held_out: Sequence[Editor] = ()
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    most_px: int = 1600

    def paths_of(self, editor: Editor) -> tuple[str, ...]:
        """The attack paths of an editor, the first of which decides whether a region is protected at all."""
        return self.paths.get(editor.name, ("iopaint",))


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit that one call of an editor made, where it touched the picture.

    Attributes:
        frame: the part of the picture that is looked at.
        mask: where the edit repaints, on the frame.
        pictures: H,W,3 in [0,1] each, on the frame: the edit of the original, of the published picture and,
            where it was asked for, of the control.
        target: what the edit was to resemble; None for `target: away`.
    """

    frame: Box
    mask: Mask
    pictures: list[Picture]
    target: Picture | None


@dataclass(frozen=True, eq=False)
class Replayer:
    """One editor, and the seed of its own noise."""

    editor: Editor
    target: str
    seed: int
    editors: Editors

    def edits(self, pictures: Sequence[Rgb], mask: Mask, path: str, kind: MaskKind) -> list[Edit]:
        """The edits of each picture under a mask of the whole picture, as one tool has them made.

        In float32, which is what users run. Empty where the tool leaves nothing of the mask to edit.
        """
        calls = [
            call for call in attack_paths.get(path).handed(mask) if call.mask.any() and call.weights.any()
        ]
        calls = sorted(calls, key=lambda call: -np.count_nonzero(call.weights))[:MOST_CALLS]
        return [self._edit(pictures, call.at_most(self.editors.most_px), kind) for call in calls]

    def _edit(self, pictures: Sequence[Rgb], handed: Handed, kind: MaskKind) -> Edit:
        height, width = handed.edited.shape
        device, touched = self.editors.device, handed.touched
        frame = touched.grown(CONTEXT, width, height)
        inside = (
            slice(touched.top - frame.top, touched.bottom - frame.top),
            slice(touched.left - frame.left, touched.right - frame.left),
        )
        given, parts = handed_pictures(pictures, handed, device), picture_parts(pictures, frame, device)
        # A new generator each time: an editor that draws noise must draw the same for all pictures.
        generator = torch.Generator(device=device).manual_seed(self.seed)
        with torch.inference_mode():
            mask = mask_of(handed, given).expand(len(pictures), -1, -1, -1)
            out = self.editor.inpaint(given, mask, generator=generator)
            parts[..., *inside] = put_back_part(out, parts[..., *inside], handed)
        plane = np.zeros((frame.height, frame.width), np.bool_)
        plane[inside] = handed.edited[touched.slices]
        towards = target_picture(self.target, given[:1]) if kind in BREAKING else None
        wanted = towards and to_picture(towards(picture_parts(pictures[:1], frame, device))[0])
        return Edit(frame, plane, [to_picture(part) for part in parts], wanted)


def figures(edits: Sequence[Edit], kind: MaskKind) -> dict[str, Any]:
    """The figures of an `EditResult`: means over the masks of all calls."""
    shares = np.array([edit.mask.sum() for edit in edits]) / sum(edit.mask.sum() for edit in edits)

    def mean(figure: Callable[[Edit], float]) -> float:
        return float(shares @ [figure(edit) for edit in edits])

    found = {
        "ssim": mean(lambda edit: masked_ssim(edit.pictures[0], edit.pictures[1], edit.mask)),
        "l1": mean(lambda edit: _l1(edit.pictures[0], edit.pictures[1], edit.mask)),
    }
    if kind in BREAKING:
        found["visible"] = mean(lambda edit: visible(edit.pictures[0], edit.pictures[1], edit.mask))
    if len(edits[0].pictures) > 2:
        found["control_ssim"] = mean(lambda edit: masked_ssim(edit.pictures[0], edit.pictures[2], edit.mask))
    if all(edit.target is not None for edit in edits):
        found["target_distance"] = mean(lambda edit: _l1(edit.target, edit.pictures[1], edit.mask))
    return found


def _l1(one: Any, other: Any, mask: Mask) -> float:
    return float(np.abs(one - other)[mask].mean())


def in_levels(picture: Picture) -> Rgb:
    """A picture H,W,3 in [0,1] as a file would hold it."""
    out: Rgb = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return out
