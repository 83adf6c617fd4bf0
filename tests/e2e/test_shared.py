"""The daemon on the shared pairs of pictures and masks, with two iterations: all but the effect is tested.

Made small, since their masks cover nearly all of them, and edits take most of the time.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pictures import differences
from tests.support.sandbox import QUICK, Sandbox, wait_for

ORDERS = {
    "celeba-hq-1.png": ("", "picture first"),
    "keanu.png": ("desk/", "picture first"),
    "places-1.jpg": ("", "mask first"),
}


@pytest.mark.shared
def test_pairs_are_published_and_archived(sandbox: Sandbox, shared: Path, tmp_path: Path) -> None:
    sandbox.configure(
        watch={"settle_s": 0.3, "rescan_s": 1, "mask_wait_s": 60},
        regions={"detectors": ["sidecar"]},
        **QUICK,
    )
    sandbox.start()
    for name, (folder, order) in ORDERS.items():
        mask = f"{name.rpartition('.')[0]}.mask.png"
        for one in (name, mask):
            with Image.open(shared / "pairs" / one) as picture:
                picture.resize((192, 192)).save(tmp_path / one)
        for one in (name, mask) if order == "picture first" else (mask, name):
            sandbox.drop(tmp_path / one, folder + one)
    wait_for(lambda: not sandbox.files("inbox"), seconds=400, because="the inbox to be empty")
    for name, (folder, _) in ORDERS.items():
        original = (tmp_path / name).read_bytes()
        published = (sandbox.outbox / (folder + name)).read_bytes()
        assert (sandbox.archive / (folder + name)).read_bytes() == original
        with Image.open(io.BytesIO(original)) as before, Image.open(io.BytesIO(published)) as after:
            assert (after.size, after.mode, after.format) == (before.size, before.mode, before.format)
        largest = differences(original, published).max()
        assert sandbox.receipt(folder + name)["max_change_levels"] == largest <= 12
        assert (sandbox.reports / f"{folder}{name}.sheet.jpg").is_file()
