"""LPIPS and CLIP-FID of edits, where their weights are at hand; nothing is downloaded.

* LPIPS (arXiv 1801.03924): the package `lpips` with AlexNet's weights in torch's hub folder.
* CLIP-FID (arXiv 2203.06026): a folder of transformers with a CLIP vision model. The distance of
  two sets of edits is Fréchet's between Gaussians fitted to their features; of few pictures it
  is large by itself, so it compares methods on the same pictures and nothing else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from backfire.evaluate.metrics import Picture
from numpy.typing import NDArray

Distance = Callable[[Picture, Picture], float]
Features = Callable[[Picture], list[float]]
BACKBONE = "alexnet-owt-7be5be79.pth"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What CLIP was trained with (its preprocessor_config.json)."""


def lpips() -> Distance | None:
    """The distance of two pictures H,W,3 in [0,1]; None where package or weights are missing."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        return None
    net = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()

    def distance(a: Picture, b: Picture) -> float:
        with torch.inference_mode():
            return float(net(_tensor(a) * 2 - 1, _tensor(b) * 2 - 1))

    return distance


def clip(folder: Path | None) -> Features | None:
    """The features of a picture H,W,3 in [0,1]; None where no folder is named.

    Raises:
        SystemExit: the folder has no CLIP vision model, or transformers is not installed.
    """
    if folder is None:
        return None
    try:
        from transformers import CLIPVisionModelWithProjection

        model: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
        model.eval()
    except Exception as error:  # whatever transformers makes of a folder
        reason = str(error).strip().partition("\n")[0]
        raise SystemExit(f"--clip {folder}: holds no CLIP vision model that loads ({reason})") from error
    side = int(model.config.image_size)

    def features(picture: Picture) -> list[float]:
        image = F.interpolate(_tensor(picture), size=(side, side), mode="bicubic", antialias=True)
        mean, deviation = (torch.tensor(of)[None, :, None, None] for of in (MEAN, DEVIATION))
        with torch.inference_mode():
            embedded = model(pixel_values=(image.clamp(0, 1) - mean) / deviation).image_embeds[0]
        return [round(value, 5) for value in embedded.tolist()]

    return features


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Fréchet's distance between the Gaussians fitted to two sets of features, n,d and m,d.

    The root of the product of the covariances is taken as the singular values of a product of their
    factors: exact, and sound with fewer samples than features, where a root of d,d matrices is not.
    """
    centred = [(one - one.mean(axis=0)) / np.sqrt(max(len(one) - 1, 1)) for one in (a, b)]
    spread = sum(float((one**2).sum()) for one in centred)
    first, second = (np.linalg.qr(one).R for one in centred)
    shared = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    apart = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
    return max(apart + spread - 2 * shared, 0.0)


def _tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
