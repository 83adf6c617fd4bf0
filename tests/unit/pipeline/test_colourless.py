"""Black-and-white pictures get a grey perturbation, however they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backfire import imaging
from backfire.config import Folders, Protect, Regions, Settings, Verify
from backfire.detectors import Source
from backfire.pipeline.protect import protect
from tests.support.images import file, scene


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_black_and_white_photograph_stored_in_colour_gets_no_colour(tmp_path: Path, kind: str) -> None:
    asked = Settings(
        folders=Folders(inbox=tmp_path / "in", outbox=tmp_path / "out"),
        regions=Regions.model_validate({"detectors": ["fixed"], "fixed": [{"box": [0.3, 0.3, 0.6, 0.6]}]}),
        protect=Protect(iterations=2, paths="first"),
        verify=Verify(held_out=(), paths=("iopaint",)),
    )
    grey = np.repeat(scene()[..., :1], 3, axis=2)
    result = protect(file(grey, kind), Source("old.png"), asked)
    now = imaging.decode(result.data, name="old", max_pixels=10**6).rgb
    assert result.receipt["max_change_levels"] > 0
    assert (now == now[..., :1]).all()
    coloured = protect(file(scene(), kind), Source("new.png"), asked)
    before, after = (
        imaging.decode(one, name="new", max_pixels=10**6).rgb for one in (file(scene(), kind), coloured.data)
    )
    change = after.astype(int) - before
    assert (change != change[..., :1]).any()
