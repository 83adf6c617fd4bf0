"""The command `backfire detect`, run in the test's process."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from backfire.cli.commands import app
from backfire.errors import ConfigError
from tests.support.pictures import mask_picture, photo
from tests.support.sandbox import environment

RULES = """
folders: {inbox: in}
regions: {detectors: [sidecar], none_found: pass}
rules: [{match: "bugs/**", detectors: [fixed], fixed: [{box: [0.5, 0.5, 1, 1], label: bug}]}]
"""


def detect(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["detect", *map(str, arguments)])
    if isinstance(result.exception, ConfigError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def rows(*arguments: object, code: int = 0) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = json.loads(detect(*arguments, "--json", code=code))
    return parsed


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(RULES)
    (tmp_path / "in" / "bugs").mkdir(parents=True)
    photo().save(tmp_path / "in" / "a.png")
    photo().save(tmp_path / "in" / "bugs" / "b.png")
    mask_picture().save(tmp_path / "in" / "a.mask.png")
    return tmp_path


def test_regions_come_from_what_the_pictures_rule_says(desk: Path) -> None:
    found = rows(desk / "in" / "a.png", desk / "in" / "bugs" / "b.png", "-c", desk / "c.yaml")
    assert [(row["rule"], [r["label"] for r in row["regions"]]) for row in found] == [
        (None, ["mask"]),
        ("bugs/**", ["bug"]),
    ]
    assert found[0]["regions"][0] == {
        "box": [60, 44, 100, 84],
        "label": "mask",
        "score": 1.0,
        "detector": "sidecar",
    }
    assert (found[1]["width"], found[1]["regions"][0]["box"]) == (160, [80, 64, 160, 128])


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_the_sheet_shows_the_regions(desk: Path, name: str) -> None:
    sheet = desk / name
    said = detect(desk / "in" / "a.png", "--sheet", sheet, "-c", desk / "c.yaml")
    assert "sidecar" in said
    with Image.open(sheet) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    red = (drawn[..., 0] > 180) & (drawn[..., 1] < 90) & (drawn[..., 2] < 90)
    assert red.sum() > 200


@pytest.mark.parametrize("name", ["s.png", "s.jpg"])
def test_an_earlier_sheet_is_replaced_and_nothing_else(desk: Path, name: str) -> None:
    """`--sheet *.png` names a picture first, which would be lost."""
    picture, other = desk / "in" / "a.png", desk / f"other{Path(name).suffix}"
    Image.open(picture).convert("RGB").save(other)
    for named in (other, *([picture] if name.endswith(".png") else [])):
        before = named.read_bytes()
        with pytest.raises(ConfigError, match="exists already and is no sheet"):
            detect(picture, "--sheet", named, "-c", desk / "c.yaml")
        assert named.read_bytes() == before
    for _ in range(2):
        detect(picture, "--sheet", desk / name, "-c", desk / "c.yaml")


@pytest.mark.parametrize("none_found", ["fail", "review"])
def test_where_nothing_is_found_the_sheet_shows_the_picture_and_the_remedy_is_the_commands_own(
    desk: Path, none_found: str
) -> None:
    (desk / "n.yaml").write_text(f"folders: {{inbox: in}}\nregions: {{none_found: {none_found}}}")
    (desk / "in" / "a.mask.png").unlink()
    told = detect(desk / "in" / "a.png", "--sheet", desk / "s.png", "-c", desk / "n.yaml", code=3)
    assert "no region found by sidecar, faces" in told
    assert "name that with -m mask.png" in told
    with Image.open(desk / "s.png") as sheet, Image.open(desk / "in" / "a.png") as picture:
        shown, whole = (np.asarray(one.convert("RGB")) for one in (sheet, picture))
    assert (shown == whole[64, 80]).all(axis=2).any(), "the picture itself is on it"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_that_was_asked_for_has_the_rights_that_the_users_umask_leaves(desk: Path, umask: int) -> None:
    """The program's own umask is for what the daemon writes."""
    sheet = desk / "s.png"
    command = [sys.executable, "-m", "backfire.cli", "detect", str(desk / "in" / "a.png")]
    command += ["--sheet", str(sheet), "-c", str(desk / "c.yaml")]
    subprocess.run(command, umask=umask, check=True, stdout=subprocess.DEVNULL)
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o666 & ~umask


def test_a_sheet_that_shows_nothing_is_not_written_and_it_is_said(desk: Path) -> None:
    (desk / "bad.png").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["detect", str(desk / "bad.png"), "--sheet", str(desk / "s.png")])
    assert result.exit_code == 3
    assert "not written, as none of the pictures can be read" in " ".join(result.output.split())
    assert not (desk / "s.png").exists()


def test_annotations_can_be_given_by_hand(desk: Path) -> None:
    (desk / "x.json").write_text('{"regions": [{"label": "car", "box": [1, 2, 30, 40]}]}')
    (row,) = rows(desk / "in" / "a.png", "-m", desk / "x.json", "-c", desk / "c.yaml")
    assert [region["label"] for region in row["regions"]] == ["car"]


def test_a_picture_that_fails_does_not_hide_the_others(desk: Path) -> None:
    (desk / "bad.png").write_bytes(b"no picture")
    bad, good = rows(desk / "bad.png", desk / "in" / "a.png", "-c", desk / "c.yaml", code=3)
    assert (bad["code"], len(good["regions"])) == ("unsupported", 1)
    assert "bad.png" in bad["error"]


def test_a_picture_that_cannot_be_read_does_not_hide_the_others(desk: Path) -> None:
    gone, good = desk / "gone.png", desk / "in" / "a.png"
    bad, shown = rows(gone, good, "-c", desk / "c.yaml", code=3)
    assert (bad["code"], len(shown["regions"])) == ("config", 1)
    assert "gone.png: cannot be read" in bad["error"]
    with pytest.raises(ConfigError, match=r"gone\.png: cannot be read"):
        detect(gone)


def test_names_are_printed_whole(desk: Path) -> None:
    picture = desk / "in" / ("n" * 150 + ".png")
    photo().save(picture)
    (desk / "x.json").write_text(json.dumps({"regions": [{"label": "é" * 60, "box": [1, 2, 30, 40]}]}))
    told = detect(picture, "-m", desk / "x.json", "-c", desk / "c.yaml")
    assert str(picture) in told.splitlines()
    assert told.count("é") == 60


def test_a_sheet_of_another_kind_is_refused(desk: Path) -> None:
    with pytest.raises(ConfigError, match=r"got \.gif, expected \.jpg or \.png"):
        detect(desk / "in" / "a.png", "--sheet", "x.gif")


def test_what_is_logged_does_not_come_between_the_json(desk: Path) -> None:
    (desk / "in" / "a.mask.png").unlink()
    (desk / "in" / "all.coco.json").write_text('{"images": [], "annotations": []}')
    command = [sys.executable, "-m", "backfire.cli", "detect", "in/a.png", "--json", "-c", "c.yaml"]
    told = subprocess.run(command, cwd=desk, capture_output=True, text=True, check=True, env=environment())
    assert "no_annotation" in told.stderr
    assert [row["regions"] for row in json.loads(told.stdout)] == [[]]
