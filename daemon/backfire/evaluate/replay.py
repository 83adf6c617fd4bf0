"""Replays edits on the pixels decoded from the file that is to be published.

Every edit reaches its editor as the tools of `verify.paths` hand it over, and is compared as they put it
back into the picture. Through the first tool all edits of a region are replayed, through the others that of
the region itself and that of a little more, for which a tool may cut another part of the picture. A held-out
editor makes the edit of the region alone, through all of its tools. Each is compared with the clean edit: the
same editor and tool, on the original, under the same mask. A control of random noise as large as the
perturbation, on each path of a surrogate, keeps the verdict honest: what noise does to an edit is no
protection. A held-out editor edits the original twice instead, as one with randomness of its own would make
any picture look protected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.handed import MOST_CALLS
from backfire.attack_paths.tensors import crop_tensor, picture_parts, to_picture
from backfire.config import Verify
from backfire.evaluate.edits import Edit, Editors, Replayer, figures, in_levels
from backfire.evaluate.judge import BREAKING, EditResult, is_finite, misses, stricter, worst
from backfire.evaluate.panels import edited_part, panels
from backfire.evaluate.sheet import Pair, Panels, pair
from backfire.imaging import masks
from backfire.inpaint.targets import target_picture
from backfire.types import Box, Mask, MaskKind, Rgb

MOST_PANELS = 6
"""Regions shown to a person; the pictures of each take megabytes."""
USUAL = Verify()
"""The thresholds where none are set."""
LACKING = {
    MaskKind.NEAR: "no space in its crop for an edit beside it",
    MaskKind.FAR: "no space in its crop for an edit 32 px away",
    MaskKind.DILATED: "a little more than it is all of the picture",
}
"""Why a region lacks an edit, in words."""
STEADY = 0.98
"""The SSIM that two edits of one picture by a held-out editor have at least; rounding takes a thousandth."""


@dataclass(frozen=True, eq=False)
class Replayed:
    """The replayed edits, region by region, and pictures of the first regions for the sheet.

    Attributes:
        not_measured: what could not be replayed, in words.
        cannot_judge: the regions of which a held-out editor says nothing, and why, in words; and those joined
            of several, of some of which nothing is said.
    """

    edits: list[EditResult] = field(default_factory=list)
    panels: list[Panels] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    cannot_judge: list[str] = field(default_factory=list)


def replay(
    original: Rgb,
    published: Rgb,
    crops: Sequence[Crop],
    editors: Editors,
    *,
    target: str,
    rng: np.random.Generator,
    thresholds: Verify = USUAL,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replayed:
    """Edit both pictures by every editor, region by region.

    Args:
        original, published: uint8 H,W,3, upright; `published` as the file decodes.
        crops: what was optimised.
        target: `protect.target`; `flat` and `inverted` are measured against their target picture.
        rng: seeds the masks, the control and the editors' own noise, so that a job's key repeats them.
        thresholds: of an edit that a tool makes in several calls, that call counts which misses most of them.
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
        pictures = [original, published, controlled(original, published, crop.box, rng)]
        # The colour of `flat` is that furthest from what was optimised, not from what each tool hands over.
        towards = target_picture(target, crop_tensor(original, crop, editors.device))
        for index in range(len(crop.regions)):
            kinds = _masks_by_kind(crop, index, original.shape[:2], rng)
            lacking = (f"region {region}: {why}" for kind, why in LACKING.items() if kind not in kinds)
            found.not_measured.extend(lacking)
            one = _Region(region, crop, index, pictures, kinds, thresholds, found)
            first_shown: dict[MaskKind, list[Edit]] = {}
            for editor, is_held_out in everyone:
                shown = one.replay(Replayer(editor, towards, seed, editors), is_held_out=is_held_out)
                if editor is everyone[0][0]:
                    first_shown = shown
                done += 1
                progress(done, total)
            found.edits.extend(one.rows)
            if len(found.panels) < MOST_PANELS and first_shown:
                shown_first = panels(crop, index, pictures, kinds, first_shown, one.rows)
                found.panels.append(replace(shown_first, pairs=one.pairs))
            region += 1
    said_once = {name: [*dict.fromkeys(getattr(found, name))] for name in ("not_measured", "cannot_judge")}
    return replace(found, **said_once)


@dataclass(frozen=True, eq=False)
class _Region:
    """A region whose edits are replayed by one editor after the other, and what has come of it.

    Attributes:
        number: of the region among all of the picture.
        crop, index: the crop that it was optimised in, and its number there.
        pictures: uint8 H,W,3: the original, the published picture and the control.
        kinds: the masks of its edits, on the whole picture.
        found: gets in words what could not be replayed or judged.
        rows, pairs: the figures of its edits, and small pictures of them for the sheet.
        smaller: the tools of which it is said that they are judged smaller: where the edit of the region is,
            so are the others, and it is said once.
    """

    number: int
    crop: Crop
    index: int
    pictures: Sequence[Rgb]
    kinds: Mapping[MaskKind, Mask]
    thresholds: Verify
    found: Replayed
    rows: list[EditResult] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    smaller: set[str] = field(default_factory=set)

    def replay(self, replayer: Replayer, *, is_held_out: bool) -> dict[MaskKind, list[Edit]]:
        """Replay the edits by one editor; those in its first tool are returned, by their masks."""
        editor, editors = replayer.editor, replayer.editors
        paths = replayer.tried(editors.paths_of(editor), self.kinds[MaskKind.TRIGGER])
        shown: dict[MaskKind, list[Edit]] = {}
        made, unable = len(self.rows), ""
        for path, kind, count in wanted(
            paths, self.kinds, is_held_out=is_held_out, everywhere=editors.everywhere
        ):
            original, published, *_ = self.pictures
            compared = [original, published, original] if is_held_out else self.pictures[:count]
            edits = replayer.edits(compared, self.kinds[kind], path, kind)
            self._say_what_is_lacking(replayer, edits, path, kind)
            if not edits:
                continue
            result = partial(EditResult, editor.name, self.number, kind, held_out=is_held_out, path=path)
            calls = [result(**of_call) for of_call in figures(edits, kind)]
            if is_held_out:
                if why := _cannot_judge(calls):
                    unable = why
                    continue
                calls = [replace(call, control_ssim=None) for call in calls]
            row = worst(calls, self.thresholds, on_first_path=path == paths[0])
            self.rows.append(row)
            if len(self.found.panels) < MOST_PANELS:
                self.pairs.append(self._pair(row, edits))
            if path == paths[0]:
                shown[kind] = edits
        if is_held_out and (unable or len(self.rows) == made):
            why = unable or "its tools leave nothing of the region to edit"
            of = f"region {self.number}: the held-out editor {editor.name}"
            self.found.cannot_judge.append(f"{of} cannot judge, as {why}")
        return shown

    def _say_what_is_lacking(
        self, replayer: Replayer, edits: Sequence[Edit], path: str, kind: MaskKind
    ) -> None:
        """Tell which parts of an edit were not replayed, and which were judged smaller."""
        of = f"region {self.number}" + ("" if kind == MaskKind.TRIGGER else f", {kind} edit")
        if not edits or (kind == MaskKind.TRIGGER and len(edits) == MOST_CALLS):
            left_out = replayer.not_followed(self.kinds[kind], path)
            self.found.not_measured.extend([f"{of}: {left_out}"] if left_out else [])
            joined = self.crop.regions[self.index].joined
            if edits and left_out and joined > 1:  # an edit of one says nothing of the others
                self.found.cannot_judge.append(f"{of}: {left_out}, and it stands for {joined} regions")
        if path not in self.smaller:
            said = [told for edit in edits if (told := edit.judged_smaller(path))]
            self.found.not_measured.extend(f"{of}: {told}" for told in said)
            self.smaller.update([path] if said else [])

    def _pair(self, row: EditResult, edits: Sequence[Edit]) -> Pair:
        box = self.crop.box
        before, after = (edited_part(self.pictures[which], edits, which, box) for which in (0, 1))
        return pair(row, before, after, self.kinds[row.mask_kind][box.slices])


def _cannot_judge(calls: Sequence[EditResult]) -> str:
    """Why a held-out editor cannot judge by the calls of an edit, in words; empty where it can.

    Args:
        calls: their control is the original, edited again.
    """
    if not all(map(is_finite, calls)):
        return "it gave no finite picture"
    is_steady = all((call.control_ssim or 0.0) >= STEADY for call in calls)
    return "" if is_steady else "its edits of one and the same picture differ"


def wanted(
    paths: Sequence[str], kinds: Iterable[MaskKind], *, is_held_out: bool, everywhere: bool = False
) -> Iterator[tuple[str, MaskKind, int]]:
    """On which attack paths which edits of a region are replayed, and on how many pictures.

    The edit of the region is replayed on all paths, by surrogates that of a little more, too, and the others
    on the first, each on the original and the published picture. A surrogate's edit of the region is made of
    the control, too, a held-out editor's of the original once more.

    Args:
        everywhere: whether a surrogate makes the other edits on all paths, too.
    """
    for path in paths:
        for kind in kinds:
            if kind == MaskKind.TRIGGER:
                yield path, kind, 3
            elif (path == paths[0] or kind == MaskKind.DILATED or everywhere) and not is_held_out:
                yield path, kind, 2


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
            replayer = Replayer(editor, None, seed, editors)
            first, *others = replayer.tried(editors.paths_of(editor), kinds[MaskKind.TRIGGER])
            wanted = [(first, kind) for kind in kinds if kind in BREAKING or not asked.broken_only]
            wanted += [(path, MaskKind.TRIGGER) for path in others if asked.everywhere]
            for path, kind in wanted:
                progress(done, len(crop.regions))
                edits = replayer.edits([original, published], kinds[kind], path, kind)
                if not edits:
                    continue
                result = partial(EditResult, editor.name, 0, kind, held_out=False, path=path)
                calls = [result(**of_call) for of_call in figures(edits, kind)]
                if any(misses(call, thresholds, on_first_path=path == first) for call in calls):
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


def controlled(original: Rgb, published: Rgb, box: Box, rng: np.random.Generator) -> Rgb:
    """The original with `control` in a part of it, in whole levels as a file would hold it."""
    before, after = (picture_parts([rgb], box, torch.device("cpu")) for rgb in (original, published))
    noisy = original.copy()
    noisy[box.slices] = in_levels(to_picture(control(before, after, rng)[0]))
    return noisy


def _masks_by_kind(
    crop: Crop, index: int, shape: tuple[int, ...], rng: np.random.Generator
) -> dict[MaskKind, Mask]:
    """The masks to replay on the whole picture; benign ones only where there is room for them.

    An edit that repaints every pixel does not depend on the picture, so none of these does. Distances count
    in the picture's pixels, also where the crop was worked smaller.
    """
    mask = replace(crop, regions=(crop.regions[index],), neighbours=()).inside()
    protected = crop.inside()
    kinds = {
        MaskKind.DILATED: masks.dilated(mask),
        MaskKind.PARTIAL: masks.half(crop.masks()[index], float(rng.uniform(0, 2 * np.pi))),
        MaskKind.NEAR: masks.ring(mask) & ~protected,
    }
    far = masks.far(protected, rng)
    if far is not None:
        kinds[MaskKind.FAR] = far
    height, width = shape[:2]
    found = {MaskKind.TRIGGER: crop.regions[index].plane(height, width)}
    if found[MaskKind.TRIGGER].all():
        found[MaskKind.TRIGGER] = masks.half(found[MaskKind.TRIGGER], float(rng.uniform(0, 2 * np.pi)))
    for kind, plane in kinds.items():
        if plane.any():
            found[kind] = np.zeros((height, width), np.bool_)
            found[kind][crop.box.slices] = _enlarged(plane, crop.box)
    return {kind: plane for kind, plane in found.items() if kind == MaskKind.TRIGGER or not plane.all()}


def _enlarged(plane: Mask, box: Box) -> Mask:
    """A mask of a crop that was worked smaller, at the size of its box."""
    rows = np.arange(box.height) * plane.shape[0] // box.height
    columns = np.arange(box.width) * plane.shape[1] // box.width
    large: Mask = plane[rows[:, None], columns]
    return large
