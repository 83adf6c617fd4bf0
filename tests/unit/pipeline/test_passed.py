"""Pictures without a region are decoded again, too, before they are published."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backfire import imaging
from backfire.config import Folders, Output, Regions, Settings
from backfire.detectors import Source
from backfire.errors import BudgetExceeded
from backfire.pipeline.protect import protect
from backfire.types import Verdict
from tests.support.images import file, scene
from tests.support.receipts import require_documented


def settings(folder: Path, kind: Any) -> Settings:
    return Settings(
        folders=Folders(inbox=folder / "in", outbox=folder / "out"),
        regions=Regions(detectors=("metadata",), none_found="pass"),
        output=Output(format=kind),
    )


@pytest.mark.parametrize("kind", ["same", "jpeg"])
def test_the_receipt_of_a_picture_without_region_says_how_much_it_changed(tmp_path: Path, kind: str) -> None:
    data = file(scene(), "PNG")
    result = protect(data, Source("cat.png"), settings(tmp_path, kind))
    assert result.verdict is Verdict.UNPROTECTED
    was, now = (imaging.decode(one, name="cat", max_pixels=10**6) for one in (data, result.data))
    assert result.receipt["max_change_levels"] == imaging.max_change(was.rgb, now.rgb)
    assert (result.data == data) is (kind == "same")
    require_documented(result.receipt)


def test_a_picture_that_has_the_format_asked_for_is_published_as_it_came(tmp_path: Path) -> None:
    data = file(scene(), "JPEG")
    assert protect(data, Source("cat.jpg"), settings(tmp_path, "jpeg")).data == data


@pytest.mark.parametrize("name", ["cat.jpg", "cat", "cat.tar.gz", "cat.PNG"])
def test_the_extension_is_that_of_the_content_whatever_the_name_says(tmp_path: Path, name: str) -> None:
    result = protect(file(scene(), "PNG"), Source(name), settings(tmp_path, "same"))
    assert (result.receipt["written_as"], result.extension) == ("unchanged", ".png")


def test_another_extension_of_the_same_format_stays(tmp_path: Path) -> None:
    assert protect(file(scene(), "JPEG"), Source("a.JPEG"), settings(tmp_path, "same")).extension == ".jpeg"


@pytest.mark.parametrize("pages", [1, 2])
def test_of_several_pages_the_first_alone_is_published_also_without_a_region(
    tmp_path: Path, pages: int
) -> None:
    further = [Image.fromarray(scene(seed=1))] * (pages - 1)
    data = file(scene(), "TIFF", save_all=True, append_images=further)
    given = settings(tmp_path, "same")
    first = given.model_copy(update={"output": given.output.model_copy(update={"frames": "first"})})
    result = protect(data, Source("cat.tif"), first)
    with Image.open(io.BytesIO(result.data)) as published:
        assert getattr(published, "n_frames", 1) == 1
    assert (result.data == data) is (pages == 1)


def test_a_picture_that_the_writer_spoils_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = file(np.ascontiguousarray(scene()[::-1]), "PNG")
    encode = imaging.encode
    monkeypatch.setattr(imaging, "encode", lambda *a, **k: replace(encode(*a, **k), data=spoilt))
    with pytest.raises(BudgetExceeded):
        protect(file(scene(), "PNG"), Source("cat.png"), settings(tmp_path, "jpeg"))
