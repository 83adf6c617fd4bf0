"""Replays edits on the pixels decoded from the file that is to be published.

Every edit reaches its editor as the tools of `verify.paths` hand it over, and is compared as they put it
back into the picture. Through the first tool all edits of a region are replayed, through the others the edit
of the region itself. A held-out editor makes the edit of the region alone, through all of its tools. Each is
compared with the clean edit: the same editor and tool, on the original, under the same mask. A control of
random noise as large as the perturbation keeps the verdict honest: what noise does to an edit is no
protection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backfire import attack_paths
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.hand_over import mask_of, put_back_part
from backfire.attack_paths.handed import Handed
from backfire.attack_paths.tensors import handed_pictures, picture_parts, to_picture
from backfire.config import Verify
from backfire.evaluate.judge import BREAKING, EditResult, misses, stricter
from backfire.evaluate.metrics import Picture, masked_ssim
from backfire.evaluate.sheet import Pair, Panels, pair
from backfire.evaluate.visibility import visible
from backfire.imaging import masks
from backfire.inpaint.base import Editor
from backfire.inpaint.targets import target_picture
from backfire.types import Box, Mask, MaskKind, Rgb

MOST_PANELS = 6
"""Regions shown to a person; the pictures of each take megabytes."""
PANEL_PX = 800
"""The long side, in pixels, up to which a crop is shown as it is; of larger ones every so many pixels are."""
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
class Replayed:
    """The replayed edits, region by region, and pictures of the first regions for the sheet.

    Attributes:
        not_measured: what could not be replayed, in words.
    """

    edits: list[EditResult] = field(default_factory=list)
    panels: list[Panels] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Edit:
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


def replay(
    original: Rgb,
    published: Rgb,
    crops: Sequence[Crop],
    editors: Editors,
    *,
    target: str,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replayed:
    """Edit both pictures by every editor, region by region.

    Args:
        original, published: uint8 H,W,3, upright; `published` as the file decodes.
        crops: what was optimised.
        target: `protect.target`; `flat` and `inverted` are measured against their target picture.
        rng: seeds the masks, the control and the editors' own noise, so that a job's key repeats them.
        progress: called with (done, total), before the first region and then for each region and editor.
    """
    everyone = [(editor, False) for editor in editors.surrogates] + [(one, True) for one in editors.held_out]
    total = len(everyone) * sum(len(crop.regions) for crop in crops)
    # A separate stream, so that the editors' noise changes nothing of what is drawn for the crop.
    seed = int(rng.spawn(1)[0].integers(1 << 63))
    found = Replayed()
    region = done = 0
    progress(done, total)
    for crop in crops:
        pictures = [original, published, _controlled(original, published, crop, rng)]
        for index in range(len(crop.regions)):
            kinds = _masks_by_kind(crop, index, original.shape[:2], rng)
            if MaskKind.FAR not in kinds:
                found.not_measured.append(f"region {region}: no space in its crop for an edit 32 px away")
            of_region: list[EditResult] = []
            first_shown: dict[MaskKind, list[_Edit]] = {}
            pairs: list[Pair] = []
            for editor, is_held_out in everyone:
                replayer = _Replayer(editor, target, seed, editors)
                shown: dict[MaskKind, list[_Edit]] = {}
                rows: list[EditResult] = []
                for path in editors.paths_of(editor):
                    first = path == editors.paths_of(editor)[0]
                    for kind, plane in kinds.items():
                        if kind != MaskKind.TRIGGER and (is_held_out or not first):
                            continue
                        with_control = kind == MaskKind.TRIGGER and first and not is_held_out
                        edits = replayer.edits(pictures if with_control else pictures[:2], plane, path, kind)
                        if not edits:
                            found.not_measured.append(f"region {region}: {path} leaves nothing of it to edit")
                            continue
                        row = EditResult(
                            editor=editor.name,
                            region=region,
                            held_out=is_held_out,
                            path=path,
                            mask_kind=kind,
                            **_figures(edits, kind),
                        )
                        rows.append(row)
                        if len(found.panels) < MOST_PANELS:
                            before, after = (
                                _edited(pictures[which], edits, which, crop.box) for which in (0, 1)
                            )
                            pairs.append(pair(row, before, after, plane[crop.box.slices]))
                        if first:
                            shown[kind] = edits
                of_region.extend(rows)
                if editor is everyone[0][0]:
                    first_shown = shown
                done += 1
                progress(done, total)
            found.edits.extend(of_region)
            if len(found.panels) < MOST_PANELS and first_shown:
                shown_first = _panels(crop, index, pictures, kinds, first_shown, of_region)
                found.panels.append(replace(shown_first, pairs=pairs))
            region += 1
    return replace(found, not_measured=list(dict.fromkeys(found.not_measured)))


@dataclass(frozen=True)
class Asked:
    """What `holds` asks of a crop.

    Attributes:
        settings: the thresholds of the verdict.
        broken_only: whether to ask only of edits that are to break, not of those that are to be kept.
        everywhere: whether to ask of the edit of the region on all attack paths, or on the first alone.
    """

    settings: Verify
    broken_only: bool = False
    everywhere: bool = True


def holds(
    original: Rgb,
    published: Rgb,
    crop: Crop,
    editors: Editors,
    *,
    asked: Asked,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Whether one crop meets every threshold with a margin, since the verdict will draw other edits.

    Stops at the first miss, so that it costs little while the answer is no. Held-out editors are not used.

    Args:
        original, published: uint8 H,W,3.
        progress: called with (regions done, regions) before each edit; may raise to stop.
    """
    thresholds = stricter(asked.settings)
    seed = int(rng.spawn(1)[0].integers(1 << 63))
    for done in range(len(crop.regions)):
        kinds = _masks_by_kind(crop, done, original.shape[:2], rng)
        for editor in editors.surrogates:
            first, *others = editors.paths_of(editor)
            wanted = [(first, kind) for kind in kinds if kind in BREAKING or not asked.broken_only]
            wanted += [(path, MaskKind.TRIGGER) for path in others if asked.everywhere]
            for path, kind in wanted:
                progress(done, len(crop.regions))
                replayer = _Replayer(editor, "away", seed, editors)
                edits = replayer.edits([original, published], kinds[kind], path, kind)
                if not edits:
                    continue
                result = EditResult(
                    editor.name,
                    region=0,
                    held_out=False,
                    mask_kind=kind,
                    path=path,
                    **_figures(edits, kind),
                )
                if misses(result, thresholds, first=path == first):
                    return False
    return True


def control(before: Tensor, after: Tensor, rng: np.random.Generator) -> Tensor:
    """The crop under random noise that is, sample by sample, as large as the perturbation.

    It must not be weaker than the perturbation. So it is grey where the perturbation is grey, and its sign is
    turned where blacks or whites would cut it off.

    Args:
        before, after: 1,3,h,w in [0,1], as is what is returned.
    """
    signs = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), size=tuple(before.shape)))
    size = (after - before).abs()
    if torch.equal(size, size[:, :1].expand_as(size)):
        signs = signs[:, :1]
    noise = size * signs.to(before.device)
    moved = before + noise
    return torch.where((moved < 0) | (moved > 1), before - noise, moved).clamp(0, 1)


def _controlled(original: Rgb, published: Rgb, crop: Crop, rng: np.random.Generator) -> Rgb:
    """The original with `control` in a crop, in whole levels as a file would hold it."""
    here = crop.box.slices
    before, after = (picture_parts([rgb], crop.box, torch.device("cpu")) for rgb in (original, published))
    noisy = original.copy()
    noisy[here] = _in_levels(to_picture(control(before, after, rng)[0]))
    return noisy


def _masks_by_kind(
    crop: Crop, index: int, shape: tuple[int, ...], rng: np.random.Generator
) -> dict[MaskKind, Mask]:
    """The masks to replay on the whole picture; benign ones only where there is room for them."""
    mask, protected = crop.masks()[index], crop.protected()
    kinds = {
        MaskKind.DILATED: masks.dilated(mask),
        MaskKind.PARTIAL: masks.half(mask, float(rng.uniform(0, 2 * np.pi))),
        MaskKind.NEAR: masks.ring(mask) & ~protected,
    }
    far = masks.far(protected, rng)
    if far is not None:
        kinds[MaskKind.FAR] = far
    height, width = shape[:2]
    found = {MaskKind.TRIGGER: crop.regions[index].plane(height, width)}
    if found[MaskKind.TRIGGER].all():
        # An edit that repaints every pixel does not depend on the picture; half of it is the most that does.
        found[MaskKind.TRIGGER] = masks.half(found[MaskKind.TRIGGER], float(rng.uniform(0, 2 * np.pi)))
    for kind, plane in kinds.items():
        if plane.any():
            found[kind] = np.zeros((height, width), np.bool_)
            found[kind][crop.box.slices] = _enlarged(plane, crop.box)
    return found


def _enlarged(plane: Mask, box: Box) -> Mask:
    """A mask of a crop that was worked smaller, at the size of its box."""
    rows = np.arange(box.height) * plane.shape[0] // box.height
    columns = np.arange(box.width) * plane.shape[1] // box.width
    large: Mask = plane[rows[:, None], columns]
    return large


@dataclass(frozen=True, eq=False)
class _Replayer:
    """One editor, and the seed of its own noise."""

    editor: Editor
    target: str
    seed: int
    editors: Editors

    def edits(self, pictures: Sequence[Rgb], mask: Mask, path: str, kind: MaskKind) -> list[_Edit]:
        """The edits of each picture under a mask of the whole picture, as one tool has them made.

        In float32, which is what users run. Empty where the tool leaves nothing of the mask to edit.
        """
        calls = [
            call for call in attack_paths.get(path).handed(mask) if call.mask.any() and call.weights.any()
        ]
        calls = sorted(calls, key=lambda call: -np.count_nonzero(call.weights))[:MOST_CALLS]
        return [self._edit(pictures, call.at_most(self.editors.most_px), kind) for call in calls]

    def _edit(self, pictures: Sequence[Rgb], handed: Handed, kind: MaskKind) -> _Edit:
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
        return _Edit(frame, plane, [to_picture(part) for part in parts], wanted)


def _figures(edits: Sequence[_Edit], kind: MaskKind) -> dict[str, Any]:
    """The figures of an `EditResult`: means over the masks of all calls."""
    shares = np.array([edit.mask.sum() for edit in edits]) / sum(edit.mask.sum() for edit in edits)

    def mean(figure: Callable[[_Edit], float]) -> float:
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


def _panels(
    crop: Crop,
    index: int,
    pictures: Sequence[Rgb],
    kinds: Mapping[MaskKind, Mask],
    edits: Mapping[MaskKind, Sequence[_Edit]],
    rows: Sequence[EditResult],
) -> Panels:
    benign = MaskKind.FAR if MaskKind.FAR in kinds else MaskKind.NEAR
    box, every = crop.box, -(-max(crop.box.height, crop.box.width) // PANEL_PX)
    region = crop.regions[index]

    def of(plane: Any) -> Any:
        return np.ascontiguousarray(plane[box.slices][::every, ::every])

    def edited(kind: MaskKind, which: int) -> Rgb:
        part = _edited(pictures[which], edits.get(kind, ()), which, box)
        shown: Rgb = np.ascontiguousarray(part[::every, ::every])
        return shown

    return Panels(
        label=f"{region.label} {region.box.width}x{region.box.height}",
        mask=of(kinds[MaskKind.TRIGGER]),
        original=of(pictures[0]),
        protected=of(pictures[1]),
        edit_original=edited(MaskKind.TRIGGER, 0),
        edit_protected=edited(MaskKind.TRIGGER, 1),
        benign_original=edited(benign, 0),
        benign_protected=edited(benign, 1),
        benign_mask=of(kinds.get(benign, np.zeros_like(kinds[MaskKind.TRIGGER]))),
        summary=list(_in_words(rows)),
    )


def _edited(picture: Rgb, edits: Sequence[_Edit], which: int, box: Box) -> Rgb:
    """A part of the picture with what edits made of it there; `which` of their pictures is meant."""
    part = picture[box.slices].copy()
    for edit in edits:
        frame = edit.frame
        left, top = max(frame.left, box.left), max(frame.top, box.top)
        right, bottom = min(frame.right, box.right), min(frame.bottom, box.bottom)
        if left >= right or top >= bottom:
            continue
        inner = np.s_[top - frame.top : bottom - frame.top, left - frame.left : right - frame.left]
        here = np.s_[top - box.top : bottom - box.top, left - box.left : right - box.left]
        made = _in_levels(edit.pictures[which][inner])
        part[here][edit.mask[inner]] = made[edit.mask[inner]]
    return part


def _in_words(rows: Sequence[EditResult]) -> Iterator[str]:
    """The figures of the edits by the first editor in a few words each, then those by held-out editors."""
    for row in rows:
        if row.held_out:
            yield f"{row.editor}, held out, in {row.path}: SSIM {row.ssim:.2f}"
        elif row.editor != rows[0].editor:
            continue
        elif row.path != rows[0].path:
            yield f"{row.path}: SSIM {row.ssim:.2f}"
        elif row.mask_kind == MaskKind.TRIGGER:
            yield f"edit of the region: plainly broken over {row.visible:.0%} of it, SSIM {row.ssim:.2f}"
        else:
            yield f"{row.mask_kind}: SSIM {row.ssim:.2f}"


def _in_levels(picture: Picture) -> Rgb:
    out: Rgb = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return out
