"""Replay the edits on the pixels decoded from the file to be published, and judge them.

Editors see the crop, as the commonest one does; the trigger edit also reaches them by the paths that
`geometry.other_paths` names. Every protected edit is compared with the
clean edit, the same editor on the original under the same mask: SSIM (Wang 2004, Gaussian
window) and L1, both averaged under the mask. A control of random noise as large as the change
keeps us honest: what noise does to an edit is no protection.
Longer than 300 lines so that what is replayed and how it is judged stand together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from backfire.attack_paths import geometry
from backfire.attack_paths.geometry import Crop
from backfire.config import Verify
from backfire.imaging import masks
from backfire.inpaint.base import Editor
from backfire.perturb.methods.base import aim
from backfire.perturb.optimiser import seen, to_tensor
from backfire.types import Budget, EditPath, Mask, MaskKind, Rgb, Verdict

MOST_PANELS = 6
"""Regions shown to a person; each holds megabytes of pictures."""

SSIM_WINDOW = 11
HARDLY = 8
"""A trigger edit that breaks by less than this fraction of what is asked is not broken at all."""
BREAKING = (MaskKind.TRIGGER, MaskKind.DILATED, MaskKind.PARTIAL)
SPARE = 0.03
"""By how much SSIM must be better than asked for work to end early; a third of it for benign edits."""
Picture = NDArray[np.float32]
"""H,W,3 in [0,1]."""


@dataclass(frozen=True)
class EditResult:
    """One replayed edit.

    Attributes:
        region: index into the receipt's regions.
        ssim, l1: protected edit against clean edit, means under the mask; SSIM in [-1,1],
            L1 in [0,1].
        control_ssim: the same for random noise of equal size (trigger edits only).
        target_distance: L1 to the target picture (`target: flat` and `inverted` only).
        held_out: whether the editor took no part in the optimisation.
        path: how the picture reached the editor; by another one than `crop` come trigger edits only.
    """

    editor: str
    region: int
    mask_kind: MaskKind
    ssim: float
    l1: float
    held_out: bool
    control_ssim: float | None = None
    target_distance: float | None = None
    path: EditPath = EditPath.CROP

    def row(self) -> dict[str, Any]:
        """For the receipt."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Panels:
    """What a person looks at: one region through its first surrogate; all pictures H,W,3 uint8."""

    label: str
    mask: Mask
    original: Rgb
    protected: Rgb
    edit_original: Rgb
    edit_protected: Rgb
    benign_original: Rgb
    benign_protected: Rgb
    benign_mask: Mask
    summary: list[str]


@dataclass(frozen=True, eq=False)
class Verification:
    """The verdict and everything it rests on; `psnr_db` is over the crops, None if nothing changed."""

    verdict: Verdict
    reasons: list[str]
    psnr_db: float | None
    max_change_levels: int
    edits: list[EditResult] = field(default_factory=list)
    panels: list[Panels] = field(default_factory=list)


def verify(
    original: Rgb,
    published: Rgb,
    crops: Sequence[Crop],
    surrogates: Sequence[Editor],
    held_out: Sequence[Editor],
    budget: Budget,
    settings: Verify,
    *,
    largest: int,
    target: str,
    device: torch.device,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Judge `published`, the decoded pixels of the file, against `original`; both upright uint8 H,W,3.

    Args:
        largest: the largest change of a sample as the file stores it, in levels of 255.
        rng: seeds the masks, the control and the editors' own noise, so that a job's key repeats them.
    """
    editors = [(editor, False) for editor in surrogates] + [(editor, True) for editor in held_out]
    total = len(editors) * sum(len(crop.regions) for crop in crops)
    height, width = original.shape[:2]
    # Apart, so that neither the paths nor the editors' noise shift what the crop's edits draw.
    jitter, noise = rng.spawn(2)
    seed = int(noise.integers(1 << 63))
    edits: list[EditResult] = []
    panels: list[Panels] = []
    region = done = 0
    for crop in crops:
        before = to_tensor(original[crop.box.slices], crop.size, device)
        after = to_tensor(published[crop.box.slices], crop.size, device)
        control = _control(before, after, rng)
        planes = crop.masks()
        protected = crop.protected()
        for index, mask in enumerate(planes):
            kinds = _kinds(mask, protected, rng)
            others = geometry.other_paths(crop.regions[index], crop, height, width, jitter)
            views = {
                path: (seen(original, other, device), seen(published, other, device))
                for path, other in others.items()
            }
            for editor, is_held_out in editors:
                rows, pictures = _replay(editor, before, after, control, kinds, target, seed)
                for path, other in others.items():
                    trigger = {MaskKind.TRIGGER: other.masks()[0]}
                    more, _ = _replay(editor, *views[path], None, trigger, target, seed)
                    edits += [
                        EditResult(region=region, held_out=is_held_out, path=path, **row) for row in more
                    ]
                edits += [EditResult(region=region, held_out=is_held_out, **row) for row in rows]
                done += 1
                if editor is editors[0][0] and len(panels) < MOST_PANELS:
                    panels.append(_panels(crop, index, kinds, before, after, pictures, rows))
                progress(done, total)
            region += 1
    verdict, reasons = judge(edits, largest, budget, settings)
    return Verification(verdict, reasons, _psnr(original, published, crops), largest, edits, panels)


def _control(before: Tensor, after: Tensor, rng: np.random.Generator) -> Tensor:
    """The crop under random noise as large, sample by sample, as the change; 1,3,h,w in [0,1] all three.

    It is to be no weaker than the change: noise of each channel's own would be, of a grey change, and so
    would noise cut off in blacks and whites, where the sign is turned instead.
    """
    signs = torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), size=tuple(before.shape)))
    size = (after - before).abs()
    if torch.equal(size, size[:, :1].expand_as(size)):
        signs = signs[:, :1]
    noise = size * signs.to(before.device)
    moved = before + noise
    return torch.where((moved < 0) | (moved > 1), before - noise, moved).clamp(0, 1)


def _kinds(mask: Mask, protected: Mask, rng: np.random.Generator) -> dict[MaskKind, Mask]:
    """The masks to replay; near and far only where they have pixels."""
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


def _replay(
    editor: Editor,
    before: Tensor,
    after: Tensor,
    control: Tensor | None,
    kinds: dict[MaskKind, Mask],
    target: str,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[MaskKind, tuple[Picture, Picture]]]:
    """Rows for the receipt, and (clean edit, protected edit) by kind. Float32: what users run."""
    rows: list[dict[str, Any]] = []
    pictures: dict[MaskKind, tuple[Picture, Picture]] = {}
    towards = aim(target, before)
    for kind, plane in kinds.items():
        inputs = [before, after]
        if kind == MaskKind.TRIGGER and control is not None:
            inputs.append(control)
        mask = torch.from_numpy(plane)[None, None].to(before).expand(len(inputs), -1, -1, -1)
        # A generator each time: an editor that draws noise must draw the same for both.
        generator = torch.Generator(device=before.device).manual_seed(seed)
        with torch.inference_mode():
            out = editor.inpaint(torch.cat(inputs), mask, generator=generator)
        clean, got, *noise = (to_picture(one) for one in out)
        pictures[kind] = clean, got
        row = {
            "editor": editor.name,
            "mask_kind": kind,
            "ssim": masked_ssim(clean, got, plane),
            "l1": float(np.abs(clean - got)[plane].mean()),
        }
        if noise:
            row["control_ssim"] = masked_ssim(clean, noise[0], plane)
        if towards is not None and kind in BREAKING:
            row["target_distance"] = float(np.abs(got - to_picture(towards(before)[0]))[plane].mean())
        rows.append(row)
    return rows, pictures


def to_picture(image: Tensor) -> Picture:
    """3,H,W -> H,W,3 float32."""
    return image.permute(1, 2, 0).float().cpu().numpy()


def masked_ssim(a: Picture, b: Picture, mask: Mask) -> float:
    """SSIM of two H,W,3 pictures in [0,1], averaged under the mask."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    short = [(0, max(SSIM_WINDOW - side, 0)) for side in mask.shape]
    if any(more for _, more in short):  # a picture smaller than SSIM's window
        a, b = (np.pad(picture, [*short, (0, 0)], mode="edge") for picture in (a, b))
        mask = np.pad(mask, short)
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        a, b, channel_axis=2, data_range=1.0, full=True, **options
    )
    return float(similarity[mask].mean())


def judge(
    edits: Sequence[EditResult], largest: int, budget: Budget, settings: Verify
) -> tuple[Verdict, list[str]]:
    """The verdict and its reasons, worst first.

    `failed`: the budget is exceeded, a number is not finite, or some region's trigger edit
    through a surrogate is missing, breaks by less than an eighth of what is asked or no more than noise
    breaks it.
    `weak`: some threshold is missed. `protected`: all are met, held-out editors included.
    """
    failed: list[str] = []
    weak: list[str] = []
    if largest > budget.levels:
        failed.append(f"largest change is {largest} levels, the budget {budget.epsilon:g}")
    for edit in edits:
        by = "" if edit.path == EditPath.CROP else f" of the {edit.path} picture"
        name = f"region {edit.region}: {edit.mask_kind} edit{by} by {edit.editor}"
        if not np.isfinite([edit.ssim, edit.l1, edit.control_ssim or 0.0]).all():
            failed.append(f"{name} gave no finite picture")
        else:
            weak += [f"{name} {miss}" for miss in _misses(edit, settings)]
            if _decides(edit):
                failed += _ineffective(edit, name, *_asked(edit, settings), settings)
    for region in sorted({edit.region for edit in edits}):
        if not any(edit.region == region and _decides(edit) for edit in edits):
            failed.append(f"region {region}: no trigger edit by a surrogate was replayed")
        if not any(edit.region == region and edit.mask_kind == MaskKind.FAR for edit in edits):
            weak.append(f"region {region}: no room in its crop for an edit 32 px away; not measured")
    if not edits:
        failed.append("no edit was replayed")
    verdict = Verdict.FAILED if failed else Verdict.WEAK if weak else Verdict.PROTECTED
    return verdict, failed + weak


def _decides(edit: EditResult) -> bool:
    """Whether a region that this edit does not break counts as not protected at all."""
    return edit.mask_kind == MaskKind.TRIGGER and edit.path == EditPath.CROP and not edit.held_out


def _misses(edit: EditResult, settings: Verify) -> list[str]:
    """Which thresholds an edit misses."""
    if edit.mask_kind not in BREAKING:
        floor = settings.near_ssim_min if edit.mask_kind == MaskKind.NEAR else settings.far_ssim_min
        return [] if edit.ssim >= floor else [f"changes to SSIM {edit.ssim:.3f}, at least {floor:g} asked"]
    most, least = _asked(edit, settings)
    found = []
    if not edit.ssim <= most:
        found.append(f"keeps SSIM {edit.ssim:.3f} of the clean edit, at most {most:g} asked")
    if not edit.l1 >= least:
        found.append(f"moves by L1 {edit.l1:.3f}, at least {least:g} asked")
    return found


def holds(
    original: Rgb,
    published: Rgb,
    crop: Crop,
    surrogates: Sequence[Editor],
    settings: Verify,
    *,
    broken: bool = False,
    resized: bool = True,
    device: torch.device,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Whether one crop meets every threshold with a margin: the verdict will draw other edits.

    Stops at the first miss, so that asking costs little while the answer is no.

    Args:
        broken: ask only of edits that are to break, not of those that are to be kept.
        resized: ask of the whole picture at 512 px, too.
        progress: called with (regions done, regions) before each edit; may raise to stop.
    """
    strict = settings.model_copy(
        update={
            **{name: getattr(settings, name) - SPARE for name in ("trigger_ssim_max", "incomplete_ssim_max")},
            **{name: getattr(settings, name) + SPARE / 3 for name in ("near_ssim_min", "far_ssim_min")},
            **{name: getattr(settings, name) * 1.1 for name in ("trigger_l1_min", "incomplete_l1_min")},
        }
    )
    height, width = original.shape[:2]
    seed = int(rng.spawn(1)[0].integers(1 << 63))
    for done, (region, mask) in enumerate(zip(crop.regions, crop.masks(), strict=True)):
        kinds = _kinds(mask, crop.protected(), rng)
        kinds = {kind: plane for kind, plane in kinds.items() if kind in BREAKING or not broken}
        looks = [(EditPath.CROP, crop, {kind: plane}) for kind, plane in kinds.items()]
        for path, other in geometry.other_paths(region, crop, height, width, rng).items():
            if resized or path != EditPath.RESIZED:
                looks.append((path, other, {MaskKind.TRIGGER: other.masks()[0]}))
        for path, cut, plane in looks:
            pair = seen(original, cut, device), seen(published, cut, device)
            for editor in surrogates:
                progress(done, len(crop.regions))
                ((row,), _) = _replay(editor, *pair, None, plane, "away", seed)
                if _misses(EditResult(region=0, held_out=False, path=path, **row), strict):
                    return False
    return True


def _asked(edit: EditResult, settings: Verify) -> tuple[float, float]:
    """The most SSIM and the least L1 that a broken edit may have."""
    if edit.mask_kind != MaskKind.TRIGGER or edit.path != EditPath.CROP:
        return settings.incomplete_ssim_max, settings.incomplete_l1_min
    return settings.trigger_ssim_max, settings.trigger_l1_min


def _ineffective(edit: EditResult, name: str, most: float, least: float, settings: Verify) -> list[str]:
    """Why a trigger edit counts as not broken at all, if it does."""
    effect, noise = 1 - edit.ssim, 1 - (1.0 if edit.control_ssim is None else edit.control_ssim)
    if effect < (1 - most) / HARDLY or edit.l1 < least / HARDLY:
        return [f"{name} hardly breaks (SSIM {edit.ssim:.2f}, L1 {edit.l1:.3f})"]
    if effect < settings.control_factor * noise:
        return [f"{name} breaks by {effect:.2f}, plain noise by {noise:.2f}"]
    return []


def _psnr(original: Rgb, published: Rgb, crops: Sequence[Crop]) -> float | None:
    where = np.zeros(original.shape[:2], dtype=np.bool_)
    for crop in crops:
        where[crop.box.slices] = True
    difference = published[where].astype(np.float32) - original[where]
    squared = float((difference**2).mean(dtype=np.float64)) if where.any() else 0.0
    return None if squared == 0 else float(10 * np.log10(255**2 / squared))


def _panels(
    crop: Crop,
    index: int,
    kinds: dict[MaskKind, Mask],
    before: Tensor,
    after: Tensor,
    pictures: dict[MaskKind, tuple[Picture, Picture]],
    rows: list[dict[str, Any]],
) -> Panels:
    benign = MaskKind.FAR if MaskKind.FAR in kinds else MaskKind.NEAR
    nothing = np.zeros_like(kinds[MaskKind.TRIGGER])
    benign_pictures = pictures.get(benign, (to_picture(before[0]), to_picture(after[0])))
    region = crop.regions[index]
    return Panels(
        label=f"{region.label} {region.box.width}x{region.box.height}",
        mask=kinds[MaskKind.TRIGGER],
        original=_bytes(to_picture(before[0])),
        protected=_bytes(to_picture(after[0])),
        edit_original=_bytes(pictures[MaskKind.TRIGGER][0]),
        edit_protected=_bytes(pictures[MaskKind.TRIGGER][1]),
        benign_original=_bytes(benign_pictures[0]),
        benign_protected=_bytes(benign_pictures[1]),
        benign_mask=kinds.get(benign, nothing),
        summary=[f"{row['mask_kind']}: SSIM {row['ssim']:.2f}  L1 {row['l1']:.2f}" for row in rows],
    )


def _bytes(picture: Picture) -> Rgb:
    out: Rgb = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return out
