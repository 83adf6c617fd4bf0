"""What every detector must do, whatever it finds."""

from __future__ import annotations

import io
from importlib.resources import as_file, files

import numpy as np
import pytest
from PIL import Image

from backfire import detectors
from backfire.config import Command, FixedBox, Logos, Onnx, Regions, TorchScript
from backfire.detectors import Detector, Sidecar, Source
from backfire.types import Region, Rgb
from tests.support import scripts
from tests.support.regions import area, lettered, logo, mwg, network, program, xmp


@pytest.fixture(scope="module")
def astronaut() -> Rgb:
    with as_file(files("skimage").joinpath("data", "astronaut.png")) as path, Image.open(path) as picture:
        image = np.asarray(picture.convert("RGB").crop((100, 20, 356, 276))).copy()
    image[150:214, 8:104] = np.asarray(logo(64).convert("RGB"))
    image = lettered(image, "BACKFIRE PRESS", (12, 226), 18)
    image.flags.writeable = False
    return image


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Regions:
    """The settings of the detectors that find nothing by themselves."""
    folder = tmp_path_factory.mktemp("detectors")
    (folder / "logos").mkdir()
    logo().save(folder / "logos" / "acme.png")
    says = 'print(\'{"regions": [{"box": [0.5, 0.5, 1, 1]}], "unit": "relative"}\')'
    boxes = np.array([[[8, 8, 32, 32, 0.9, 0], [0, 0, 9, 9, 0.1, 0]]], dtype=np.float32)
    script, sha256 = scripts.save(folder / "n", module=scripts.Boxes(boxes))
    return Regions(
        fixed=(FixedBox(box=(0.5, 0.5, 1, 1)),),
        logos=Logos(folder=folder / "logos"),
        command=Command(argv=program(folder, says)),
        onnx=Onnx(model=network(folder / "n.onnx", boxes), size_px=64),
        torchscript=TorchScript(model=script, sha256=sha256, trust=True, size_px=64),
    )


@pytest.fixture(scope="module", params=detectors.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def detector(name: str, settings: Regions) -> Detector:
    return detectors.get(name, settings)


def source_for(image: Rgb) -> Source:
    """A source in which every detector has something to find."""
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    mask[: image.shape[0] // 3, image.shape[1] // 2 :] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    packet = xmp(mwg(area(0.4, 0.2, 0.2, 0.2)))
    return Source("picture.png", (Sidecar("picture.mask.png", buffer.getvalue()),), (packet,))


def as_tuple(region: Region) -> tuple[object, ...]:
    mask = None if region.mask is None else region.mask.tobytes()
    return (region.box, region.label, region.score, region.detector, mask)


@pytest.fixture(scope="module")
def found(detector: Detector, astronaut: Rgb) -> list[Region]:
    """The regions that the detector finds in a picture that is write-protected, and is not changed."""
    before = astronaut.copy()
    regions = detector.detect(astronaut, source=source_for(astronaut))
    np.testing.assert_array_equal(astronaut, before)
    return list(regions)


def test_finds_well_formed_regions(name: str, found: list[Region], astronaut: Rgb) -> None:
    assert found
    height, width = astronaut.shape[:2]
    for region in found:
        box = region.box
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        assert 0 <= region.score <= 1
        assert region.detector == name
        assert region.label
        if region.mask is not None:
            assert region.mask.dtype == np.bool_
            assert region.mask.shape == (box.height, box.width)
            assert region.mask.any()
        assert region.plane(height, width).any()


def test_another_of_its_kind_finds_the_same(
    name: str, found: list[Region], astronaut: Rgb, settings: Regions
) -> None:
    again = detectors.get(name, settings).detect(astronaut, source=source_for(astronaut))
    assert [as_tuple(region) for region in again] == [as_tuple(region) for region in found]


def test_finds_the_same_again_in_a_picture_that_is_not_contiguous(
    detector: Detector, found: list[Region], astronaut: Rgb
) -> None:
    view = np.ascontiguousarray(astronaut[:, ::-1])[:, ::-1]  # the same pixels, from right to left in memory
    again = detector.detect(view, source=source_for(view))
    assert [as_tuple(region) for region in again] == [as_tuple(region) for region in found]
    np.testing.assert_array_equal(view, astronaut)


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (33, 7), (9, 2000)])
def test_takes_pictures_of_any_shape(detector: Detector, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 127, dtype=np.uint8)
    for region in detector.detect(image, source=Source("plain.png")):
        assert region.box.right <= size[1]
        assert region.box.bottom <= size[0]
