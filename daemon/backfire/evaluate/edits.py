"""One edit as a tool has an editor make it, on all pictures that are compared, and its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backfire import attack_paths
from backfire.attack_paths.hand_over import mask_of, put_back_part
from backfire.attack_paths.handed import MOST_CALLS, Handed, common, within
from backfire.attack_paths.tensors import given_pictures, picture_parts, to_picture
from backfire.evaluate.judge import BREAKING
from backfire.evaluate.metrics import Picture, masked_ssim
from backfire.evaluate.visibility import visible
from backfire.inpaint.base import Editor
from backfire.types import Box, Mask, MaskKind, Rgb

MOST_PX = 1600
"""The long side, in pixels, of what an editor is given at most where `protect.work_px` asks for no more."""
CONTEXT = 40
"""Pixels around an edit that are looked at with it, by windows and by the eye's blur."""


@dataclass(frozen=True, eq=False)
class Editors:
    """The editors that edits are replayed with, and the device that they lie on.

    Attributes:
        paths: by editor, the attack paths on which it is replayed; IOPaint's for one that is not named.
        most_px: the long side, in pixels, of what an editor is given at most; larger crops are scaled down.
            See `judged_px`.
        everywhere: whether surrogates make all edits on every path, see `replay.wanted`.
    """

    device: torch.device
    surrogates: Sequence[Editor]
    held_out: Sequence[Editor] = ()
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    most_px: int = MOST_PX
    everywhere: bool = False

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
        given: (height, width) of what the editor was given.
        meant: (height, width) of what the tool hands over, where that is more than `Editors.most_px` allows.
    """

    frame: Box
    mask: Mask
    pictures: list[Picture]
    target: Picture | None
    given: tuple[int, int]
    meant: tuple[int, int] | None

    def judged_smaller(self, path: str) -> str | None:
        """That it was judged at a smaller scale than the tool of that path uses, in words."""
        if self.meant is None:
            return None
        meant, given = (f"{width}x{height}" for height, width in (self.meant, self.given))
        return f"{path} hands over {meant}, judged at {given}"


@dataclass(frozen=True, eq=False)
class Replayer:
    """One editor, and the seed of its own noise and prompts.

    Attributes:
        towards: see `target_picture`, of what was optimised; None for `away`.
    """

    editor: Editor
    towards: Callable[[Tensor], Tensor] | None
    seed: int
    editors: Editors

    def calls(self, mask: Mask, path: str) -> list[Handed]:
        """What a tool hands over for an edit, the largest part of it first; see `not_followed`.

        A mask may have thousands of contours, so of those that are not followed no more than the pixels are
        counted.
        """
        ranked = sorted(attack_paths.get(path).calls(mask), key=lambda call: -call.edited_pixels)
        given = (call.at_most(self.editors.most_px) for call in ranked)
        return list(islice(filter(self._depends, given), MOST_CALLS))

    def _depends(self, call: Handed) -> bool:
        """Whether the call repaints anything, and the result depends on the picture."""
        return call.repaints and not (self.editor.blind and call.mask.all())

    def not_followed(self, mask: Mask, path: str) -> str | None:
        """Which part of an edit `calls` leaves out, in words that follow the name of the region."""
        calls, followed = attack_paths.get(path).calls(mask), self.calls(mask, path)
        if len(followed) == MOST_CALLS < len(calls):
            return f"{path} edits it in {len(calls)} parts, of which the {MOST_CALLS} largest are replayed"
        if followed:
            return None
        if any(call.repaints for call in calls):
            return f"{path} hands over nothing but what is repainted, so nothing of the picture counts"
        return f"{path} leaves nothing of it to edit"

    def edits(self, pictures: Sequence[Rgb], mask: Mask, path: str, kind: MaskKind) -> list[Edit]:
        """The edits of each picture under a mask of the whole picture, as one tool has them made.

        In float32, which is what users run. Empty where the tool leaves nothing of the mask to edit.
        """
        seed = self._seed(path, kind)
        return [self._edit(pictures, call, kind, seed) for call in self.calls(mask, path)]

    def _seed(self, path: str, kind: MaskKind) -> int:
        """The seed of an edit, the same for all pictures that are compared.

        An editor picks its prompt by it: with one seed for all edits, only one of its prompts would judge a
        picture. Others keep one seed for all, so that what older receipts list is drawn again.
        """
        if len(getattr(self.editor, "prompts", ())) < 2:
            return self.seed
        digest = hashlib.sha256(f"{self.seed}:{path}:{kind.value}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def tried(self, paths: Sequence[str], mask: Mask) -> list[str]:
        """Attack paths of an editor, the first one on which anything of a region is edited before the others.

        That one decides about the region.
        """
        first = next((path for path in paths if self.calls(mask, path)), paths[0])
        return [first, *(path for path in paths if path != first)]

    def _edit(self, pictures: Sequence[Rgb], handed: Handed, kind: MaskKind, seed: int) -> Edit:
        height, width = handed.edited.shape
        device, touched = self.editors.device, handed.touched
        left, top, right, bottom = Box.around(handed.edited[touched.slices])
        edited = Box(touched.left + left, touched.top + top, touched.left + right, touched.top + bottom)
        # Around the edit alone: a tool without a mask touches all of a picture, of which the figures would
        # take gigabytes.
        frame = edited.grown(CONTEXT, width, height)
        given = given_pictures(pictures, handed, device)
        # A new generator each time: an editor that draws noise must draw the same for all pictures.
        # On the CPU, as the noise of a seed is another one on a GPU, and with it the verdict.
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            mask = mask_of(handed, given).expand(len(pictures), -1, -1, -1)
            out = self.editor.inpaint(given, mask, generator=generator)
            parts = [_put_back(rgb, made, handed, frame) for rgb, made in zip(pictures, out, strict=True)]
        plane = np.zeros((frame.height, frame.width), np.bool_)
        plane[within(frame, edited)] = handed.edited[edited.slices]
        towards = self.towards if kind in BREAKING else None
        wanted = towards and to_picture(towards(picture_parts(pictures[:1], frame, device))[0])
        return Edit(frame, plane, parts, wanted, handed.size, handed.meant)


def _put_back(rgb: Rgb, made: Tensor, handed: Handed, frame: Box) -> Picture:
    """A frame of one picture with what an editor made of it, 3,h,w: of all at once each is large."""
    touched = handed.touched
    whole = put_back_part(made[None], picture_parts([rgb], touched, made.device), handed)
    part, both = picture_parts([rgb], frame, made.device), common(frame, touched)
    assert both is not None  # the edit lies in both
    part[..., *within(frame, both)] = whole[..., *within(touched, both)]
    return to_picture(part[0])


def judged_px(work_px: int) -> int:
    """The long side, in pixels, of what editors are given when a picture is judged; see `Editors.most_px`.

    Judging stores nothing for a gradient, so a working size that was lowered for want of memory does not
    lower it: editors would be asked about a smaller edit than tools make, and nobody would notice.

    Args:
        work_px: as in `protect.work_px`.
    """
    return max(2 * work_px, MOST_PX)


def figures(edits: Sequence[Edit], kind: MaskKind) -> list[dict[str, Any]]:
    """The figures of an `EditResult`: means over the masks of all calls.

    Of edits that are to break, those of each call, of which the worst counts (see `judge.worst`): a large one
    that breaks makes no small one good. SSIM and its control are of the same call, as they are compared, the
    others the worst of all calls.
    """
    shares = np.array([edit.mask.sum() for edit in edits]) / sum(edit.mask.sum() for edit in edits)

    def of_each(figure: Callable[[Edit], float]) -> NDArray[np.float64]:
        return np.array([figure(edit) for edit in edits])

    ssim = of_each(lambda edit: masked_ssim(edit.pictures[0], edit.pictures[1], edit.mask))
    l1 = of_each(lambda edit: _l1(edit.pictures[0], edit.pictures[1], edit.mask))
    if kind not in BREAKING:
        return [{"ssim": float(shares @ ssim), "l1": float(shares @ l1)}]
    seen = of_each(lambda edit: visible(edit.pictures[0], edit.pictures[1], edit.mask))
    common = {"l1": float(l1.min()), "visible": float(seen.min())}
    if all(edit.target is not None for edit in edits):
        far = of_each(lambda edit: _l1(edit.target, edit.pictures[1], edit.mask))
        common["target_distance"] = float(far.max())
    found = [{**common, "ssim": float(one)} for one in ssim]
    if len(edits[0].pictures) > 2:
        for of_call, edit in zip(found, edits, strict=True):
            of_call["control_ssim"] = masked_ssim(edit.pictures[0], edit.pictures[2], edit.mask)
    return found


def _l1(one: Any, other: Any, mask: Mask) -> float:
    return float(np.abs(one - other)[mask].mean())


def in_levels(picture: Picture) -> Rgb:
    """A picture H,W,3 in [0,1] as a file would hold it; what is no number is black, as tools save it."""
    out: Rgb = np.rint(np.nan_to_num(picture).clip(0, 1) * 255).astype(np.uint8)
    return out
