"""The table of attack paths is compared with numbers from the tools' own code, and with IOPaint itself.

The numbers were taken by running each tool's functions, at the versions that the table names, on plain masks.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
import warnings
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backfire import attack_paths
from backfire.attack_paths import Page, Source
from backfire.attack_paths.hand_over import hand_over, put_back
from backfire.attack_paths.handed import Filters, Handed
from backfire.errors import ConfigError
from backfire.types import Box, Family, Mask

Boxes = list[tuple[int, int, int, int]]
Size = tuple[int, int]

PICTURES: dict[str, tuple[Size, Boxes]] = {
    "near a corner": ((1200, 900), [(20, 30, 120, 130)]),
    "inside": ((1200, 900), [(500, 400, 620, 555)]),
    "in the corner": ((1200, 900), [(1100, 810, 1200, 900)]),
    "large": ((1620, 1080), [(301, 203, 702, 640)]),
    "odd": ((640, 480), [(100, 100, 181, 190)]),
    "small": ((480, 321), [(0, 0, 60, 50)]),
    "tiny": ((256, 256), [(100, 90, 130, 140)]),
    "tall": ((300, 2000), [(40, 900, 260, 1100)]),
    "wide": ((3000, 200), [(1400, 60, 1500, 140)]),
    "two regions": ((1200, 900), [(200, 300, 300, 380), (340, 310, 420, 400)]),
    "one pixel": ((1023, 767), [(511, 383, 512, 384)]),
    "everything": ((901, 700), [(0, 0, 901, 700)]),
}
"""(width, height) of a picture, and the boxes of the regions that are masked in it."""


def _mask(picture: str) -> Mask:
    (width, height), boxes = PICTURES[picture]
    mask = np.zeros((height, width), np.bool_)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def _handed(path: str, picture: str) -> list[Handed]:
    return attack_paths.get(path).calls(_mask(picture))


IOPAINT: dict[str, tuple[Boxes, list[Size], list[Size], Size]] = {
    "near a corner": ([(0, 0, 356, 356)], [(360, 360)], [(512, 512)], (904, 1200)),
    "inside": ([(372, 272, 748, 682)], [(416, 376)], [(512, 512)], (904, 1200)),
    "in the corner": ([(844, 554, 1200, 900)], [(352, 360)], [(512, 512)], (904, 1200)),
    "large": ([(173, 75, 829, 767)], [(696, 656)], [(1024, 1024)], (1080, 1624)),
    "odd": ([(0, 0, 640, 480)], [(480, 640)], [(1024, 1024)], (512, 640)),
    "small": ([(0, 0, 480, 321)], [(328, 480)], [(512, 512)], (512, 512)),
    "tiny": ([(0, 0, 256, 256)], [(256, 256)], [(512, 512)], (512, 512)),
    "tall": ([(0, 772, 300, 1228)], [(456, 304)], [(512, 512)], (2000, 512)),
    "wide": ([(1272, 0, 1628, 200)], [(200, 360)], [(512, 512)], (512, 3000)),
    "two regions": (
        [(212, 182, 548, 528), (72, 172, 428, 508)],
        [(352, 336), (336, 360)],
        [(512, 512), (512, 512)],
        (904, 1200),
    ),
    "one pixel": ([(383, 255, 639, 511)], [(256, 256)], [(512, 512)], (768, 1024)),
    "everything": ([(0, 0, 901, 700)], [(704, 904)], [(1024, 1024)], (704, 904)),
}
"""Crops; sizes (height, width) for LaMa and for MAT, and of the whole picture for Stable Diffusion."""


@pytest.mark.parametrize("picture", PICTURES)
def test_iopaint(picture: str) -> None:
    boxes, lama, mat, diffusion = IOPAINT[picture]
    for path, sizes in (("iopaint", lama), ("iopaint-mat", mat)):
        handed = _handed(path, picture)
        assert [tuple(one.box) for one in handed] == boxes
        assert [one.size for one in handed] == sizes
        assert all(one.scale == (1, 1) for one in handed)
    (whole,) = _handed("iopaint-sd", picture)
    assert (whole.box.width, whole.box.height) == PICTURES[picture][0]
    assert (whole.size, whole.scale) == (diffusion, (1, 1))


MIGAN: dict[str, tuple[Boxes, list[Size]]] = {
    "inside": ([(372, 272, 748, 682)], [(410, 376)]),
    "large": ([(173, 75, 829, 767)], [(512, 485)]),
    "odd": ([(0, 0, 336, 346)], [(346, 336)]),
    "small": ([(0, 0, 316, 306)], [(306, 316)]),
    "tall": ([(0, 772, 300, 1228)], [(456, 300)]),
    "two regions": ([(212, 182, 548, 528), (72, 172, 428, 508)], [(346, 336), (336, 356)]),
    "everything": ([(0, 0, 901, 700)], [(398, 512)]),
}
"""Crops, and the sizes to which they are scaled before they are padded to 512 x 512."""


@pytest.mark.parametrize("picture", MIGAN)
def test_iopaint_crops_pictures_of_any_size_for_migan(picture: str) -> None:
    handed = _handed("iopaint-migan", picture)
    assert ([tuple(one.box) for one in handed], [one.scaled for one in handed]) == MIGAN[picture]
    assert all(one.size == (512, 512) for one in handed)


STITCH = {
    "near a corner": ((0, 7, 146, 153), 153402, 614810),
    "inside": ((454, 371, 667, 584), 127092, 508028),
    "in the corner": ((1078, 778, 1200, 900), 178364, 713383),
    "large": ((226, 146, 777, 697), 160448, 640316),
    "odd": ((74, 78, 208, 212), 137932, 550494),
    "small": ((0, 0, 78, 78), 156700, 627420),
    "tiny": ((72, 72, 158, 158), 90152, 361120),
    "tall": ((5, 855, 295, 1145), 153168, 612612),
    "wide": ((1377, 27, 1523, 173), 125632, 503480),
    "two regions": ((165, 205, 455, 495), 61218, 244216),
    "one pixel": ((498, 370, 525, 397), 40280, 161120),
    "everything": ((0, -100, 901, 801), 262134, 1048514),
}
"""The crop, and how many pixels the mask has at 512 and at 1024 px."""


@pytest.mark.parametrize("picture", PICTURES)
def test_comfyui_stitch(picture: str) -> None:
    box, *masked = STITCH[picture]
    for side, count in zip((512, 1024), masked, strict=True):
        (handed,) = _handed(f"comfyui-stitch-{side}", picture)
        assert (tuple(handed.box), handed.size) == (box, (side, side))
        # The node rounds to 8 bits twice.
        assert np.count_nonzero(handed.mask) == pytest.approx(count, rel=0.01)


FORGE = {
    "near a corner": ((0, 0, 172, 172), 88062),
    "inside": ((441, 358, 680, 597), 85088),
    "in the corner": ((1058, 758, 1200, 900), 117116),
    "large": ((241, 161, 762, 682), 169368),
    "odd": ((54, 58, 228, 232), 62646),
    "small": ((0, 0, 102, 102), 75229),
    "tiny": ((48, 48, 182, 182), 21088),
    "tall": ((0, 850, 300, 1150), 128404),
    "wide": ((1358, 8, 1542, 192), 61360),
    "two regions": ((158, 198, 462, 502), 42655),
    "one pixel": ((472, 344, 551, 423), 0),
    "everything": ((0, 0, 901, 700), 262144),
}
"""The crop, and how many pixels the mask has at 512 px."""


@pytest.mark.parametrize("picture", PICTURES)
def test_forge_masked(picture: str) -> None:
    box, count = FORGE[picture]
    (handed,) = _handed("forge-masked", picture)
    assert (tuple(handed.box), handed.size) == (box, (512, 512))
    assert np.count_nonzero(handed.mask) == pytest.approx(count, rel=0.002)


def test_forge_resizes_the_whole_picture_whatever_its_aspect() -> None:
    (handed,) = _handed("forge-whole", "wide")
    assert (tuple(handed.box), handed.size) == ((0, 0, 3000, 200), (512, 512))
    assert not attack_paths.get("forge-whole").resizes_back


FOOOCUS = {
    "near a corner": ((0, 0, 742, 741), (1024, 1024), 19180, 24311),
    "inside": ((188, 107, 931, 848), (1024, 1024), 35310, 39494),
    "in the corner": ((458, 159, 1200, 900), (1024, 1024), 17112, 15851),
    # The tool hands over 1001 x 1003, and its autoencoder crops that to a multiple of 8.
    "large": ((0, 0, 1003, 1001), (1000, 1000), 175237, 231037),
    "odd": ((0, 0, 396, 395), (1024, 1024), 48905, 21736),
    "small": ((0, 0, 297, 296), (1024, 1024), 35810, 7371),
    "tiny": ((35, 35, 194, 194), (1024, 1024), 62143, 10304),
    "tall": ((0, 381, 300, 1618), (2048, 512), 124454, 73884),
    "wide": ((522, 0, 2377, 200), (320, 3072), 21248, 23004),
    "two regions": ((0, 0, 742, 741), (1024, 1024), 29052, 41684),
    "one pixel": ((195, 68, 828, 699), (1024, 1024), 4, 3969),
    "everything": ((0, 0, 901, 700), (896, 1152), 1032192, 630700),
}
"""The crop, the size, how many pixels the model's mask has, how many of the picture the result reaches."""


@pytest.mark.parametrize("picture", PICTURES)
def test_fooocus(picture: str) -> None:
    box, size, count, touched = FOOOCUS[picture]
    (handed,) = _handed("fooocus", picture)
    assert (tuple(handed.box), handed.size) == (box, size)
    assert np.count_nonzero(handed.mask) == pytest.approx(count, rel=0.01, abs=4)
    assert np.count_nonzero(handed.weights) == touched


KRITA = {
    "near a corner": ((0, 0, 512, 512), (512, 512), (800, 800), (512, 512)),
    "inside": ((304, 222, 816, 734), (512, 512), (800, 800), (512, 512)),
    "in the corner": ((688, 388, 1200, 900), (512, 512), (800, 800), (512, 512)),
    "large": ((0, 0, 1232, 1080), (592, 672), (1088, 1232), (1088, 1232)),
    "odd": ((0, 0, 512, 480), (480, 512), (784, 832), (496, 544)),
    "small": ((0, 0, 480, 321), (432, 640), (656, 992), (432, 640)),
    "tiny": ((0, 0, 256, 256), (512, 512), (800, 800), (512, 512)),
    "tall": ((0, 692, 300, 1308), (624, 304), (1152, 560), (736, 368)),
    "wide": ((1162, 0, 1738, 200), (208, 576), (480, 1360), (304, 880)),
    "two regions": ((38, 78, 582, 622), (544, 544), (800, 800), (544, 544)),
    "one pixel": ((256, 128, 768, 640), (512, 512), (800, 800), (512, 512)),
}
"""The crop, and its size for Stable Diffusion 1.5, XL and FLUX. A selection of everything is none."""


@pytest.mark.parametrize("picture", KRITA)
def test_krita(picture: str) -> None:
    box, *sizes = KRITA[picture]
    for architecture, size in zip(("sd15", "sdxl", "flux"), sizes, strict=True):
        (handed,) = _handed(f"krita-{architecture}", picture)
        assert (tuple(handed.box), handed.size) == (box, size)


MEGAPIXEL = {
    "inside": ((0, 4, 1200, 896), (880, 1184), (888, 1184)),
    "large": ((0, 0, 1620, 1080), (832, 1248), (840, 1256)),
    "odd": ((0, 2, 640, 478), (880, 1184), (888, 1184)),
    "tiny": ((0, 0, 256, 256), (1024, 1024), (1024, 1024)),
    "tall": ((0, 650, 300, 1350), (1568, 672), (2640, 400)),
    "wide": ((1267, 0, 1733, 200), (672, 1568), (264, 3968)),
    "one pixel": ((0, 3, 1023, 764), (880, 1184), (888, 1184)),
    "everything": ((0, 15, 901, 685), (880, 1184), (904, 1160)),
}
"""The part that Kontext gets and its size, and the size of the whole picture for Qwen."""


@pytest.mark.parametrize("picture", MEGAPIXEL)
def test_megapixel(picture: str) -> None:
    box, kontext, qwen = MEGAPIXEL[picture]
    (handed,) = _handed("megapixel-kontext", picture)
    assert (tuple(handed.box), handed.size) == (box, kontext)
    (handed,) = _handed("megapixel-qwen", picture)
    assert (handed.box.width, handed.box.height) == PICTURES[picture][0]
    assert handed.size == qwen


@pytest.mark.parametrize(
    ("path", "there", "back"),
    [
        ("comfyui-stitch-512", "BICUBIC", "BILINEAR"),
        ("forge-masked", "LANCZOS", "LANCZOS"),
        ("fooocus", "LANCZOS", "LANCZOS"),
        ("megapixel-kontext", "LANCZOS", "LANCZOS"),
    ],
)
def test_pictures_are_resized_as_pillow_does_it(path: str, there: str, back: str) -> None:
    (handed,) = _handed(path, "odd")
    channel = np.random.default_rng(1).random(handed.edited.shape, dtype=np.float32)
    image = torch.from_numpy(channel).expand(1, 3, -1, -1)
    resized = Image.fromarray(channel).crop(handed.box).resize(handed.size[::-1], Image.Resampling[there])
    given = hand_over(image, handed)
    np.testing.assert_allclose(given[0, 1].numpy(), np.asarray(resized), atol=1e-4)

    returned = resized.resize((handed.box.width, handed.box.height), Image.Resampling[back])
    whole = Image.fromarray(channel)
    whole.paste(returned, handed.box[:2])
    weights = np.zeros_like(channel)
    weights[handed.touched.slices] = handed.weights
    blended = weights * np.asarray(whole) + (1 - weights) * channel
    np.testing.assert_allclose(put_back(given, image, handed)[0, 1].numpy(), blended, atol=1e-4)


@pytest.mark.parametrize("picture", ["inside", "in the corner", "one pixel"])
def test_blends_are_blurred_as_opencv_does_it(picture: str) -> None:
    cv2 = pytest.importorskip("cv2")
    mask = _mask(picture)
    levels = (255 * mask).astype(np.uint8)
    for path, blurred in (
        ("iopaint-sd", cv2.GaussianBlur(levels, (25, 25), 0)),
        ("forge-masked", cv2.GaussianBlur(cv2.GaussianBlur(levels, (21, 1), 4), (1, 21), 4)),
    ):
        (handed,) = attack_paths.get(path).calls(mask)
        ours = np.zeros(mask.shape)
        ours[handed.touched.slices] = 255 * handed.weights
        # For 8-bit pictures, OpenCV rounds the kernel to 8 bits, too.
        assert np.abs(ours - blurred).max() < 1.5


LANCZOS, STITCHED = Filters.all("pil-lanczos"), Filters("pil-bicubic", "pil-bilinear", "pil-bicubic")
KRITA_FILTERS = Filters(picture="pil-lanczos", result="pil-lanczos", mask="torch-bilinear")
EVERYTHING = 900

SPREAD: dict[str, tuple[int, int, Filters | None]] = {
    "iopaint": (0, 0, None),
    "iopaint-mat": (0, 0, None),
    "iopaint-migan": (0, 0, Filters.all("cv2-cubic")),
    "iopaint-sd": (0, 12, None),
    "comfyui-stitch-512": (6, 14, STITCHED),
    "comfyui-stitch-1024": (6, 13, STITCHED),
    "forge-whole": (0, 11, LANCZOS),
    "forge-masked": (0, 10, LANCZOS),
    "fooocus": (0, 31, LANCZOS),
    "krita-sd15": (20, 36, KRITA_FILTERS),
    "krita-sdxl": (20, 36, KRITA_FILTERS),
    "krita-flux": (20, 36, KRITA_FILTERS),
    "megapixel-kontext": (EVERYTHING, EVERYTHING, LANCZOS),
    "megapixel-qwen": (EVERYTHING, EVERYTHING, Filters("torch-area", "pil-lanczos", "pil-lanczos")),
}
"""For a square of 100 px in the middle of 1200 x 900: by how many pixels of the picture the model's mask
exceeds it on each side, by how many the blended result does, and the filters. The first and the third are
what the tool's source says; the second follows from it."""


@pytest.mark.parametrize("path", attack_paths.PATHS)
def test_growth_and_filters_are_those_that_the_tool_states(path: str) -> None:
    assert path in SPREAD, f"add {path} to SPREAD"
    growth, reach, filters = SPREAD[path]
    square = Box(550, 400, 650, 500)
    mask = np.zeros((900, 1200), np.bool_)
    mask[square.slices] = True
    (handed,) = attack_paths.get(path).calls(mask)
    assert handed.filters == filters
    if growth == EVERYTHING:
        assert handed.mask.all()
        assert handed.touched == handed.box
        return
    (down, across), pad = handed.scale, handed.padding
    inside = Box.around(
        handed.mask[pad.top : pad.top + handed.scaled[0], pad.left : pad.left + handed.scaled[1]]
    )
    grown = (
        square.left - handed.box.left - inside.left / across,
        square.top - handed.box.top - inside.top / down,
        inside.right / across + handed.box.left - square.right,
        inside.bottom / down + handed.box.top - square.bottom,
    )
    assert grown == pytest.approx((growth,) * 4, abs=0.5 / min(down, across))  # half a pixel of the model
    touched = handed.touched
    assert reach == max(square.left - touched.left, touched.right - square.right)
    assert reach - 1 <= max(square.top - touched.top, touched.bottom - square.bottom) <= reach


def test_every_family_has_a_path_and_every_path_a_source() -> None:
    for family in Family:
        assert attack_paths.suiting(family)
    for path in attack_paths.PATHS.values():
        assert path.suits
        assert path.source.link.startswith("https://")
        if isinstance(path.source, Source):
            assert re.fullmatch("[0-9a-f]{40}", path.source.commit)
        assert path.source.places


def test_a_closed_tool_states_a_page_and_the_day_on_which_it_was_read() -> None:
    page = Page("https://example.com/manual/fill", date(2026, 11, 28), ("Resolution",))
    assert page.name == "example.com, read on 2026-11-28"


def test_crops_that_are_resized_need_filters() -> None:
    with pytest.raises(ValueError, match="filters: got None"):
        Handed(np.ones((9, 9), np.bool_), Box(0, 0, 9, 9), (18, 18), None)


def test_an_unknown_path_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="iopaint-sd"):
        attack_paths.get("iopaint-sb")


@pytest.mark.parametrize(
    "mask", [np.zeros((9, 9), np.bool_), np.ones((9, 9), np.uint8), np.ones((1, 9, 9), np.bool_)]
)
def test_something_else_than_a_mask_is_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match="expected H,W bool with a pixel set"):
        attack_paths.get("iopaint").calls(mask)


def test_a_ring_is_one_contour_including_its_inside() -> None:
    mask = np.zeros((900, 900), np.bool_)
    mask[300:600, 300:600] = True
    mask[340:560, 340:560] = False
    mask[440:460, 440:460] = True
    (handed,) = attack_paths.get("iopaint").calls(mask)
    assert tuple(handed.box) == (172, 172, 728, 728)


# IOPaint itself


@pytest.fixture(scope="module")
def iopaint() -> Any:
    """IOPaint's base classes, without the models that its package imports.

    `pip install --no-deps iopaint loguru` is enough: all that it depends on is gigabytes, and pins versions.
    """
    for needed in ("iopaint", "loguru", "cv2"):
        pytest.importorskip(needed, reason="drives IOPaint itself: pip install --no-deps iopaint loguru")
    sys.modules.setdefault("imghdr", types.ModuleType("imghdr"))  # removed from Python; not needed here
    package = types.ModuleType("iopaint.model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # IOPaint is written for older libraries
        package.__path__ = [f"{importlib.import_module('iopaint').__path__[0]}/model"]
        sys.modules["iopaint.model"] = package
        return importlib.import_module("iopaint.model.base"), importlib.import_module("iopaint.schema")


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("path", ["iopaint", "iopaint-mat", "iopaint-sd"])
def test_iopaint_itself_hands_over_the_same(iopaint: Any, path: str, picture: str) -> None:
    base, schema = iopaint
    parent: Any = base.DiffusionInpaintModel if path == "iopaint-sd" else base.InpaintModel
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    class Probe(parent):  # type: ignore[misc]
        """Paints everything in one colour and records its inputs."""

        name = "probe"
        min_size = {"iopaint": None, "iopaint-mat": 512, "iopaint-sd": 512}[path]
        pad_mod = 512 if path == "iopaint-mat" else 8
        pad_to_square = path == "iopaint-mat"

        def init_model(self, device: Any, **_: Any) -> None:
            pass

        @staticmethod
        def is_downloaded() -> bool:
            return True

        def forward(self, image: np.ndarray, mask: np.ndarray, _: Any) -> np.ndarray:
            seen.append((image.copy(), mask[..., 0] > 0))
            return np.full(image.shape, 77, np.uint8)

    mask = _mask(picture)
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    probe = Probe("cpu", model_info=types.SimpleNamespace(path=""))
    result = probe(image.copy(), (255 * mask).astype(np.uint8), schema.InpaintRequest(sd_mask_blur=12))

    pictures = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    ours = pictures
    handed = attack_paths.get(path).calls(mask)
    assert len(handed) == len(seen)
    for one, (given, masked) in zip(handed, seen, strict=True):
        got = hand_over(pictures, one)
        np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), given)
        np.testing.assert_array_equal(one.mask, masked)
        ours = put_back(torch.full_like(got, 77), ours, one)
    # IOPaint returns blue, green, red, and truncates blended values to whole levels.
    off = np.abs(ours[0].permute(1, 2, 0).numpy() - np.asarray(result, dtype=float)[..., ::-1])
    assert off.max() <= (1 if path == "iopaint-sd" else 0)


def test_of_a_mask_that_is_scaled_down_no_separate_part_vanishes() -> None:
    """A hairline and a dot beside a wide area, which the tool itself hands over as they are."""
    mask = np.zeros((900, 1200), np.bool_)
    mask[100:500, 100:500] = True
    (wide,) = (call.at_most(300) for call in attack_paths.get("iopaint-sd").calls(mask))
    assert wide.meant == (904, 1200)
    assert np.array_equal(wide.mask, wide._soft > 0.5), "where all parts survive nothing changes"
    mask[700, 200:900] = True
    mask[800, 1100] = True
    (more,) = (call.at_most(300) for call in attack_paths.get("iopaint-sd").calls(mask))
    down, across = more.size
    added = np.zeros_like(more.mask)
    added[700 * down // 900, 200 * across // 1200 : 899 * across // 1200 + 1] = True
    added[800 * down // 900, 1100 * across // 1200] = True
    assert np.array_equal(more.mask, wide.mask | added)
    (alone,) = (
        call.at_most(300)
        for call in attack_paths.get("iopaint-sd").calls(mask & (np.arange(900) > 600)[:, None])
    )
    assert np.array_equal(alone.mask, added)
    (whole,) = attack_paths.get("iopaint-sd").calls(mask)
    assert whole.at_most(1200) is whole
    assert whole.meant is None
