from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from daemon import detectors, finding
from daemon.config import Regions
from daemon.detectors import Source
from daemon.domain import Box, Region, Rgb
from daemon.errors import Code, InputError
from daemon.images import Picture

RGB: Rgb = np.zeros((400, 600, 3), dtype=np.uint8)


def pictured(rgb: Rgb) -> Picture:
    return Picture(rgb, "PNG", "RGB", grey=False, alpha=None)


@pytest.fixture(autouse=True)
def _fresh_detectors() -> Iterator[None]:
    finding._detector.cache_clear()
    yield
    finding._detector.cache_clear()


class Fixed:
    def __init__(self, *regions: Region) -> None:
        self.regions = list(regions)

    def detect(self, image: Rgb, *, source: Source) -> list[Region]:
        return self.regions


def found(monkeypatch: pytest.MonkeyPatch, mask: Region, face: Region) -> list[str]:
    by_name = {"sidecar": Fixed(mask), "faces": Fixed(face)}
    monkeypatch.setattr(detectors, "get", lambda name, settings: by_name[name])
    return [region.detector for region in finding.find(pictured(RGB), Source("p.png"), Regions()).regions]


FACE = Region(Box(250, 150, 330, 240), "face", 0.99, "faces")


def test_a_face_under_a_painted_mask_is_one_region(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Region(Box(240, 140, 340, 250), "mask", 1.0, "sidecar")
    assert found(monkeypatch, mask, FACE) == ["sidecar"]


def test_a_face_inside_a_frame_is_protected_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask's bounding box holds the face, the mask does not."""
    frame = np.ones((400, 600), dtype=np.bool_)
    frame[20:-20, 20:-20] = False
    mask = Region(Box(0, 0, 600, 400), "mask", 1.0, "sidecar", frame)
    assert found(monkeypatch, mask, FACE) == ["sidecar", "faces"]


@pytest.mark.parametrize("size", [(100, 100), (600, 400), (5000, 300), (8, 8)])
def test_whole_covers_the_whole_picture(size: tuple[int, int]) -> None:
    rgb: Rgb = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    settings = Regions(detectors=("sidecar",), none_found="whole")
    regions = finding.find(pictured(rgb), Source("p.png"), settings).regions
    covered = sum(region.plane(size[1], size[0]).astype(int) for region in regions)
    assert (np.asarray(covered) == 1).all()
    assert len(regions) <= 16


def test_nothing_found_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(InputError, match="none_found") as caught:
        finding.find(pictured(RGB), Source("p.png"), Regions(detectors=("sidecar",)))
    assert caught.value.code == Code.NO_REGION
