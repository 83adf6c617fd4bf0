"""Copies that a site saved again: what lies on the picture, what does not, and what is told of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

import backfire
from backfire import imaging
from backfire.cli.commands import app
from backfire.config import Settings
from backfire.errors import Code, InputError
from backfire.evaluate import left
from backfire.evaluate.registration import register
from backfire.pipeline import run
from backfire.pipeline.result import Result
from backfire.types import Rgb, Verdict
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.receipts import require_documented
from tests.support.sandbox import QUICK

SIZE = 320, 256


def pixels(picture: Image.Image) -> Rgb:
    rgb: Rgb = np.asarray(picture.convert("RGB")).copy()
    return rgb


def saved(picture: Image.Image, quality: int = 75) -> Image.Image:
    return Image.open(io.BytesIO(encoded(picture, "JPEG", quality=quality)))


def half(picture: Image.Image, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), how)


@pytest.mark.parametrize(
    "site",
    [
        lambda one: (one, saved(one, 30)),
        lambda one: (half(one), saved(half(one, Image.Resampling.NEAREST))),
        lambda one: (half(one), saved(half(one, Image.Resampling.BOX), 50)),
        lambda one: (one, one.filter(ImageFilter.GaussianBlur(1))),
        lambda one: (one, one.point(lambda level: min(level * 1.15, 255))),
    ],
    ids=["JPEG 30", "half, nearest", "half, box, JPEG 50", "blurred", "brighter"],
)
def test_a_copy_lies_on_its_picture(site: Callable[[Image.Image], tuple[Image.Image, Image.Image]]) -> None:
    reference, copy = site(photo(SIZE))
    found = register(pixels(reference), pixels(copy))
    assert found.is_same
    assert found.shift_px <= 0.5


@pytest.mark.parametrize("by", [2, 3, 7])
def test_a_moved_copy_is_found_with_its_shift(by: int) -> None:
    whole = photo((SIZE[0] + by, SIZE[1]))
    found = register(pixels(whole.crop((0, 0, *SIZE))), pixels(whole.crop((by, 0, SIZE[0] + by, SIZE[1]))))
    assert (found.is_same, found.is_moved) == (False, True)
    assert found.shift_px == pytest.approx(by, abs=0.3)


def test_a_part_of_a_pixel_is_measured() -> None:
    large = photo((560, 384))
    one, other = (large.crop((at, 0, at + 520, 384)).resize((130, 96), Image.Resampling.BOX) for at in (0, 2))
    assert register(pixels(one), pixels(other)).shift_px == pytest.approx(0.5, abs=0.15)


def test_other_pictures_are_no_copies() -> None:
    one = photo(SIZE)
    for other in (photo(SIZE, seed=5), one.transpose(Image.Transpose.FLIP_LEFT_RIGHT), one.rotate(180)):
        found = register(pixels(one), pixels(other))
        assert (found.is_same, found.is_moved) == (False, False)


def test_a_slight_crop_is_no_copy_that_can_be_judged() -> None:
    one = photo(SIZE)
    found = register(pixels(one), pixels(one.crop((4, 3, 316, 253)).resize(SIZE)))
    assert (found.is_same, found.is_moved) == (False, True)


def test_of_a_flat_picture_nothing_can_be_told() -> None:
    flat = Image.new("RGB", SIZE, (90, 120, 150))
    found = register(pixels(flat), pixels(flat))
    assert (found.correlation, found.is_same, found.is_moved) == (None, False, False)


def test_a_colour_cast_is_measured() -> None:
    one = pixels(photo(SIZE)) // 2
    assert register(one, one + np.array([9, 0, 0], np.uint8)).colour_off == pytest.approx(9, abs=0.1)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, its mask and what was published of it; tests add files and change none."""
    folder = tmp_path_factory.mktemp("desk")
    photo().save(folder / "a.png")
    mask_picture().save(folder / "a.mask.png")
    (folder / "out.png").write_bytes(backfire.protect(folder / "a.png", settings=QUICK).data)
    return folder


def judged(
    desk: Path, copy: Image.Image, kind: str = "PNG", *, quality: int = 95, **settings: Any
) -> dict[str, Any]:
    data = encoded(copy, kind, quality=quality)
    result = backfire.verify(data, desk / "a.png", settings={**QUICK, **settings}, as_published=True)
    require_documented(result.receipt)
    return result.receipt


def triggers(receipt: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in receipt["edits"] if one["mask_kind"] == "trigger" and not one["held_out"]]


def test_the_published_file_itself_is_judged_as_by_plain_verify(desk: Path) -> None:
    plain = backfire.verify(desk / "out.png", desk / "a.png", settings=QUICK)
    copy = judged(desk, Image.open(desk / "out.png"))
    assert copy["edits"] == plain.receipt["edits"]
    assert copy["as_published"]["scale"] == 1
    assert "scaled_from" not in copy, "that is what `output.long_px` does"


def test_regions_and_edits_follow_the_copy_and_a_site_alone_protects_nothing(desk: Path) -> None:
    """The original, scaled and compressed by the site, must not count as broken by that."""
    small = photo().resize((100, 80), Image.Resampling.BICUBIC)
    receipt = judged(
        desk, small, "JPEG", quality=40, verify={"held_out": [], "paths": ["iopaint", "forge-whole"]}
    )
    assert [one["box"] for one in receipt["regions"]] == [[37, 27, 63, 53]]
    assert receipt["verdict"] == "failed"
    assert receipt["as_published"]["saved_alike"]
    assert {one["visible"] for one in triggers(receipt)} == {0.0}
    assert (receipt["as_published"]["format"], receipt["as_published"]["scale"]) == ("JPEG", 0.625)
    share, copy, *tools = left.in_words(receipt)
    assert share.startswith("an edit of the region is plainly another over 0% of it")
    assert copy.startswith("the copy: 100x80 JPEG, 62% of the published size; it lies on the picture to 0.")
    assert all("edits come out as if it were not protected" in line for line in tools)
    assert len(tools) == len({one["path"] for one in triggers(receipt)})


def test_a_copy_that_was_scaled_up_is_judged_too(desk: Path) -> None:
    receipt = judged(desk, Image.open(desk / "out.png").convert("RGB").resize((240, 192)))
    assert [one["box"] for one in receipt["regions"]] == [[90, 66, 150, 126]]
    assert receipt["as_published"]["scale"] == 1.5


def test_what_cannot_be_judged_is_refused_with_its_reason(desk: Path) -> None:
    protected = Image.open(desk / "out.png").convert("RGB")
    refused = {
        "is 128x128, the picture 160x128, which is another shape": protected.crop((0, 0, 128, 128)),
        "is no copy of this picture": photo(seed=5),
        "moved by up to [234].* px, so it was cropped": protected.crop((3, 2, 160, 128)).resize((160, 128)),
        "expected 64 a side at least": protected.resize((60, 48)),
        "too little texture": Image.new("RGB", (160, 128), "grey"),
    }
    for said, copy in refused.items():
        with pytest.raises(InputError, match=said):
            judged(desk, copy)


def test_words_tell_what_was_and_what_is_left() -> None:
    def receipt(visible: float, ssim: float, broken: bool) -> dict[str, Any]:
        edit = {
            "mask_kind": "trigger",
            "held_out": False,
            "path": "iopaint",
            "visible": visible,
            "ssim": ssim,
        }
        better = {**edit, "visible": 1.0}
        placed = {"width": 800, "height": 600, "format": "WEBP", "scale": 0.5, "shift_px": 0.2}
        return {
            "edits": [better, edit],
            "tools": {"iopaint": broken},
            "as_published": {**placed, "colour_off_levels": 6.0},
        }

    share, first, colours, tool = left.in_words(receipt(0.3, 0.8, False), receipt(0.8, 0.5, True))
    assert share == (
        "40% of the effect of the published file is left (1 - SSIM, in the mean of the tools); an edit of "
        "the region is plainly another over 30% of it, 80% as published"
    )
    assert first == "the copy: 800x600 WEBP, 50% of the published size; it lies on the picture to 0.2 px"
    assert colours.startswith("its colours are off by 6 levels")
    expected = "plainly another over 30% of the region (80% as published), SSIM 0.80 (0.50)"
    assert tool == f"IOPaint: edits are spoilt in part: {expected}"
    other = receipt(0.8, 0.5, True)
    for edit in other["edits"]:
        edit["path"] = "of-old"
    for then, why in ((other, "as its receipt has none of these tools"), (None, "name the published file")):
        share, *_ = left.in_words(receipt(0.3, 0.8, False), then)
        assert share.startswith("an edit of the region is plainly another over 30% of it")
        assert why in share
        assert ("name the published file" in share) == (then is None)
    assert "edits still come out broken" in list(left.in_words(receipt(0.7, 0.6, True)))[-1]


@pytest.mark.parametrize(
    ("kind", "options", "alike"),
    [
        ("PNG", {}, True),
        ("JPEG", {"quality": 70}, True),
        ("WEBP", {"lossless": True}, True),
        ("WEBP", {"quality": 70}, False),
        ("AVIF", {"quality": 70}, False),
        ("JPEG2000", {}, False),
    ],
)
def test_it_is_known_whether_the_original_is_saved_as_coarsely(
    kind: str, options: dict[str, Any], alike: bool
) -> None:
    data = encoded(photo(SIZE), kind, **options)
    assert imaging.is_saved_alike(imaging.decode(data, name="a", max_pixels=1 << 20), data) is alike


def test_of_a_copy_whose_losses_are_not_known_it_is_said_that_they_count() -> None:
    edit = {"mask_kind": "trigger", "held_out": False, "path": "iopaint", "visible": 0.3, "ssim": 0.8}
    placed = {"width": 800, "height": 600, "format": "WEBP", "scale": 0.5, "shift_px": 0.2}
    for alike in (True, False):
        row = {**placed, "colour_off_levels": 0.0, "saved_alike": alike}
        receipt = {"edits": [edit], "tools": {"iopaint": False}, "as_published": row}
        share, _, *said = left.in_words(receipt, {**receipt, "edits": [{**edit, "ssim": 0.5}]})
        assert share.startswith("40% of the effect" if alike else "at most 40% of the effect")
        counted = [line for line in said if "counted as if it were protection" in line]
        assert [line.startswith("how coarsely this WEBP was saved") for line in counted] == [True] * (
            not alike
        )


@pytest.mark.parametrize(
    ("tools", "verdict"),
    [
        ({"iopaint": False, "forge-whole": False}, Verdict.FAILED),
        ({"iopaint": False, "forge-whole": True}, Verdict.WEAK),
    ],
)
def test_a_copy_whose_edits_are_broken_in_no_tool_is_failed(
    desk: Path, monkeypatch: pytest.MonkeyPatch, tools: dict[str, bool], verdict: Verdict
) -> None:
    """Whatever is left of it by the figures, `weak` would read as some protection."""
    monkeypatch.setattr(run, "judge", lambda *_, **__: (Verdict.WEAK, ["why"]))
    other = {
        name: not broken for name, broken in tools.items()
    }  # what becomes of other edits counts for nothing
    monkeypatch.setattr(run, "tools", lambda edits, settings, *kind: other if kind else tools)
    receipt = judged(desk, Image.open(desk / "out.png"))
    assert receipt["verdict"] == verdict
    more = ["the edit of the region is broken in no tool any more"] if verdict == Verdict.FAILED else []
    assert receipt["reasons"] == [*more, "why"]


def test_the_command_finds_what_was_published_by_its_receipt(desk: Path) -> None:
    (desk / "c.yaml").write_text(json.dumps({"folders": {"inbox": "inbox"}, **QUICK}))
    runner = CliRunner()
    made = str(desk / "made.png")
    arguments = [str(desk / "a.png"), "-o", made, "-c", str(desk / "c.yaml")]
    runner.invoke(app, ["protect", *arguments])
    copy = str(desk / "copy.jpg")
    saved(Image.open(made).convert("RGB"), 60).save(copy, quality=60)
    told = runner.invoke(app, ["verify", made, "--as-published", copy, "-c", str(desk / "c.yaml")])
    assert told.exit_code in (0, 3), told.output
    first, share, about, *tools = told.stdout.splitlines()
    assert "of the effect of the published file is left" in share
    assert f"{copy}, a copy of a.png" in first
    assert "160x128 JPEG, 100% of the published size" in about
    assert tools
    assert all("as published)" in line for line in tools)
    alone = runner.invoke(
        app, ["verify", "--as-published", copy, "--original", str(desk / "a.png"), "-c", str(desk / "c.yaml")]
    )
    assert alone.exit_code == told.exit_code
    assert "as published)" not in alone.stdout
    nothing = runner.invoke(app, ["verify", "--as-published", copy])
    assert "got no picture; name the protected one, or --as-published with --original" in str(
        nothing.exception
    )


def test_a_named_mask_alone_is_enough_and_none_has_to_be_named(desk: Path, tmp_path: Path) -> None:
    """As in the quickstart: what was protected with -m is verified by its name alone, or with -m."""
    photo().save(tmp_path / "me.png")
    mask_picture().save(tmp_path / "poster.png")
    (tmp_path / "c.yaml").write_text(json.dumps({"folders": {"inbox": "inbox"}, **QUICK}))
    made, mask, copy = (str(tmp_path / name) for name in ("made.png", "poster.png", "copy.png"))
    settings, runner = ["-c", str(tmp_path / "c.yaml")], CliRunner()
    runner.invoke(app, ["protect", str(tmp_path / "me.png"), "-o", made, "-m", mask, *settings])
    receipt = json.loads((tmp_path / "made.png.receipt.json").read_text())
    require_documented(receipt)
    assert str(tmp_path) not in json.dumps(receipt), "the paths of mask and result are nobody's"
    edits = []
    for named in ([], ["-m", mask]):
        told = runner.invoke(app, ["verify", made, "--json", *named, *settings])
        assert told.exit_code in (0, 3), told.output
        edits.append([one["ssim"] for one in json.loads(told.stdout)["edits"]])
    assert edits == [[one["ssim"] for one in receipt["edits"]]] * 2
    Image.open(made).save(copy)
    told = runner.invoke(app, ["verify", made, "--as-published", copy, "-m", mask, "--json", *settings])
    assert [one["ssim"] for one in json.loads(told.stdout)["edits"]] == edits[0]


def test_a_failed_copy_says_why_in_the_words_that_people_know(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And prints nothing of a file's name that moves the terminal's cursor."""
    placed = {"width": 8, "height": 6, "format": "PNG", "scale": 1.0, "shift_px": 0.0, "colour_off_levels": 0}
    reason = "region 0: dilated edit in iopaint by flux2-mini hardly breaks"
    document = {"as_published": placed, "tools": {}, "edits": [], "reasons": [reason]}
    result = Result(Verdict.FAILED, b"", "", document, None)
    monkeypatch.setattr("backfire.api.verify", lambda *_, **__: result)
    told = CliRunner().invoke(
        app, ["verify", "--as-published", "co\x1bpy.jpg", "--original", str(desk / "a.png")]
    )
    first, _ = told.stdout.splitlines()
    why = "region 0: edit of the region and a little more in IOPaint by flux2-mini hardly breaks"
    assert first == f"failed  co\\x1bpy.jpg, a copy of a.png: {why}"


@pytest.mark.parametrize(
    "text", ["baseURL: https://example.org", "{folders: {inbox: in}, regions: {detectors: [command]}}"]
)
def test_with_an_original_no_configuration_is_used_that_nobody_named(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """It may be another program's, or have come with the picture and name programs of its own."""
    used: list[Settings] = []

    def judge(*_: object, settings: Settings, **__: object) -> None:
        used.append(settings)
        raise InputError(Code.UNREADABLE, "seen")

    monkeypatch.setattr("backfire.api.verify", judge)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "p.png").write_bytes((desk / "out.png").read_bytes())
    (tmp_path / "config.yaml").write_text(text)
    told = CliRunner().invoke(app, ["verify", "outbox/p.png", "--original", str(desk / "a.png")])
    assert "seen" in told.output
    assert used == [Settings(folders=used[0].folders)]


def test_what_cannot_be_judged_has_a_status_of_its_own(desk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    photo((300, 200)).save(other)
    told = CliRunner().invoke(app, ["verify", str(other), "--original", str(desk / "a.png")])
    assert told.exit_code == 2
    assert "the protected picture is 300x200, the original 160x128" in told.output.replace("\n", "")
