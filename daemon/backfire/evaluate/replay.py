"""Replays edits on the pixels decoded from the file that is to be published.

Editors get the crop, as the commonest tool hands it to them; the trigger edit also reaches them on the attack
paths that `variants.for_replay` names. Every edit of the published picture is compared with the clean edit:
the same editor, on the original, under the same mask. A control of random noise as large as the perturbation
keeps the verdict honest: what noise does to an edit is no protection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backfire.attack_paths import variants
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.tensors import crop_tensor, to_picture, to_tensor
from backfire.config import Verify
from backfire.evaluate.judge import BREAKING, EditResult, misses, stricter
from backfire.evaluate.metrics import Picture, masked_ssim
from backfire.evaluate.sheet import Panels
from backfire.evaluate.visibility import visible
from backfire.imaging import masks
from backfire.inpaint.base import Editor
from backfire.inpaint.targets import target_picture
from backfire.types import EditPath, Mask, MaskKind, Rgb

MOST_PANELS = 6
"""Regions shown to a person; the pictures of each take megabytes."""


@dataclass(frozen=True, eq=False)
class Editors:
    """The editors that edits are replayed with, and the device that they lie on."""

    device: torch.device
    surrogates: Sequence[Editor]
    held_out: Sequence[Editor] = ()


@dataclass(frozen=True, eq=False)
class Replayed:
    """The replayed edits, region by region, and pictures of the first regions for the sheet."""

    edits: list[EditResult] = field(default_factory=list)
    panels: list[Panels] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Pair:
    """One crop of both pictures, and of the original under random noise; 1,3,h,w in [0,1] each."""

    clean: Tensor
    published: Tensor
    control: Tensor | None = None


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
    height, width = original.shape[:2]
    # Separate streams, so that neither the paths nor the editors' noise change what is drawn for the crop.
    jitter, noise = rng.spawn(2)
    seed = int(noise.integers(1 << 63))
    edits: list[EditResult] = []
    panels: list[Panels] = []
    region = done = 0
    progress(done, total)
    for crop in crops:
        before = to_tensor(original[crop.box.slices], crop.size, editors.device)
        after = to_tensor(published[crop.box.slices], crop.size, editors.device)
        pair = _Pair(before, after, control(before, after, rng))
        protected = crop.protected()
        for index, mask in enumerate(crop.masks()):
            kinds = _masks_by_kind(mask, protected, rng)
            found = variants.for_replay(crop.regions[index], crop, height, width, jitter)
            other_paths = [
                (path, _pair_on(one, original, published, editors), {MaskKind.TRIGGER: one.masks()[0]})
                for path, one in found.items()
            ]
            for editor, is_held_out in everyone:
                replayer = _Replayer(editor, target, seed)
                rows, pictures = replayer.replay(pair, kinds)
                for path, other, trigger in other_paths:
                    ((row,), _) = replayer.replay(other, trigger)
                    edits.append(EditResult(region=region, held_out=is_held_out, path=path, **row))
                edits += [EditResult(region=region, held_out=is_held_out, **row) for row in rows]
                done += 1
                if editor is everyone[0][0] and len(panels) < MOST_PANELS:
                    box = crop.regions[index].box
                    label = f"{crop.regions[index].label} {box.width}x{box.height}"
                    panels.append(_panels(label, kinds, pair, pictures, rows))
                progress(done, total)
            region += 1
    return Replayed(edits, panels)


@dataclass(frozen=True)
class Asked:
    """What `holds` asks of a crop.

    Attributes:
        settings: the thresholds of the verdict.
        broken_only: whether to ask only of edits that are to break, not of those that are to be kept.
        resized: whether to ask of the whole picture at 512 px, too.
    """

    settings: Verify
    broken_only: bool = False
    resized: bool = True


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
    height, width = original.shape[:2]
    seed = int(rng.spawn(1)[0].integers(1 << 63))
    for done, (region, mask) in enumerate(zip(crop.regions, crop.masks(), strict=True)):
        kinds = _masks_by_kind(mask, crop.protected(), rng)
        edits = [
            (EditPath.CROP, crop, {kind: plane})
            for kind, plane in kinds.items()
            if kind in BREAKING or not asked.broken_only
        ]
        for path, path_crop in variants.for_replay(region, crop, height, width, rng).items():
            if asked.resized or path != EditPath.RESIZED:
                edits.append((path, path_crop, {MaskKind.TRIGGER: path_crop.masks()[0]}))
        for path, path_crop, plane in edits:
            pair = _pair_on(path_crop, original, published, editors)
            for editor in editors.surrogates:
                progress(done, len(crop.regions))
                ((row,), _) = _Replayer(editor, "away", seed).replay(pair, plane)
                if misses(EditResult(region=0, held_out=False, path=path, **row), thresholds):
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


def _masks_by_kind(mask: Mask, protected: Mask, rng: np.random.Generator) -> dict[MaskKind, Mask]:
    """The masks to replay; benign ones only where there is room for them."""
    kinds = {
        MaskKind.TRIGGER: mask,
        MaskKind.DILATED: masks.dilated(mask),
        MaskKind.PARTIAL: masks.half(mask, float(rng.uniform(0, 2 * np.pi))),
        MaskKind.NEAR: masks.ring(mask) & ~protected,
    }
    far = masks.far(protected, rng)
    if far is not None:
        kinds[MaskKind.FAR] = far
    return {kind: plane for kind, plane in kinds.items() if plane.any()}


def _pair_on(crop: Crop, original: Rgb, published: Rgb, editors: Editors) -> _Pair:
    return _Pair(*(crop_tensor(rgb, crop, editors.device) for rgb in (original, published)))


@dataclass(frozen=True, eq=False)
class _Replayer:
    """One editor, and the seed of its own noise."""

    editor: Editor
    target: str
    seed: int

    def replay(
        self, pair: _Pair, kinds: dict[MaskKind, Mask]
    ) -> tuple[list[dict[str, Any]], dict[MaskKind, tuple[Picture, Picture]]]:
        """Fields of an `EditResult` for each kind, and (clean edit, edit of the published picture) by kind.

        In float32, which is what users run.
        """
        rows: list[dict[str, Any]] = []
        pictures: dict[MaskKind, tuple[Picture, Picture]] = {}
        towards = target_picture(self.target, pair.clean)
        for kind, plane in kinds.items():
            inputs = [pair.clean, pair.published]
            if kind == MaskKind.TRIGGER and pair.control is not None:
                inputs.append(pair.control)
            mask = torch.from_numpy(plane)[None, None].to(pair.clean).expand(len(inputs), -1, -1, -1)
            # A new generator each time: an editor that draws noise must draw the same for all inputs.
            generator = torch.Generator(device=pair.clean.device).manual_seed(self.seed)
            with torch.inference_mode():
                out = self.editor.inpaint(torch.cat(inputs), mask, generator=generator)
            clean, got, *noise = (to_picture(one) for one in out)
            pictures[kind] = clean, got
            row = {
                "editor": self.editor.name,
                "mask_kind": kind,
                "ssim": masked_ssim(clean, got, plane),
                "l1": float(np.abs(clean - got)[plane].mean()),
            }
            if kind in BREAKING:
                row["visible"] = visible(clean, got, plane)
            if noise:
                row["control_ssim"] = masked_ssim(clean, noise[0], plane)
            if towards is not None and kind in BREAKING:
                wanted = to_picture(towards(pair.clean)[0])
                row["target_distance"] = float(np.abs(got - wanted)[plane].mean())
            rows.append(row)
        return rows, pictures


def _panels(
    label: str,
    kinds: dict[MaskKind, Mask],
    pair: _Pair,
    pictures: dict[MaskKind, tuple[Picture, Picture]],
    rows: list[dict[str, Any]],
) -> Panels:
    benign = MaskKind.FAR if MaskKind.FAR in kinds else MaskKind.NEAR
    nothing = np.zeros_like(kinds[MaskKind.TRIGGER])
    unedited = to_picture(pair.clean[0]), to_picture(pair.published[0])
    benign_pictures = pictures.get(benign, unedited)
    return Panels(
        label=label,
        mask=kinds[MaskKind.TRIGGER],
        original=_in_levels(unedited[0]),
        protected=_in_levels(unedited[1]),
        edit_original=_in_levels(pictures[MaskKind.TRIGGER][0]),
        edit_protected=_in_levels(pictures[MaskKind.TRIGGER][1]),
        benign_original=_in_levels(benign_pictures[0]),
        benign_protected=_in_levels(benign_pictures[1]),
        benign_mask=kinds.get(benign, nothing),
        summary=[_in_words(row) for row in rows],
    )


def _in_words(row: dict[str, Any]) -> str:
    """The figures of an edit in a few words, for the sheet."""
    if row["mask_kind"] == MaskKind.TRIGGER:
        return f"edit of the region: plainly broken over {row['visible']:.0%} of it, SSIM {row['ssim']:.2f}"
    return f"{row['mask_kind']}: SSIM {row['ssim']:.2f}"


def _in_levels(picture: Picture) -> Rgb:
    out: Rgb = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return out
