"""What a protection does to edits, on files written and decoded again, as an attacker edits them.

    python -m benchmarks protection --set dev --count 20 --methods implant,recipe --editors latent-mini

Each picture is protected by each method against each editor (and against all of them together
with --ensemble), written as PNG, decoded, and edited by every editor along the commonest tool's
path: pictures over 800 px are cropped to the mask's box and 128 px around it, smaller ones
edited whole. SSIM and L1 compare the edit with the edit of the original, under the mask. One JSON
line a protected picture goes to OUT/rows.jsonl as soon as it is measured; a run goes on where it
was stopped. At the end OUT/table.md and OUT/*.png are written from all lines.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from skimage.metrics import structural_similarity

from benchmarks import sets, summary
from benchmarks.battery import BATTERY
from benchmarks.sets import Case
from daemon import editors, geometry, images, protect
from daemon.config import Output, Protect
from daemon.domain import Box, Budget, Mask, Region, Rgb
from daemon.editors.base import Editor
from daemon.verify import masked_ssim, to_picture

CROP_OVER, MARGIN = 800, 128
"""IOPaint's defaults (METHOD.md)."""
CPU = torch.device("cpu")


def seen(rgb: Rgb, mask: Mask) -> Box:
    """The part of the picture that the attacker's tool hands to the model."""
    height, width = rgb.shape[:2]
    if max(height, width) <= CROP_OVER:
        return Box(0, 0, width, height)
    return Box.around(mask).grown(MARGIN, width, height)


def compared(editor: Editor, original: Rgb, published: Rgb, mask: Mask) -> dict[str, float]:
    """SSIM and L1 under the mask between the edits of both pictures."""
    box = seen(original, mask)
    plane = mask[box.slices]
    pair = torch.cat([protect.to_tensor(rgb[box.slices], plane.shape, CPU) for rgb in (original, published)])
    masks = torch.from_numpy(plane)[None, None].float().expand(2, -1, -1, -1)
    with torch.inference_mode():
        clean, got = (
            to_picture(one) for one in editor.inpaint(pair, masks, generator=torch.Generator().manual_seed(0))
        )
    return {
        "ssim": round(masked_ssim(clean, got, plane), 4),
        "l1": round(float(np.abs(clean - got)[plane].mean()), 4),
    }


def edits(mask: Mask, everything: Mask, rng: np.random.Generator) -> dict[str, Mask]:
    """The edit masks measured for one region; benign ones only where there is room."""
    angle = rng.uniform(0, 2 * np.pi)
    down, right = (int(16 * np.sin(angle)), int(16 * np.cos(angle)))
    found: dict[str, Mask | None] = {
        "full": mask,
        "dilated": geometry.dilated(mask),
        "half": geometry.half(mask, float(rng.uniform(0, 2 * np.pi))),
        "box": geometry.bounding(mask),
        "shift 16": geometry.shifted(mask, down, right),
        "stroke": geometry.stroke(mask, rng),
        **{f"cover {round(100 * s)}%": geometry.covering(mask, s) for s in (0.5, 0.75, 1.25, 1.5)},
        "near": geometry.ring(mask) & ~everything,
        "far": geometry.far(everything, rng),
    }
    return {name: plane for name, plane in found.items() if plane is not None and plane.any()}


def measure(
    case: Case, settings: Protect, surrogates: Sequence[Editor], judges: Sequence[Editor]
) -> dict[str, Any]:
    """Protects one picture and measures every edit of the decoded file by every judge."""
    height, width = case.rgb.shape[:2]
    regions = [Region(Box.around(m), "mask", 1.0, "bench", m[Box.around(m).slices]) for m in case.masks]
    crops = geometry.plan(regions, height, width, margin=settings.margin_px, work=settings.work_px)
    seed = list(hashlib.sha256(case.name.encode()).digest())
    began = time.perf_counter()
    changed = protect.optimise(
        case.rgb,
        False,
        crops,
        settings,
        surrogates,
        device=CPU,
        rng=np.random.default_rng(seed),
        progress=lambda done, total: None,
    ).rgb
    seconds = time.perf_counter() - began
    limit = Output().max_pixels
    picture = images.decode(_png(case.rgb), name=case.name, max_pixels=limit)
    file = images.encode(picture, changed, levels=Budget(settings.epsilon).levels, format="png")
    published = images.decode(file.data, name=case.name, max_pixels=limit).rgb
    everything: Mask = np.logical_or.reduce(case.masks)
    rows: list[dict[str, Any]] = []
    for index, mask in enumerate(case.masks):
        planes = edits(mask, everything, np.random.default_rng([*seed, index]))
        for judge in judges:
            for name, plane in planes.items():
                rows.append(
                    {"editor": judge.name, "edit": name, **compared(judge, case.rgb, published, plane)}
                )
            for name, treat in BATTERY.items():
                before, (moved,) = treat(case.rgb, [mask])
                after, _ = treat(published, [mask])
                if moved.any():
                    rows.append(
                        {
                            "editor": judge.name,
                            "edit": f"after {name}",
                            **compared(judge, before, after, moved),
                        }
                    )
    difference = published.astype(np.int16) - case.rgb
    where = np.zeros((height, width), dtype=np.bool_)
    for crop in crops:
        where[crop.box.slices] = True
    squared = float((difference[where].astype(np.float64) ** 2).mean())
    return {
        "picture": case.name,
        "size": [width, height],
        "psnr": round(10 * float(np.log10(255**2 / max(squared, 1e-9))), 2),
        "ssim": round(float(structural_similarity(case.rgb, published, channel_axis=2)), 4),  # type: ignore[no-untyped-call]
        "max_change": int(np.abs(difference).max()),
        "seconds": round(seconds, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "edits": rows,
    }


def _png(rgb: Rgb) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def main(argv: Sequence[str]) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks protection", description=__doc__)
    parser.add_argument("--set", choices=sets.NAMES, default="dev")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--side", type=int, default=512, help="scale pictures down to this longer side")
    parser.add_argument("--methods", default="implant,recipe")
    parser.add_argument("--editors", default="latent-mini", help="each is surrogate and judge in turn")
    parser.add_argument("--ensemble", action="store_true", help="protect against all editors together too")
    parser.add_argument("--epsilon", default="6.4", help="levels of 255; several make a sweep")
    parser.add_argument("--iterations", default="20", help="several make a sweep")
    parser.add_argument("--flat-share", type=float, default=Protect().flat_share)
    parser.add_argument("--withstand", default=",".join(Protect().withstand))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/protection"))
    given = parser.parse_args(argv)

    judges = [editors.get(name) for name in given.editors.split(",")]
    groups = [[judge] for judge in judges] + ([judges] if given.ensemble and len(judges) > 1 else [])
    plans = [
        (method, float(epsilon), int(iterations), group)
        for method in given.methods.split(",")
        for epsilon in given.epsilon.split(",")
        for iterations in given.iterations.split(",")
        for group in groups
    ]
    chosen = list(sets.cases(given.set, count=given.count, side=given.side))
    given.out.mkdir(parents=True, exist_ok=True)
    log = given.out / "rows.jsonl"
    known = {row["key"]: row for row in summary.read(log)}
    wanted: list[str] = []
    with Progress() as bar, log.open("a") as lines:
        task = bar.add_task("protection", total=len(plans) * len(chosen))
        for method, epsilon, iterations, group in plans:
            published = method == "recipe"
            settings = Protect(
                method=method,
                epsilon=epsilon,
                iterations=iterations,
                flat_share=1.0 if published else given.flat_share,
                withstand=() if published else tuple(w for w in given.withstand.split(",") if w),
            )
            for case in chosen:
                what = {
                    "set": given.set,
                    "side": given.side,
                    "surrogates": [f"{e.name}@{e.weights_sha256[:8]}" for e in group],
                    "judges": [f"{e.name}@{e.weights_sha256[:8]}" for e in judges],
                    **settings.model_dump(mode="json", exclude={"surrogates", "device", "attempts"}),
                }
                name = json.dumps([case.name, what], sort_keys=True)
                key = hashlib.sha256(name.encode()).hexdigest()[:16]
                wanted.append(key)
                if key not in known:
                    known[key] = {"key": key, **what, **measure(case, settings, group, judges)}
                    lines.write(json.dumps(known[key]) + "\n")
                    lines.flush()
                bar.advance(task)
    table = summary.write([known[key] for key in wanted], given.out)
    print(table)
    return 0
