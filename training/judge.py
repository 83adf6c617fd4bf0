"""Measures how good an editor's fills are, on photographs held out of training and with seeded masks.

For the editor, and for OpenCV's Telea and Navier-Stokes fills as a comparison, it reports:

* SSIM and L1 under the mask;
* sharpness: the energy above a Gaussian blur of sigma 1 in the hole, relative to that of the true pixels (a
  blurred fill scores under 0.3);
* seam: the difference across the hole's border, relative to that in the true picture (1 is invisible).

For a latent editor also the PSNR and sharpness of its autoencoder's reconstruction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy import ndimage

from backfire import inpaint
from backfire.attack_paths.tensors import to_picture
from backfire.errors import BackfireError
from backfire.evaluate.metrics import Picture, masked_ssim
from backfire.imaging.masks import dilated
from backfire.inpaint.base import Editor
from backfire.inpaint.encoders import PairInpainter
from backfire.inpaint.lama import LamaEditor
from backfire.inpaint.latent import LatentEditor, ShiftMapEditor
from backfire.inpaint.ldm import LdmEditor
from backfire.types import Mask
from training import data
from training.run import sheet

SIDE = 256
KINDS: dict[str, Callable[[str, Path], Editor]] = {
    "latent": ShiftMapEditor.from_file,
    "ldm": LdmEditor.from_file,
    "lama": LamaEditor.load,
}


def editor(name: str, weights: Path | None, kind: str, latents: Sequence[Path] = ()) -> Editor:
    """The editor to judge: the registered one of that name, or one loaded from a weights file.

    Args:
        name: of the registered editor.
        weights: a file to load instead; the editor is then named after it.
        kind: a key of `KINDS`: what the weights are of.
        latents: encoder and decoder of a published autoencoder. The editor then consists of them and of the
            inpainting net in `weights`, or of the net that ships with the package.
    """
    try:
        if latents:
            net = [weights] if weights else []
            return PairInpainter.load(weights.stem if weights else "latent-taef2", [*latents, *net])
        return KINDS[kind](weights.stem, weights) if weights else inpaint.get(name)
    except BackfireError as error:
        raise SystemExit(str(error)) from error


def sharpness(got: Picture, truth: Picture, mask: Mask) -> float:
    def energy(picture: Picture) -> float:
        low = ndimage.gaussian_filter(picture, (1, 1, 0))
        return float(((picture - low)[mask] ** 2).mean())

    return energy(got) / max(energy(truth), 1e-8)


def seam(got: Picture, truth: Picture, mask: Mask) -> float:
    inner, outer = mask & dilated(~mask, 3), dilated(mask, 3) & ~mask

    def jump(picture: Picture) -> float:
        near = ndimage.uniform_filter(picture * outer[:, :, None], (3, 3, 0))
        weight = ndimage.uniform_filter(outer.astype(np.float32), 3)[:, :, None]
        return float(np.abs(picture - near / np.maximum(weight, 1e-6))[inner].mean())

    return jump(got) / max(jump(truth), 1e-6)


def opencv(picture: Picture, mask: Mask, method: int) -> Picture:
    filled = cv2.inpaint((picture * 255).astype(np.uint8), mask.astype(np.uint8), 5, method)
    out: Picture = (np.asarray(filled) / 255).astype(np.float32)
    return out


def judge(photos: Path, editor: Editor, target: Path, count: int, seed: int) -> None:
    """Writes `judge.json` and `fills.jpg` (16 fills: masked, filled, true) to `target`."""
    pictures = data.load(photos)
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    rows: dict[str, list[list[float]]] = {editor.name: [], "telea": [], "navier-stokes": []}
    codec: list[list[float]] = []
    shown: list[torch.Tensor] = []
    for index in rng.permutation(len(pictures))[:count]:
        image = (
            torch.from_numpy(data.crop(pictures[index], SIDE, rng).copy()).permute(2, 0, 1)[None].float()
            / 255
        )
        plane = data.hole(SIDE, rng)
        mask = plane > 0.5
        if not mask.any():
            continue
        truth = to_picture(image[0])
        with torch.inference_mode():
            fill = editor.inpaint(image, torch.from_numpy(plane)[None, None], generator=noise)
            if isinstance(editor, LatentEditor):
                decoded = to_picture(editor.decoder(editor.encoder(image))[0].clamp(0, 1))
                error = float(((decoded - truth) ** 2).mean())
                everywhere = np.ones_like(mask)
                codec.append([10 * np.log10(1 / max(error, 1e-9)), sharpness(decoded, truth, everywhere)])
        fills = {
            editor.name: to_picture(fill[0]),
            "telea": opencv(truth, mask, cv2.INPAINT_TELEA),
            "navier-stokes": opencv(truth, mask, cv2.INPAINT_NS),
        }
        for name, got in fills.items():
            l1 = float(np.abs(got - truth)[mask].mean())
            rows[name].append(
                [masked_ssim(got, truth, mask), l1, sharpness(got, truth, mask), seam(got, truth, mask)]
            )
        if len(shown) < 16:
            hidden = torch.where(torch.from_numpy(mask), 0.5, image[0])
            shown.append(torch.stack([hidden, fill[0], image[0]]))
    target.mkdir(parents=True, exist_ok=True)
    columns = ("ssim", "l1", "sharpness", "seam")
    # Medians, since the ratio for a single flat patch can be huge.
    result = {
        name: dict(zip(columns, np.median(values, axis=0).round(3).tolist(), strict=True))
        for name, values in rows.items()
    }
    if codec:
        figures = np.median(codec, axis=0).round(3).tolist()
        result["autoencoder"] = dict(zip(("psnr_db", "sharpness"), figures, strict=True))
    (target / "judge.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    half = max(1, len(shown) // 2)
    page = torch.stack([torch.cat(shown[i::half][:2]) for i in range(half)])
    sheet(page).save(target / "fills.jpg", quality=90)
