"""Measures how good editors' fills are, on photographs held out of training and with seeded masks.

For each editor, and for OpenCV's Telea and Navier-Stokes fills as a comparison, it reports:

* SSIM and L1 under the mask;
* sharpness: the energy above a Gaussian blur of sigma 1 in the hole, relative to that of the true pixels (a
  blurred fill scores under 0.3);
* seam: the difference across the hole's border, relative to that in the true picture (1 is invisible).

For a latent editor also the PSNR and sharpness of its autoencoder's reconstruction. All of them are shown the
same holes in the same pictures, so figures of one run, and of runs with one seed, can be compared.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from backfire import inpaint
from backfire.attack_paths.tensors import to_picture
from backfire.errors import BackfireError
from backfire.evaluate.metrics import Picture, masked_ssim
from backfire.imaging.masks import dilated
from backfire.inpaint.base import Editor
from backfire.inpaint.encoders import PairInpainter
from backfire.inpaint.lama import LamaEditor
from backfire.inpaint.latent import LatentEditor
from backfire.inpaint.ldm import LdmEditor
from backfire.types import Mask
from training import data
from training.run import sheet

SIDE = 256
MEASURES = ("ssim", "l1", "sharpness", "seam")
CLASSICAL = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}
KINDS: dict[str, Callable[[str, Path], Editor]] = {
    "latent": PairInpainter.from_file,
    "ldm": LdmEditor.from_file,
    "lama": LamaEditor.load,
}


def editors(names: str, weights: Path | None, kind: str, latents: Sequence[Path] = ()) -> list[Editor]:
    """The editors to judge.

    Args:
        names: of registered editors, with commas between them.
        weights: a file to load instead; the editor is then named after it.
        kind: a key of `KINDS`: what the weights are of.
        latents: encoder and decoder of a published autoencoder. They make one more editor, with the net in
            `weights`, or with that of flux2-mini.

    Raises:
        SystemExit: an editor is not known or cannot be loaded.
    """
    try:
        if latents and weights:
            return [PairInpainter.load(weights.stem, [*latents, weights])]
        if weights:
            return [KINDS[kind](weights.stem, weights)]
        found = [inpaint.get(name) for name in names.split(",")]
        if latents:
            published = latents[0].stem.removesuffix("_encoder")
            found.append(PairInpainter.load(f"latent-{published}", latents))
        return found
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


@dataclass(frozen=True)
class _Case:
    """A crop 1,3,S,S in [0,1], the plane of its hole S,S in {0,1}, 1 = to fill, and its number in the run."""

    number: int
    image: torch.Tensor
    plane: NDArray[np.float32]

    @property
    def mask(self) -> Mask:
        """The hole, bool S,S."""
        found: Mask = self.plane > 0.5
        return found

    @property
    def truth(self) -> Picture:
        """The crop, S,S,3."""
        return to_picture(self.image[0])


def _cases(photos: Path, count: int, seed: int) -> Iterator[_Case]:
    """Seeded crops of seeded photographs, each with a hole; the same ones for every editor."""
    pictures = data.load(photos)
    rng = np.random.default_rng(seed)
    for number, index in enumerate(rng.permutation(len(pictures))[:count]):
        piece = torch.from_numpy(data.crop(pictures[index], SIDE, rng).copy())
        case = _Case(number, piece.permute(2, 0, 1)[None].float() / 255, data.hole(SIDE, rng))
        if case.mask.any():
            yield case


def judge(photos: Path, editors: Sequence[Editor], target: Path, count: int, seed: int) -> None:
    """Writes `judge.json` and, for each editor, `fills-NAME.jpg` (16 fills: masked, filled, true).

    Args:
        photos: a folder of photographs that none of the editors was trained on.
        editors: each under a name of its own.
        target: the folder of these; it is made if it is missing.
        count: the most photographs, of which each gives one crop.
        seed: of crops, holes and the editors' noise.
    """
    fills: dict[str, list[list[float]]] = {
        name: [] for name in (*(editor.name for editor in editors), *CLASSICAL)
    }
    codecs: dict[str, list[list[float]]] = {}
    shown: dict[str, list[torch.Tensor]] = {editor.name: [] for editor in editors}
    for case in _cases(photos, count, seed):
        for editor in editors:
            fill = _filled(editor, case, seed)
            fills[editor.name].append(_measured(to_picture(fill), case))
            if isinstance(editor, LatentEditor):
                codecs.setdefault(editor.name, []).append(_coded(editor, case))
            hidden = torch.where(torch.from_numpy(case.mask), 0.5, case.image[0])
            shown[editor.name].append(torch.stack([hidden, fill, case.image[0]]))
        for name, method in CLASSICAL.items():
            fills[name].append(_measured(opencv(case.truth, case.mask, method), case))
    target.mkdir(parents=True, exist_ok=True)
    result = {
        "run": _run(editors, len(fills["telea"]), seed),
        "fills": {name: _medians(MEASURES, rows) for name, rows in fills.items()},
        "autoencoders": {name: _medians(("psnr_db", "sharpness"), rows) for name, rows in codecs.items()},
    }
    (target / "judge.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    for name, rows in shown.items():
        _page(rows[:16]).save(target / f"fills-{name}.jpg", quality=90)


def _filled(editor: Editor, case: _Case, seed: int) -> torch.Tensor:
    """The editor's fill of a case, 3,S,S; its noise depends on the seed and the case alone."""
    noise = torch.Generator().manual_seed((seed << 32) + case.number)
    with torch.inference_mode():
        return editor.inpaint(case.image, torch.from_numpy(case.plane)[None, None], generator=noise)[0]


def _coded(editor: LatentEditor, case: _Case) -> list[float]:
    """The PSNR and sharpness of the crop, encoded and decoded."""
    with torch.inference_mode():
        decoded = to_picture(editor.decoder(editor.encoder(case.image))[0].clamp(0, 1))
    error = float(((decoded - case.truth) ** 2).mean())
    everywhere = np.ones_like(case.mask)
    return [10 * np.log10(1 / max(error, 1e-9)), sharpness(decoded, case.truth, everywhere)]


def _measured(got: Picture, case: _Case) -> list[float]:
    """The figures of a fill, in the order of `MEASURES`."""
    truth, mask = case.truth, case.mask
    l1 = float(np.abs(got - truth)[mask].mean())
    return [masked_ssim(got, truth, mask), l1, sharpness(got, truth, mask), seam(got, truth, mask)]


def _medians(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    # Medians, since the ratio for a single flat patch can be huge.
    return dict(zip(names, np.median(rows, axis=0).round(3).tolist(), strict=True))


def _run(editors: Sequence[Editor], count: int, seed: int) -> dict[str, Any]:
    """What the figures are of, and where and when they were taken."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "photographs": count,
        "side_px": SIDE,
        "seed": seed,
        "weights_sha256": {editor.name: editor.weights_sha256 for editor in editors},
    }


def _page(rows: Sequence[torch.Tensor]) -> Image.Image:
    """Two cases in a row of the page."""
    half = max(1, len(rows) // 2)
    return sheet(torch.stack([torch.cat(list(rows[i::half][:2])) for i in range(half)]))
