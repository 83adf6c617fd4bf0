"""The public Python API on real pictures."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import backfire
from backfire import api, imaging
from backfire.admin.published import at_size_of, how_made
from backfire.cli.commands import app
from backfire.config import Folders, Protect, Settings, Verify
from backfire.detectors import Sidecar
from backfire.errors import ConfigError, InputError
from tests.support.pictures import encoded, mask_picture, photo
from tests.support.receipts import require_documented
from tests.support.sandbox import LENIENT, QUICK

BOX = (60, 44, 100, 84)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    photo().save(tmp_path / "a.png")
    mask_picture().save(tmp_path / "m.png")
    return tmp_path


def plane() -> np.ndarray:
    mask = np.zeros((128, 160), dtype=np.bool_)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    return mask


def test_importing_backfire_loads_nothing_heavy_and_detect_no_torch(desk: Path) -> None:
    code = (
        "import sys, backfire; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules); "
        "assert callable(backfire.detect) and 'protect' in dir(backfire); "
        "import backfire.detectors.run; found = backfire.detect('a.png', mask='m.png'); "
        "assert [tuple(region.box) for region in found.regions] == [(60, 44, 100, 84)]; "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="protetc"):
        backfire.protetc  # noqa: B018  # type: ignore[attr-defined]


def test_a_picture_is_protected_and_verified_from_its_own_bytes(desk: Path) -> None:
    phases: list[str] = []
    result = backfire.protect(
        desk / "a.png",
        mask=desk / "m.png",
        settings=QUICK,
        progress=lambda phase, done, total: phases.append(phase),
    )
    before, after = (
        np.asarray(Image.open(source).convert("RGB")).astype(int)
        for source in (desk / "a.png", io.BytesIO(result.data))
    )
    assert 0 < np.abs(after - before).max() <= 12
    assert result.receipt["max_change_levels"] == np.abs(after - before).max()
    assert (result.extension, result.receipt["file"], result.receipt["verdict"]) == (
        ".png",
        "a.png",
        result.verdict,
    )
    assert [r["box"] for r in result.receipt["regions"]] == [list(BOX)]
    assert list(dict.fromkeys(phases)) == ["decode", "detect", "optimise", "encode", "verify"]
    assert result.sheet is not None
    with Image.open(io.BytesIO(result.sheet)) as sheet:
        assert sheet.format == "JPEG"
    require_documented(result.receipt)
    again = backfire.verify(result.data, desk / "a.png", mask=desk / "m.png", settings=QUICK)
    assert again.data == result.data
    assert again.verdict == result.verdict
    assert again.receipt["edits"] == result.receipt["edits"], (
        "the edits that decided the verdict are replayed"
    )
    unprotected = backfire.verify(desk / "a.png", desk / "a.png", mask=plane(), settings=QUICK)
    assert unprotected.verdict == "failed", "whatever the thresholds"
    require_documented(again.receipt)


def test_paths_and_objects_of_the_same_content_give_the_same_bytes(desk: Path) -> None:
    checked = Settings(
        folders=Folders(inbox=Path("inbox")),
        protect=Protect(**QUICK["protect"]),
        verify=Verify(**LENIENT),
    )
    picture, mask = (desk / "a.png").read_bytes(), (desk / "m.png").read_bytes()
    (desk / "c.yaml").write_text(json.dumps({"folders": {"inbox": "inbox"}, **QUICK}))
    paths = backfire.protect(desk / "a.png", mask=str(desk / "m.png"), settings=desk / "c.yaml")
    in_memory = backfire.protect(picture, mask=[Sidecar("m.png", mask)], settings=checked, name="a.png")
    assert paths.data == in_memory.data
    assert paths.receipt["key"] == in_memory.receipt["key"]
    assert in_memory.receipt["file"] == "a.png"


@pytest.mark.parametrize("given", ["bytes", "array", "list", "beside"])
def test_a_mask_may_be_bytes_an_array_several_files_or_lie_beside(desk: Path, given: str) -> None:
    (desk / "a.mask.png").write_bytes((desk / "m.png").read_bytes())
    masks: dict[str, Any] = {
        "bytes": (desk / "m.png").read_bytes(),
        "array": plane(),
        "list": [plane(), desk / "m.png"],
        "beside": None,
    }
    found = backfire.detect(desk / "a.png", mask=masks[given])
    assert [tuple(region.box) for region in found.regions] == [BOX]
    assert (found.name, found.image.shape, found.rule) == ("a.png", (128, 160, 3), None)


@pytest.mark.parametrize("protected", ["white", "black"])
def test_true_is_protected_in_an_array_whatever_colour_is_in_a_file(desk: Path, protected: str) -> None:
    settings = {"regions": {"detectors": ["sidecar"], "sidecar": {"protected": protected}}}
    (region,) = backfire.detect(desk / "a.png", mask=plane(), settings=settings).regions
    np.testing.assert_array_equal(region.plane(128, 160), plane())


def test_bytes_take_no_mask_from_the_working_directory(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    (desk / "a.mask.png").write_bytes((desk / "m.png").read_bytes())
    settings = {"regions": {"detectors": ["sidecar"], "none_found": "pass"}}
    data = (desk / "a.png").read_bytes()
    assert backfire.detect(data, name="a.png", settings=settings).regions == []
    result = backfire.protect(data, name="a.png", settings=settings)
    assert (result.verdict, result.data, result.sheet) == ("unprotected", data, None)


@pytest.mark.parametrize("where", ["inbox", "linked", "outbox/../inbox", "linked/../inbox", "archive"])
def test_rules_are_followed_by_whichever_way_a_picture_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for folder in ("inbox/logo", "outbox/logo", "archive/logo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "linked").symlink_to("inbox")
    file = tmp_path / "config.yaml"
    file.write_text("folders: {inbox: inbox}\nrules: [{match: 'logo/*.png', protect: {strength: subtle}}]\n")
    monkeypatch.chdir(tmp_path)
    for picture in (Path(where, "logo", "a.png"), tmp_path / where / "logo" / "a.png"):
        settings, rule = api.settings_for(picture, file)
        assert (rule, settings.protect.strength) == ("logo/*.png", "subtle"), picture


def test_rules_of_a_mapping_are_followed(desk: Path) -> None:
    rule = {"match": "*.png", "detectors": ["fixed"], "fixed": [{"box": [0, 0, 0.5, 1], "label": "logo"}]}
    found = backfire.detect(desk / "a.png", settings={"folders": {"inbox": str(desk)}, "rules": [rule]})
    assert ([region.label for region in found.regions], found.rule) == (["logo"], "*.png")


@pytest.mark.parametrize("mask", ["m.png", plane()], ids=["file", "array"])
def test_a_mask_that_no_detector_would_read_is_refused(desk: Path, mask: Any) -> None:
    """Else only what the detectors find would be protected, and the picture be called so."""
    named = desk / mask if isinstance(mask, str) else mask
    settings = {**QUICK, "regions": {"detectors": ["faces"], "none_found": "pass"}}
    for work in (backfire.protect, backfire.detect):
        with pytest.raises(ConfigError, match=r"mask .*: would not be read, as regions\.detectors are faces"):
            work(desk / "a.png", mask=named, settings=settings)
    assert backfire.detect(desk / "a.png", mask=(), settings=settings).regions == []


def test_errors_say_why_an_argument_cannot_be_used(desk: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.png: cannot be read .*; name a readable file"):
        backfire.protect(desk / "missing.png")
    with pytest.raises(ConfigError, match="expected a bool array H,W"):
        backfire.detect(desk / "a.png", mask=np.zeros((128, 160)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mask: got bool of shape \(0, 0\), expected a bool array H,W"):
        backfire.detect(desk / "a.png", mask=np.zeros((0, 0), dtype=np.bool_))
    with pytest.raises(ConfigError, match="did you mean 'iterations'"):
        backfire.protect(desk / "a.png", settings={"protect": {"iteration": 3}})
    with pytest.raises(InputError, match="expected the 160x128"):
        backfire.detect(desk / "a.png", mask=np.ones((20, 30), dtype=np.bool_))
    only_masks = {"regions": {"detectors": ["sidecar"]}}
    with pytest.raises(InputError, match=r"picture: no region found.*what is to be protected as mask="):
        backfire.protect((desk / "a.png").read_bytes(), settings=only_masks)


def test_a_picture_is_scaled_and_then_protected(desk: Path) -> None:
    """Masks are of the original's size; receipt and budget speak of the published one."""
    settings = {**QUICK, "output": {"long_px": 120}}
    result = backfire.protect(desk / "a.png", mask=desk / "m.png", settings=settings)
    receipt = result.receipt
    assert (receipt["width"], receipt["height"], receipt["scaled_from"]) == (120, 96, [160, 128])
    assert [one["box"] for one in receipt["regions"]] == [[45, 33, 75, 63]]
    require_documented(receipt)
    plain = imaging.decode((desk / "a.png").read_bytes(), name="a", max_pixels=1 << 20)
    small, came_out = imaging.scaled(plain, 120).rgb, np.asarray(Image.open(io.BytesIO(result.data)))
    assert came_out.shape == (96, 120, 3)
    largest = np.abs(came_out.astype(int) - small).max()
    assert 0 < largest == receipt["max_change_levels"] <= 12
    (desk / "out.png").write_bytes(result.data)
    again = backfire.verify(desk / "out.png", desk / "a.png", mask=desk / "m.png", settings=settings)
    assert again.receipt["edits"] == receipt["edits"]
    with pytest.raises(InputError, match=r"is 120x96, the original 160x128 under these settings"):
        backfire.verify(desk / "out.png", desk / "a.png", mask=desk / "m.png", settings=QUICK)


def test_a_small_picture_is_never_scaled_up(desk: Path) -> None:
    settings = {"regions": {"detectors": ["sidecar"], "none_found": "pass"}, "output": {"long_px": 2000}}
    result = backfire.protect(desk / "a.png", settings=settings)
    assert result.data == (desk / "a.png").read_bytes()
    assert "scaled_from" not in result.receipt


def test_what_passes_without_a_region_has_the_published_size_too(desk: Path) -> None:
    settings = {"regions": {"detectors": ["sidecar"], "none_found": "pass"}, "output": {"long_px": 80}}
    result = backfire.protect(desk / "a.png", settings=settings)
    assert (result.verdict, result.receipt["scaled_from"]) == ("unprotected", [160, 128])
    assert Image.open(io.BytesIO(result.data)).size == (80, 64)


def test_verify_takes_the_size_from_the_receipt_beside_the_picture(desk: Path) -> None:
    named = {"folders": {"inbox": "inbox"}, "output": {"long_px": 120}}
    (desk / "c.yaml").write_text(json.dumps({**named, **QUICK}))
    out = str(desk / "out.png")
    arguments = [str(desk / "a.png"), "-o", out, "-m", str(desk / "m.png"), "-c", str(desk / "c.yaml")]
    done = CliRunner().invoke(app, ["protect", *arguments])
    assert "scaled down from 160x128 pixels before it was protected" in done.stdout
    (desk / "a.mask.png").write_bytes((desk / "m.png").read_bytes())
    receipt = json.loads((desk / "out.png.receipt.json").read_bytes())
    made = how_made(desk / "out.png", None)
    assert at_size_of(made.receipt, Settings(folders=Folders(inbox=Path("i")))).output.long_px == 120
    (desk / "other.yaml").write_text(json.dumps({"folders": {"inbox": "inbox"}, **QUICK}))
    changed = how_made(desk / "out.png", desk / "other.yaml")
    assert changed.settings is not None
    assert (changed.changed, changed.settings.output.long_px) == (True, 120)
    assert receipt["scaled_from"] == [160, 128]


def cut_out(alpha: int) -> bytes:
    """The photograph with an alpha channel that is that low in and around the region, opaque elsewhere."""
    plane = np.full((128, 160), 255, np.uint8)
    plane[8:120, 24:136] = alpha  # all that may be changed
    rgba = np.dstack([np.asarray(photo()), plane])
    return encoded(Image.fromarray(rgba))


def test_what_nobody_sees_of_a_region_protects_nothing(desk: Path) -> None:
    """Edits of the stored colours may break; on white, as other tools show it, nothing has changed."""
    result = backfire.protect(cut_out(0), mask=desk / "m.png", settings=QUICK)
    assert result.verdict == "failed"
    assert "trigger edit in iopaint by flux2-mini of the picture on white" in result.receipt["reasons"][0]
    seen = {one["flattened"]: one for one in result.receipt["edits"] if one["mask_kind"] == "trigger"}
    assert seen[False]["l1"] > 0
    assert (seen[True]["l1"], seen[True]["ssim"]) == (0.0, 1.0)
    require_documented(result.receipt)


def test_what_is_half_transparent_is_judged_twice_and_what_is_opaque_once(desk: Path) -> None:
    half = backfire.protect(cut_out(128), mask=desk / "m.png", settings=QUICK)
    kinds = [(one["mask_kind"], one["flattened"]) for one in half.receipt["edits"]]
    assert kinds == [(kind, flat) for flat in (False, True) for kind, _ in kinds[: len(kinds) // 2]]
    stored, seen = (one for one in half.receipt["edits"] if one["mask_kind"] == "trigger")
    assert 0 < seen["l1"] < stored["l1"], "half of the perturbation is seen"
    again = backfire.verify(half.data, cut_out(128), mask=desk / "m.png", settings=QUICK)
    assert again.receipt["edits"] == half.receipt["edits"]
    opaque = backfire.protect(cut_out(255), mask=desk / "m.png", settings=QUICK)
    assert not any(one["flattened"] for one in opaque.receipt["edits"])


class Interrupted(Exception):
    pass


def test_progress_may_stop_the_work(desk: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "optimise":
            raise Interrupted

    with pytest.raises(Interrupted):
        backfire.protect(desk / "a.png", mask=plane(), settings=QUICK, progress=stop)


def test_the_command_prints_verdict_measurements_and_files_in_three_lines(desk: Path) -> None:
    named = {"folders": {"inbox": "inbox"}, "output": {"format": "png"}}  # as the output's extension says
    (desk / "c.yaml").write_text(json.dumps({**named, **QUICK}))
    out = desk / "out.png"
    arguments = [desk / "a.png", "-o", out, "-m", desk / "m.png", "-c", desk / "c.yaml"]
    done = CliRunner().invoke(app, ["protect", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    verdict, measured, where = done.stdout.splitlines()
    assert verdict.startswith(f"a.png -> {out}: ")
    assert "SSIM" in measured
    assert "PSNR" in measured
    assert where.strip() == f"receipt: {out}.receipt.json, before/after sheet: {out}.sheet.jpg"
    receipt = json.loads((desk / "out.png.receipt.json").read_bytes())
    assert receipt["output"] == "out.png"
    require_documented(receipt)
    mine = desk / "mine"
    mine.touch()
    written = [out, desk / "out.png.receipt.json", desk / "out.png.sheet.jpg"]
    assert {file.stat().st_mode for file in written} == {mine.stat().st_mode}, "as any file of that person's"
    same = backfire.protect(desk / "a.png", mask=desk / "m.png", settings=desk / "c.yaml")
    assert same.data == out.read_bytes(), "the command gives the bytes of the function"


def test_receipt_and_sheet_have_the_name_of_the_result_whose_extension_changes(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that name `verify` looks for them, and a second run sees in time that the result is there."""
    photo().save(desk / "b.jpg", quality=95)
    (desk / "c.yaml").write_text(
        json.dumps({**QUICK, "folders": {"inbox": "inbox"}, "output": {"format": "png"}})
    )
    out = desk / "out"
    out.mkdir()
    command = ["protect", *map(str, (desk / "b.jpg", "-o", out, "-m", desk / "m.png", "-c", desk / "c.yaml"))]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert {file.name for file in out.iterdir()} == {"b.png", "b.png.receipt.json", "b.png.sheet.jpg"}
    with pytest.raises(ConfigError, match=r"original b\.jpg of .*: no file with SHA-256"):
        how_made(out / "b.png")  # the receipt was found, and the original is looked for beside it
    monkeypatch.setattr(api, "protect", lambda *_, **__: pytest.fail("it was optimised again"))
    again = CliRunner().invoke(app, command)
    assert "b.png: exists already" in str(again.exception)


def test_a_format_that_is_not_written_is_refused_before_a_folder_is_made(desk: Path) -> None:
    command = ["protect", str(desk / "a.png"), "-o", str(desk / "new" / "x.gif")]
    told = CliRunner().invoke(app, command)
    assert isinstance(told.exception, ConfigError)
    assert "x.gif: got .gif, expected .jpg" in str(told.exception)
    assert not (desk / "new").exists()


@pytest.mark.parametrize("where", ["a.png/out/b.png", "sealed/b.png", "a.png/out"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_optimised(
    desk: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (desk / "sealed").mkdir()
    monkeypatch.setattr(api, "protect", lambda *_, **__: pytest.fail("it was optimised"))
    monkeypatch.setattr(api, "verify", lambda *_, **__: pytest.fail("it was replayed"))
    access = os.access  # to root nothing is sealed
    monkeypatch.setattr(os, "access", lambda place, mode: "sealed" not in str(place) and access(place, mode))
    pictures = [str(desk / "a.png")] * (2 if where.endswith("out") else 1)
    result = CliRunner().invoke(app, ["protect", *pictures, "-o", str(desk / where)])
    assert isinstance(result.exception, ConfigError)
    assert f"--output {desk / where}: cannot be written (" in str(result.exception)
    asked = ["verify", *pictures[:1], "--original", pictures[0], "--sheet", str(desk / where / "s.jpg")]
    result = CliRunner().invoke(app, asked)
    assert isinstance(result.exception, ConfigError)
    assert f"--sheet {desk / where / 's.jpg'}: cannot be written (" in str(result.exception)


def test_what_cannot_be_written_in_the_end_does_not_hide_the_others(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(api, "protect", lambda *_, **__: None)
    monkeypatch.setattr("backfire.cli.pictures._write", refused)
    photo().save(desk / "b.png")
    asked = ["protect", str(desk / "a.png"), str(desk / "b.png"), "-o", str(desk / "out"), "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 3
    rows = json.loads(result.stdout)
    assert len(rows) == 2
    assert all("cannot be written (Input/output error)" in row["reasons"][0] for row in rows)
