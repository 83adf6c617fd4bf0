"""The Python API on real pictures: what a stranger's script relies on."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import backfire
from backfire.cli.commands import app
from backfire.config import Folders, Protect, Settings, Verify
from backfire.detectors import Sidecar
from backfire.errors import ConfigError, InputError
from tests.support.pictures import mask_picture, photo
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


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
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
    assert 0 < np.abs(after - before).max() <= 6
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
    assert again.receipt["edits"] == result.receipt["edits"], "the very edits that decided the verdict"
    unprotected = backfire.verify(desk / "a.png", desk / "a.png", mask=plane())
    assert unprotected.verdict == "failed"
    require_documented(again.receipt)


def test_the_same_input_gives_the_same_bytes_however_it_is_handed_over(desk: Path) -> None:
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
def test_true_is_protected_in_an_array_whatever_paint_is_in_a_file(desk: Path, protected: str) -> None:
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


def test_rules_of_a_mapping_are_followed(desk: Path) -> None:
    rule = {"match": "*.png", "detectors": ["fixed"], "fixed": [{"box": [0, 0, 0.5, 1], "label": "logo"}]}
    found = backfire.detect(desk / "a.png", settings={"folders": {"inbox": str(desk)}, "rules": [rule]})
    assert ([region.label for region in found.regions], found.rule) == (["logo"], "*.png")


def test_what_cannot_be_used_says_why(desk: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.png: cannot be read .*; name a readable file"):
        backfire.protect(desk / "missing.png")
    with pytest.raises(ConfigError, match="expected a bool array H,W"):
        backfire.detect(desk / "a.png", mask=np.zeros((128, 160)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'iterations'"):
        backfire.protect(desk / "a.png", settings={"protect": {"iteration": 3}})
    with pytest.raises(InputError, match="expected the 160x128"):
        backfire.detect(desk / "a.png", mask=np.ones((20, 30), dtype=np.bool_))
    only_masks = {"regions": {"detectors": ["sidecar"]}}
    with pytest.raises(InputError, match="picture: no region found"):
        backfire.protect((desk / "a.png").read_bytes(), settings=only_masks)


class Interrupted(Exception):
    pass


def test_progress_may_stop_the_work(desk: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "optimise":
            raise Interrupted

    with pytest.raises(Interrupted):
        backfire.protect(desk / "a.png", mask=plane(), settings=QUICK, progress=stop)


def test_the_command_says_in_three_lines_what_came_of_it(desk: Path) -> None:
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
    assert receipt["output"] == str(out)
    require_documented(receipt)
    assert (desk / "out.png.sheet.jpg").is_file()
    same = backfire.protect(desk / "a.png", mask=desk / "m.png", settings=desk / "c.yaml")
    assert same.data == out.read_bytes(), "the command and the function are one"
