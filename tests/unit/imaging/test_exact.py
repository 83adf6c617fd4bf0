"""A region that is kept exact, after the picture was written to a file and read again."""

from __future__ import annotations

import io

import numpy as np
import pytest

from backfire import imaging
from backfire.types import Rgb
from tests.support.pictures import photo

REGION = np.zeros((128, 160), dtype=np.bool_)
REGION[45:83, 61:103] = True  # cuts through the blocks of a JPEG


@pytest.mark.parametrize("source", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("kind", "most"),
    [("png", 0), ("tiff", 0), ("webp", 0), ("bmp", 0), ("jpeg2000", 0), ("jpeg", 2), ("same", 2)],
)
def test_a_region_that_is_kept_exact_stays_so_in_lossless_files_and_nearly_so_in_a_jpeg(
    source: str, kind: str, most: int
) -> None:
    file = io.BytesIO()
    photo((160, 128)).save(file, source)
    original = imaging.decode(file.getvalue(), name="a", max_pixels=10**6)
    noise = np.random.default_rng(0).choice([-6, 6], size=original.rgb.shape)
    noise[REGION] = 0
    changed: Rgb = np.clip(original.rgb.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    written = imaging.encode(original, changed, levels=6, format=kind)
    published = imaging.decode(written.data, name="a", max_pixels=10**6).rgb
    assert imaging.max_change(original.rgb[REGION], published[REGION]) <= most
    assert imaging.max_change(original.rgb[~REGION], published[~REGION]) >= 5
