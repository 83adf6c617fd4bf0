"""LPIPS and CLIP-FID of edits, if their weights are available; nothing is downloaded.

* LPIPS (arXiv 1801.03924) needs the package `lpips`, and AlexNet's weights in torch's hub folder.
* CLIP-FID (arXiv 2203.06026) needs a folder with a CLIP vision model in transformers' layout. It is the
  Fréchet distance between Gaussians fitted to the features of two sets of edits. For few pictures it is
  always large, so it can only compare methods on the same pictures.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from backfire.evaluate.metrics import Picture
from backfire.files import durable

Distance = Callable[[Picture, Picture], float]
Features = Callable[[Picture], list[float]]
BACKBONE = "alexnet-owt-7be5be79.pth"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The normalisation of CLIP's inputs (from its preprocessor_config.json)."""


def lpips() -> Distance | None:
    """The LPIPS distance of two pictures H,W,3 in [0,1], as a function; None without package or weights."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        return None
    net = importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval()

    def distance(a: Picture, b: Picture) -> float:
        with torch.inference_mode():
            return float(net(_tensor(a) * 2 - 1, _tensor(b) * 2 - 1))

    return distance


def clip(folder: Path | None) -> Features | None:
    """The CLIP features of a picture H,W,3 in [0,1], as a function; None if no folder is given.

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


def clip_digest(folder: Path) -> str:
    """A digest of the weights and the configuration of a CLIP vision model, which decide its features."""
    files = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin", ".json"})
    digests = (f"{path.name} {durable.file_sha256(path)}" for path in files)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:8]


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features, n,d and m,d.

    The trace of the root of the covariances' product is computed as the sum of the singular values of a
    product of their factors. That is exact, and unlike the root of a d,d matrix also stable with fewer
    samples than features.
    """
    centred = [(one - one.mean(axis=0)) / np.sqrt(max(len(one) - 1, 1)) for one in (a, b)]
    spread = sum(float((one**2).sum()) for one in centred)
    first, second = (np.linalg.qr(one).R for one in centred)
    shared = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    apart = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
    return max(apart + spread - 2 * shared, 0.0)


def _tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
