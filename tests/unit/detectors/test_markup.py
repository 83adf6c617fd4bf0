"""Regions from annotation files, in our own schema, COCO and LabelMe, and from painted masks."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray
from PIL import Image
from skimage.draw import polygon2mask

from backfire.config import Sidecars
from backfire.detectors import Sidecar, Source
from backfire.detectors.markup import read
from backfire.detectors.shapes import merged, uncompressed
from backfire.detectors.sidecar import SidecarDetector
from backfire.errors import Code, InputError
from backfire.types import Box, Region, Rgb

PICTURE: Rgb = np.zeros((200, 300, 3), dtype=np.uint8)


def found(*documents: Any, name: str = "cat.regions.json", settings: Sidecars | None = None) -> list[Region]:
    sidecars = tuple(
        Sidecar(f"cat-{i}.png", d) if isinstance(d, bytes) else Sidecar(name, json.dumps(d).encode())
        for i, d in enumerate(documents)
    )
    return SidecarDetector(settings or Sidecars()).detect(PICTURE, source=Source("in/cat.jpg", sidecars))


def png(pixels: NDArray[np.uint8], mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


# Ours


def test_boxes_and_polygons_of_our_own_schema() -> None:
    regions = found(
        {
            "size": [300, 200],
            "regions": [
                {"label": "signature", "score": 0.5, "box": [10, 20, 60, 50]},
                {"polygon": [[100, 100], [140, 100], [100, 140]]},
                {"box": [290, 190, 999, 999]},
                {"box": [900, 900, 999, 999]},
            ],
        }
    )
    assert [(r.box, r.label, r.score, r.detector) for r in regions] == [
        (Box(10, 20, 60, 50), "signature", 0.5, "sidecar"),
        (Box(100, 100, 140, 140), "region", 1.0, "sidecar"),
        (Box(290, 190, 300, 200), "region", 1.0, "sidecar"),
    ]
    assert regions[1].mask is not None
    assert regions[1].mask.mean() == pytest.approx(0.5, abs=0.03)


def test_labels_are_shortened_and_cleaned() -> None:
    """They come from untrusted files, and are written into receipts, logs and sheets."""
    labels = ["x" * 10**6, "two\n lines\x1b[31m", ""]
    regions = found({"regions": [{"label": label, "box": [1, 2, 30, 40]} for label in labels]})
    assert [region.label for region in regions] == ["x" * 63 + "…", "two lines[31m", "region"]
    many = [replace(regions[0], label=f"label {i}") for i in range(30)]
    (one,) = merged(merged(many[:20], lambda a, b: True) + many[20:], lambda a, b: True)
    assert one.label == "+".join(f"label {i}" for i in range(8)) + "+…"


def test_relative_coordinates() -> None:
    (region,) = found({"unit": "relative", "regions": [{"box": [0.1, 0.2, 0.7, 0.5]}]})
    assert region.box == Box(30, 40, 210, 100)


def test_relative_coordinates_may_lie_a_little_outside() -> None:
    (region,) = found({"unit": "relative", "regions": [{"box": [-0.1, 0.2, 1.2, 0.5]}]})
    assert region.box == Box(0, 40, 300, 100)


@pytest.mark.parametrize(
    "document",
    [
        {"regions": [{"box": [0.1, 0.2, 0.7, 0.5]}, {"polygon": [[0, 0], [1.01, 0], [0, 0.5]]}]},
        {
            "images": [{"id": 1, "file_name": "cat.jpg"}],
            "annotations": [{"image_id": 1, "bbox": [0.1, 0.2, 0.6, 0.3]}],
        },
        {"shapes": [{"shape_type": "rectangle", "points": [[0.1, 0.2], [0.7, 0.5]]}]},
    ],
    ids=["ours", "coco", "labelme"],
)
def test_shares_in_place_of_pixels_are_an_error(document: Any) -> None:
    """They would protect a pixel in the corner."""
    with pytest.raises(InputError, match=r"between 0 and \d, expected pixels of 300x200; multiply") as caught:
        found(document)
    assert caught.value.code is Code.MASK_UNREADABLE


def test_pixels_in_place_of_shares_are_an_error() -> None:
    """That region would lie far outside the picture, and be left out."""
    boxes = [{"box": [0.1, 0.2, 0.7, 0.5]}, {"box": [10, 20, 60, 50]}]
    with pytest.raises(InputError, match=r"regions\.1: got 60 under .*relative.*expected shares"):
        found({"unit": "relative", "regions": boxes})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"regions": [{"box": [10, 20, 5, 50]}]}, r"regions\.0: got box"),
        ({"regions": [{"box": [0, 0, 5, 5], "polygon": [[0, 0], [1, 1], [0, 1]]}]}, "both or neither"),
        ({"regions": [{}]}, "both or neither"),
        ({"regions": [{"bx": [0, 0, 5, 5]}]}, r"regions\.0\.bx"),
        ({"regions": [{"box": [0, 0, 5, 5], "score": 3}]}, r"regions\.0\.score"),
        ({"regions": "all"}, "regions"),
        ({"regoins": []}, "none of the keys"),
        ([1, 2], "none of the keys"),
    ],
)
def test_errors_name_the_place_in_the_document(document: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        found(document)
    assert caught.value.code is Code.MASK_UNREADABLE
    assert "cat.regions.json" in caught.value.message


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, b'{"regions": [{"box": [NaN, 0, 1, 1]}]}'])
def test_a_file_that_is_no_json_is_an_error(data: bytes) -> None:
    source = Source("cat.jpg", (Sidecar("cat.json", data),))
    with pytest.raises(InputError) as caught:
        SidecarDetector().detect(PICTURE, source=source)
    assert caught.value.code is Code.MASK_UNREADABLE


@pytest.mark.parametrize("size", [[200, 300], [301, 200]])
def test_another_pictures_size_is_an_error(size: list[int]) -> None:
    with pytest.raises(InputError, match="300x200 of the upright") as caught:
        found({"size": size, "regions": [{"box": [0, 0, 9, 9]}]})
    assert caught.value.code is Code.MASK_SIZE
    assert ("looks turned" in caught.value.message) == (size == [200, 300])


@pytest.mark.parametrize("regions", [[], [{"box": [300, 0, 310, 10]}]])
def test_no_region_in_the_picture_is_an_error(regions: list[Any]) -> None:
    with pytest.raises(InputError) as caught:
        found({"regions": regions})
    assert caught.value.code is Code.MASK_EMPTY


def test_a_region_outside_is_of_another_picture_unless_the_size_is_stated() -> None:
    regions = [{"box": [10, 20, 30, 40]}, {"box": [900, 20, 930, 40]}]
    said = "has 1 of 2 regions outside the picture, and does not state its size, expected the 300x200"
    shapes = [{"shape_type": "rectangle", "points": [one["box"][:2], one["box"][2:]]} for one in regions]
    for unsized in ({"regions": regions}, {"shapes": shapes}):
        with pytest.raises(InputError, match=said) as caught:
            found(unsized)
        assert caught.value.code is Code.MASK_SIZE
    for sized in (
        {"size": [300, 200], "regions": regions},
        {"imageWidth": 300, "imageHeight": 200, "shapes": shapes},
    ):
        with structlog.testing.capture_logs() as told:
            assert [region.box for region in found(sized)] == [Box(10, 20, 30, 40)]
        (one,) = told
        assert (one["event"], one["count"]) == ("regions_outside", "1 of 2")
    data = json.dumps({"regions": regions}).encode()
    assert len(read(data, picture="p", width=300, height=200, detector="command", sized=True)) == 1


# COCO


def coco(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "cat.jpg", "width": 300, "height": 200, **image}],
        "categories": [{"id": 7, "name": "logo"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 7, **one} for i, one in enumerate(annotations, start=1)
        ],
    }


def test_coco_boxes_and_polygons() -> None:
    (box,) = found(coco({"bbox": [10, 20, 30, 40]}))
    assert (box.box, box.label) == (Box(10, 20, 40, 60), "logo")
    outline = [10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]
    (polygon,) = found(coco({"bbox": [0, 0, 300, 200], "segmentation": [outline]}))
    assert polygon.box == Box(10, 20, 40, 60)


def test_coco_run_lengths_in_both_forms() -> None:
    mask = np.zeros((200, 300), dtype=np.bool_)
    mask[20:60, 10:40] = True
    mask[70:90, 20:25] = True
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff([0, *edges, mask.size]).tolist()
    for written in (counts, compressed(counts)):
        (region,) = found(coco({"segmentation": {"counts": written, "size": [200, 300]}}))
        np.testing.assert_array_equal(region.plane(200, 300), mask)


def compressed(counts: list[int]) -> str:
    """The inverse of `uncompressed`, written from the format's description."""
    text = ""
    for i, count in enumerate(counts):
        number = count - (counts[i - 2] if i > 2 else 0)
        while True:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text += chr(group + (32 if more else 0) + 48)
            if not more:
                break
    return text


def test_a_known_compressed_mask() -> None:
    """Worked out by hand: 6, 1, 40, and then 4 and 5 as their differences to 1 and 40, 3 and -35."""
    assert uncompressed("61X13mN") == [6, 1, 40, 4, 5]


@pytest.mark.parametrize(
    "annotation",
    [
        {},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": {"counts": [5, 5], "size": [200, 300]}},
        {"segmentation": {"counts": [60001, -1], "size": [200, 300]}},
        {"segmentation": {"counts": [10**30, 0], "size": [200, 300]}},
        {"segmentation": {"counts": [2**62] * 4 + [60000], "size": [200, 300]}},  # 60000 in 64 bits
        {"segmentation": {"counts": "\x10", "size": [200, 300]}},
        {"segmentation": {"counts": "o", "size": [200, 300]}},
    ],
)
def test_coco_nonsense_is_an_error(annotation: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        found(coco(annotation))
    assert caught.value.code is Code.MASK_UNREADABLE


def test_the_number_of_regions_and_of_masks_of_the_whole_picture_is_limited() -> None:
    whole = {"segmentation": {"counts": [0, 60000], "size": [200, 300]}}
    assert len(found(coco(*[whole] * 8))) == 8
    with pytest.raises(InputError, match="more than 8 times; merge") as caught:
        found(coco(*[whole] * 9))
    assert caught.value.code is Code.MASK_UNREADABLE
    for x in (10, 900):  # also outside the picture, since each costs time
        with pytest.raises(InputError, match="more than 1000 regions"):
            found(coco(*[{"bbox": [x, 20, 30, 40]}] * 1001))
    corner = [[0.0, 0.0, 300.0, 0.0, 0.0, 200.0]]
    assert len(found(coco({"segmentation": corner * 8}))) == 1
    with pytest.raises(InputError, match="more than 8 times; merge"):
        found(coco({"segmentation": corner * 9}))


def test_the_outlines_of_a_coco_annotation_are_one_region() -> None:
    outlines = [[10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0], [50.2, 60.4, 90.0, 60.4, 50.2, 99.0]]
    (region,) = found(coco({"segmentation": [*outlines, [-9.0, -9.0, -5.0, -9.0, -5.0, -5.0]]}))
    expected = np.zeros((200, 300), dtype=np.bool_)
    for flat in outlines:
        corners = np.array(flat).reshape(-1, 2)[:, ::-1] - 0.5
        expected |= polygon2mask((200, 300), corners)  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(region.plane(200, 300), expected)
    assert region.box == Box.around(expected)
    assert region.label == "logo"


def test_a_polygon_covers_the_pixels_whose_centres_are_inside() -> None:
    rng = np.random.default_rng(0)
    for corners in range(3, 30):
        polygon = rng.uniform(-20, 320, (corners, 2))
        expected = polygon2mask((200, 300), polygon[:, ::-1] - 0.5)  # type: ignore[no-untyped-call]
        (region,) = found({"regions": [{"polygon": polygon.tolist()}]})
        np.testing.assert_array_equal(region.plane(200, 300), expected)


def test_of_several_pictures_in_a_file_the_one_of_this_name_is_used() -> None:
    document = coco({"bbox": [10, 20, 30, 40]})
    document["images"].append({"id": 2, "file_name": "sub/dog.jpg", "width": 9, "height": 9})
    document["annotations"].append({"image_id": 2, "bbox": [0, 0, 5, 5]})
    assert [region.box for region in found(document)] == [Box(10, 20, 40, 60)]
    document["images"][0]["file_name"] = "bird.jpg"
    with pytest.raises(InputError, match=r"0 of them named cat\.jpg"):
        found(document)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("images/é b.jpg", "é b.jpg"),
        ("JPEGImages\\é b.jpg", "é b.jpg"),
        ("É B.JPG", "é b.jpg"),
        (unicodedata.normalize("NFD", "é b.jpg"), "é b.jpg"),
        ("é b.jpg", unicodedata.normalize("NFD", "é b.jpg")),
        ("images/%C3%A9%20b.jpg", "é b.jpg"),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_a_picture_is_found_in_a_coco_file_however_its_name_is_spelled(
    written: str, name: str, shared: bool
) -> None:
    document = coco({"bbox": [10, 20, 30, 40]}, file_name=written)
    document["images"].append({"id": 2, "file_name": "dog.jpg"})
    data = json.dumps(document).encode()
    (region,) = read(data, picture=f"in/{name}", width=300, height=200, detector="sidecar", shared=shared)
    assert region.box == Box(10, 20, 40, 60)


def test_the_exact_name_counts_before_those_in_another_case() -> None:
    document = coco({"bbox": [10, 20, 30, 40]})
    document["images"].append({"id": 2, "file_name": "CAT.jpg"})
    assert [region.box for region in found(document)] == [Box(10, 20, 40, 60)]
    document["images"][0]["file_name"] = "Cat.jpg"
    with pytest.raises(InputError, match=r"2 of them named cat\.jpg"):
        found(document, name="_annotations.coco.json")


def test_the_log_says_that_a_folders_coco_file_does_not_name_a_picture() -> None:
    with structlog.testing.capture_logs() as told:
        assert found(coco({"bbox": [10, 20, 30, 40]}, file_name="dog.jpg"), name="a.coco.json") == []
    assert [(one["event"], one["path"], one["annotations"]) for one in told] == [
        ("no_annotation", "in/cat.jpg", "a.coco.json")
    ]


def test_annotations_of_a_picture_that_come_to_nothing_are_an_error_in_a_folders_file_too() -> None:
    outline = [[900.0, 0.0, 950.0, 0.0, 900.0, 50.0]]
    for outside in ({"bbox": [900, 20, 30, 40]}, {"segmentation": outline}):
        with pytest.raises(InputError, match="no region lies within") as caught:
            found(coco(outside), name="a.coco.json")
        assert caught.value.code is Code.MASK_EMPTY


@pytest.mark.parametrize(("image", "annotated"), [(1, "1"), ("1", 1)])
def test_ids_of_a_coco_file_may_be_numbers_here_and_digits_there(
    image: int | str, annotated: int | str
) -> None:
    document = coco({"bbox": [10, 20, 30, 40], "image_id": annotated, "category_id": str(7)})
    document["images"][0]["id"] = image
    document["categories"] = [{"id": 7, "name": "badge"}]
    (region,) = found(document, name="a.coco.json")
    assert region.label == "badge"


# LabelMe


def labelme(**shape: Any) -> dict[str, Any]:
    return {"imageWidth": 300, "imageHeight": 200, "imageData": None, "shapes": [{"label": "face", **shape}]}


def test_labelme_shapes() -> None:
    (box,) = found(labelme(shape_type="rectangle", points=[[40, 60], [10, 20]]), name="cat.json")
    assert (box.box, box.label, box.mask) == (Box(10, 20, 40, 60), "face", None)
    (circle,) = found(labelme(shape_type="circle", points=[[100, 100], [100, 120]]))
    assert circle.box == Box(80, 80, 120, 120)
    (polygon,) = found(labelme(points=[[0, 0], [50, 0], [0, 50]]))
    assert polygon.mask is not None


def test_labelme_masks_are_read() -> None:
    inner = np.zeros((30, 20), np.uint8)
    inner[5:25, 5:15] = 1
    encoded = base64.b64encode(png(inner)).decode()
    (region,) = found(labelme(shape_type="mask", points=[[100, 50], [119, 79]], mask=encoded))
    assert region.box == Box(105, 55, 115, 75)


@pytest.mark.parametrize(
    "shape",
    [
        {"shape_type": "line", "points": [[0, 0], [9, 9]]},
        {"points": [[0, 0], [9, 9]]},
        {"shape_type": "rectangle", "points": [[0, 0]]},
        {"shape_type": "mask", "points": [[0, 0], [9, 9]], "mask": "?"},
        {"shape_type": "mask", "points": [[0, 0], [9, 9]], "mask": base64.b64encode(b"no PNG").decode()},
    ],
)
def test_labelme_nonsense_is_an_error(shape: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        found(labelme(**shape))
    assert caught.value.code is Code.MASK_UNREADABLE
    assert "cat.regions.json" in caught.value.message


# Paintings


def test_paintings_and_annotations_merge() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[100:150, 200:250] = 255
    regions = found(png(mask), {"regions": [{"box": [10, 20, 60, 50]}]})
    assert [region.box for region in regions] == [Box(200, 100, 250, 150), Box(10, 20, 60, 50)]


@pytest.mark.parametrize("palette", [False, True])
def test_each_colour_is_a_region_of_its_own(palette: bool) -> None:
    painting = np.zeros((200, 300, 3), np.uint8)
    painting[10:60, 10:60] = (0, 0, 255)
    painting[10:60, 60:90] = (255, 0, 0)
    painting[150:160, 10:20] = (255, 255, 255)
    regions = found(png(painting, "P" if palette else None))
    assert {(region.label, region.box) for region in regions} == {
        ("mask #0000ff", Box(10, 10, 60, 60)),
        ("mask #ff0000", Box(60, 10, 90, 60)),
        ("mask #ffffff", Box(10, 150, 20, 160)),
    }


def test_threshold_and_polarity_of_soft_masks() -> None:
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 300, axis=1)
    (default,) = found(png(ramp))
    (low,) = found(png(ramp), settings=Sidecars(threshold=50))
    (black,) = found(png(ramp), settings=Sidecars(protected="black", threshold=50))
    assert (default.box.top, low.box.top, black.box) == (128, 50, Box(0, 0, 300, 50))


@pytest.mark.parametrize(
    ("painting", "settings", "message"),
    [
        ((120,), Sidecars(), "brightest pixel has level 120 of 255, expected at least 128 .*region white"),
        ((200,), Sidecars(protected="black"), "darkest .* 200 of 255, expected less than 128 .*region black"),
        ((9, 9, 9, 60), Sidecars(threshold=90), "most opaque .* 60 of 255, expected at least 90 .*opaque"),
    ],
)
def test_a_mask_that_marks_nothing_says_what_it_holds_and_what_was_expected(
    painting: tuple[int, ...], settings: Sidecars, message: str
) -> None:
    pixels = np.full((200, 300, len(painting)), painting, np.uint8)
    pixels[0, 0, 3:] = 0
    with pytest.raises(InputError, match=message):
        found(png(pixels.squeeze()), settings=settings)


def test_if_only_alpha_differs_opaque_pixels_are_protected_whatever_the_setting_says() -> None:
    painting = np.zeros((200, 300, 4), np.uint8)
    painting[20:50, 30:80, 3] = 255
    (region,) = found(png(painting), settings=Sidecars(protected="black"))
    assert region.box == Box(30, 20, 80, 50)
