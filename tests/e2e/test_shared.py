"""The shared picture-and-mask pairs through the running daemon; one iteration: all but the effect."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pictures import differences
from tests.support.sandbox import LENIENT, Sandbox, wait_for

ORDERS = {
    "celeba-hq-1.png": ("", "picture first"),
    "keanu.png": ("desk/", "picture first"),
    "places-1.jpg": ("", "mask first"),
}


@pytest.mark.shared
def test_pairs_come_out_whole(sandbox: Sandbox, shared: Path) -> None:
    sandbox.configure(
        watch={"settle_s": 0.3, "rescan_s": 1, "mask_wait_s": 60},
        regions={"detectors": ["sidecar"]},
        protect={"iterations": 1},
        verify=LENIENT,
    )
    sandbox.start()
    for name, (folder, order) in ORDERS.items():
        mask = f"{name.rpartition('.')[0]}.mask.png"
        places = [(shared / "pairs" / name, folder + name), (shared / "pairs" / mask, folder + mask)]
        for source, place in places if order == "picture first" else reversed(places):
            sandbox.drop(source, place)
    wait_for(lambda: not sandbox.files("inbox"), seconds=400, because="the inbox to be empty")
    for name, (folder, _) in ORDERS.items():
        original = (shared / "pairs" / name).read_bytes()
        published = (sandbox.outbox / (folder + name)).read_bytes()
        assert (sandbox.archive / (folder + name)).read_bytes() == original
        with Image.open(io.BytesIO(original)) as before, Image.open(io.BytesIO(published)) as after:
            assert (after.size, after.mode, after.format) == (before.size, before.mode, before.format)
        assert (
            sandbox.receipt(folder + name)["max_change_levels"] == differences(original, published).max() <= 6
        )
        assert (sandbox.reports / f"{folder}{name}.sheet.jpg").is_file()
