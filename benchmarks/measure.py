"""Protects one picture, writes and decodes it, and lets every judge edit it as an attacker would.

The most common tool (IOPaint) crops pictures over 800 px to the mask's box with a margin of 128 px, and edits
smaller ones whole. Every edit is compared with the same edit of the original.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flip_evaluator
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from backfire import attack_paths, imaging
from backfire.attack_paths import cropping
from backfire.attack_paths.cropping import Crop
from backfire.attack_paths.tensors import to_picture, to_tensor
from backfire.config import Folders, Output, Protect, Settings, Verify
from backfire.evaluate import judge as judging
from backfire.evaluate.edits import Editors
from backfire.evaluate.judge import EditResult
from backfire.evaluate.metrics import Picture, masked_ssim, psnr_over
from backfire.evaluate.replay import controlled, replay
from backfire.imaging import masks
from backfire.inpaint import hardware
from backfire.inpaint.base import Editor
from backfire.perturb.methods.base import Method
from backfire.perturb.optimiser import Optimiser
from backfire.types import Box, Budget, Mask, Rgb
from benchmarks import battery, perceptual
from benchmarks.battery import Treated, Treatment
from benchmarks.memory import peak
from benchmarks.rows import Row
from benchmarks.sets import Case

CROP_OVER, MARGIN = 800, 128
"""The defaults of IOPaint, in pixels."""
MOST_DB = 138.13
"""The PSNR recorded for a picture without any perturbation, since JSON has no infinity."""
CPU = torch.device("cpu")
SHIFTS = (64, 200)
"""The least and the largest margin that a tool may leave around a region, in pixels."""
RESIZED = 512
"""The long side at which many editors take a picture."""
PathsOf = Mapping[str, tuple[str, ...]]
View = Callable[[Rgb], Treated | None]
"""From a picture to what an attacker gives to the editor: part of it and an edit mask, or None."""


@dataclass(frozen=True, eq=False)
class Made:
    """A protected picture, decoded from its file, and the cost of protecting it.

    Attributes:
        rgb: uint8 H,W,3.
        crops: the crops that were optimised.
        seconds: elapsed time of the optimisation alone.
        cpu_s: processor time of the same, which depends little on other work on the machine.
        peak_mb: peak memory of the optimisation in MiB, beyond what the process held before.
    """

    rgb: Rgb
    crops: list[Crop]
    seconds: float
    cpu_s: float
    peak_mb: int


def protected(
    case: Case,
    settings: Protect,
    surrogates: Sequence[Editor],
    *,
    whole: bool = False,
    through: Sequence[Sequence[str]] = (),
    method: Method | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Protect a picture.

    Args:
        whole: whether the method optimises all of it instead of crops around the regions.
        through: by surrogate, the attack paths to optimise through, where the settings say all of them.
        method: instead of the one that the settings name.
    """
    height, width = case.rgb.shape[:2]
    regions = case.regions()
    if whole:
        crops = [Crop(Box(0, 0, width, height), tuple(regions), (height, width))]
    else:
        margin, work = settings.margin_px, settings.work_px
        crops = cropping.plan(regions, height, width, margin=margin, work=work, whole=settings.whole_px)
    with peak() as memory, hardware.memory_kept():
        began, worked = time.perf_counter(), time.process_time()
        changed = (
            Optimiser(settings, surrogates, CPU, method, through)
            .optimise(case.rgb, crops, grey=False, rng=np.random.default_rng(case.seed), progress=progress)
            .rgb
        )
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - worked
    limit = Output().max_pixels
    source = io.BytesIO()
    Image.fromarray(case.rgb).save(source, "PNG")
    picture = imaging.decode(source.getvalue(), name=case.name, max_pixels=limit)
    file = imaging.encode(picture, changed, levels=Budget(settings.epsilon).levels, format="png")
    published = imaging.decode(file.data, name=case.name, max_pixels=limit).rgb
    return Made(published, crops, round(seconds, 2), round(cpu_s, 2), memory.mb)


def warm(surrogates: Sequence[Editor]) -> None:
    """Protect a tiny picture by ours and by the baseline, so that later timings exclude one-time costs."""
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[16:32, 16:32] = True
    scrap = Case("", "scrap", np.full((64, 64, 3), 127, np.uint8), (mask,))
    for method in ("implant", "baseline"):
        protected(scrap, Protect(method=method, iterations=1), surrogates)


def as_given(rgb: Rgb, mask: Mask) -> Treated:
    """The part of a picture and a mask that the most common tool gives to the editor."""
    return _cut(rgb, mask, _given_box(mask))


def _given_box(mask: Mask) -> Box:
    height, width = mask.shape
    if max(height, width) <= CROP_OVER:
        return Box(0, 0, width, height)
    return Box.around(mask).grown(MARGIN, width, height)


def _cut(rgb: Rgb, mask: Mask, box: Box) -> Treated:
    return rgb[box.slices], mask[box.slices]


def _after(rgb: Rgb, mask: Mask, treat: Treatment) -> Treated | None:
    treated = treat(rgb, mask)
    return as_given(*treated) if treated is not None and treated[1].any() else None


def incomplete(mask: Mask, rng: np.random.Generator) -> dict[str, Mask]:
    """Masks as painted by users who want to edit a region but do not know the mask it was protected with."""
    turn = float(rng.uniform(0, 2 * np.pi))
    return {
        "dilated": masks.dilated(mask),
        "half": masks.half(mask, float(rng.uniform(0, 2 * np.pi))),
        "box": masks.bounding(mask),
        "shift 16": masks.shifted(mask, int(16 * np.sin(turn)), int(16 * np.cos(turn))),
        "stroke": masks.stroke(mask, rng),
        **{f"cover {round(100 * share)}%": masks.covering(mask, share) for share in (0.5, 0.75, 1.25, 1.5)},
        "uneven": masks.uneven(mask, rng),
    }


def views(case: Case, index: int, judges: Sequence[Editor], *, plain: bool) -> dict[str, View]:
    """The edits of one region, by name.

    Benign edits are left out if there is no room for them, and crops if they equal that of the full edit.

    Args:
        case: the picture.
        index: which of its regions.
        judges: the editors; the autoencoders of latent ones are used for purification.
        plain: only the edits `full`, `near` and `far`.
    """
    rng = np.random.default_rng([*case.seed, index])
    mask, everything = case.masks[index], case.everything
    benign = {"near": masks.ring(mask) & ~everything, "far": masks.far(everything, rng)}
    planes = {"full": mask, **{k: plane for k, plane in benign.items() if plane is not None and plane.any()}}
    if not plain:
        planes |= incomplete(mask, rng)
    found: dict[str, View] = {name: partial(as_given, mask=plane) for name, plane in planes.items()}
    if plain:
        return found
    height, width = mask.shape
    plain_box = _given_box(mask)
    around = Box.around(mask)
    left, top, right, bottom = rng.integers(SHIFTS[0], SHIFTS[1] + 1, size=4).tolist()
    cuts = {
        "crop path": around.grown(MARGIN, width, height),
        "cut otherwise": Box(
            max(around.left - left, 0),
            max(around.top - top, 0),
            min(around.right + right, width),
            min(around.bottom + bottom, height),
        ),
    }
    found |= {name: partial(_cut, mask=mask, box=box) for name, box in cuts.items() if box != plain_box}
    if (scale := RESIZED / max(height, width)) < 1:
        found["whole at 512"] = partial(battery.scaled, mask=mask, scale=scale)
    for name, treat in battery.treatments(judges).items():
        found[f"after {name}"] = partial(_after, mask=mask, treat=treat)
    return found


class Trial:
    """Lets the judges edit versions of one picture. The edits of the original are made once and kept.

    Args:
        case: the picture.
        judges: the editors.
        plain: see `views`.
        distance: LPIPS, or None if it is not available.
        features: CLIP's image features, or None if they are not available.
    """

    def __init__(
        self,
        case: Case,
        judges: Sequence[Editor],
        *,
        plain: bool = False,
        distance: perceptual.Distance | None = None,
        features: perceptual.Features | None = None,
    ) -> None:
        self.case, self.judges = case, judges
        self._distance, self._features = distance, features
        self._views = [views(case, i, judges, plain=plain) for i in range(len(case.masks))]
        self._clean: dict[tuple[int, int, str], tuple[Picture, Mask] | None] = {}

    def edits(self, published: Rgb) -> Row:
        """Compare every edit of a published picture with the same edit of the original.

        Returns:
            `edits`: by judge and name of the edit, for each region [SSIM, L1] under the mask, or None if
            there is no such edit. `lpips` and `clip`: by judge, the same for the full regions; empty without
            their weights.
        """
        found: Row = {"edits": {}, "lpips": {}, "clip": {}}
        for which, judge in enumerate(self.judges):
            names = dict.fromkeys(name for named in self._views for name in named)
            regions = range(len(self._views))
            found["edits"][judge.name] = {
                name: [self._figures(published, i, which, name) for i in regions] for name in names
            }
            pairs = [self._pair(published, i, which, "full") for i in regions]
            if self._distance:
                found["lpips"][judge.name] = [
                    round(self._distance(a, b), 4) for a, b, _ in filter(None, pairs)
                ]
            if self._features:
                found["clip"][judge.name] = [
                    [self._features(a), self._features(b)] for a, b, _ in filter(None, pairs)
                ]
        return found

    def effect(self, published: Rgb) -> float:
        """The effect on the first judge's edit of the first region: 1 - SSIM to the clean edit."""
        figures = self._figures(published, 0, 0, "full")
        assert figures is not None
        return 1.0 - figures[0]

    def _figures(self, published: Rgb, region: int, which: int, name: str) -> list[float] | None:
        pair = self._pair(published, region, which, name)
        if pair is None:
            return None
        clean, got, mask = pair
        return [round(masked_ssim(clean, got, mask), 4), round(float(np.abs(clean - got)[mask].mean()), 4)]

    def _pair(
        self, published: Rgb, region: int, which: int, name: str
    ) -> tuple[Picture, Picture, Mask] | None:
        """The edits of the original and of the published picture, and their mask."""
        view = self._views[region].get(name)
        if view is None:
            return None
        key = region, which, name
        if key not in self._clean:
            self._clean[key] = self._edited(self.case.rgb, which, view)
        clean, got = self._clean[key], self._edited(published, which, view)
        return None if clean is None or got is None else (clean[0], got[0], clean[1])

    def _edited(self, rgb: Rgb, which: int, view: View) -> tuple[Picture, Mask] | None:
        seen = view(rgb)
        if seen is None or not seen[1].any() or seen[1].all():
            return None  # an edit that repaints every pixel does not depend on the picture
        part, mask = seen
        generator = torch.Generator().manual_seed(0)  # both edits draw the same noise
        with torch.inference_mode():
            image = to_tensor(part, mask.shape, CPU)
            plane = torch.from_numpy(mask.copy())[None, None].float()
            return to_picture(self.judges[which].inpaint(image, plane, generator=generator)[0]), mask


def verdicts(
    case: Case,
    made: Made,
    settings: Protect,
    surrogates: Sequence[Editor],
    held_out: Sequence[Editor],
    paths: PathsOf,
    *,
    everywhere: bool = False,
    controls: bool = True,
) -> tuple[list[EditResult], dict[str, str]]:
    """The replayed edits of a protected picture, and the daemon's verdicts on it and on two controls.

    The controls are the original and one with random noise as large as the perturbation. Both must be
    `failed` by the surrogates alone: a verdict is worthless if an unprotected picture passes.

    Args:
        paths: by editor, the attack paths on which it is replayed.
        everywhere: whether surrogates make all edits on every path, and not only those of the region.
        controls: whether to judge the two controls, too.
    """
    height, width = case.rgb.shape[:2]
    everything, seed = Box(0, 0, width, height), [*case.seed, 1]
    noise = controlled(case.rgb, made.rgb, everything, np.random.default_rng(seed))
    edits, found = list[EditResult](), {}
    pictures = {"noise": noise, "unchanged": case.rgb} if controls else {}
    regions = sum(len(crop.regions) for crop in made.crops)
    for name, rgb in {**pictures, "published": made.rgb}.items():
        rng = np.random.default_rng(case.seed)
        judges = held_out if rgb is made.rgb else ()
        editors = Editors(CPU, surrogates, judges, paths, everywhere=everywhere)
        replayed = replay(case.rgb, rgb, made.crops, editors, target=settings.target, rng=rng)
        edits, largest = replayed.edits, imaging.max_change(rgb, case.rgb)
        verdict, _ = judging.judge(
            edits,
            largest,
            Budget(settings.epsilon),
            Verify(),
            regions=regions,
            cannot_judge=replayed.cannot_judge,
        )
        found[name] = verdict.value
    return edits, found


def paths_of(names: Sequence[str], declared: Settings | None) -> PathsOf:
    """By editor, the attack paths on which the daemon judges it by default."""
    folders = Folders(inbox=Path("inbox"))
    settings = declared or Settings(folders=folders)
    chosen = settings.model_copy(update={"protect": Protect(surrogates=tuple(names))})
    return attack_paths.of_editors(chosen)


def declarations(declared: Settings | None, names: Sequence[str]) -> Row:
    """What a configuration declares of these editors, on which rows depend beside the weights.

    Weights are left out: rows name them by their digest, and a path is one of a single machine.
    """
    named = {} if declared is None else declared.editors
    return {name: named[name].model_dump(mode="json", exclude={"weights"}) for name in names if name in named}


def quality(original: Rgb, made: Made) -> dict[str, Any]:
    """How visible the perturbation is: PSNR over the crops in dB, SSIM of the picture, largest change, FLIP.

    FLIP (https://research.nvidia.com/publication/2020-07_FLIP) says how much somebody sees who flips between
    both pictures at 67 pixels a degree: 0 is nothing, 1 the most. `flip` is its mean over the crops, and
    `flip_p99` what one pixel in a hundred exceeds.
    """
    errors, inside = _flip(original, made.rgb), np.zeros(original.shape[:2], np.bool_)
    for crop in made.crops:
        inside[crop.box.slices] = True
    seen = errors[inside]
    similarity = structural_similarity(original, made.rgb, channel_axis=2)  # type: ignore[no-untyped-call]
    return {
        "psnr": round(min(psnr_over(original, made.rgb, made.crops), MOST_DB), 2),
        "ssim": round(float(similarity), 4),
        "max_change": imaging.max_change(made.rgb, original),
        "flip": round(float(seen.mean()), 4),
        "flip_p99": round(float(np.quantile(seen, 0.99)), 4),
    }


def _flip(original: Rgb, published: Rgb) -> NDArray[np.float32]:
    """FLIP's map of errors, H,W."""
    pictures = (one.astype(np.float32) / 255 for one in (original, published))
    errors, *_ = flip_evaluator.evaluate(*pictures, "LDR", applyMagma=False)
    found: NDArray[np.float32] = errors[..., 0]
    return found
