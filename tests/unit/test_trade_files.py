"""Faults that were found on files and folders as the trade has them, each test by the fault's number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backfire import config
from backfire.config import IGNORE
from backfire.errors import ConfigError
from backfire.files import inbox
from backfire.service.queue import priority

BASKETS = """
    #recycle, @Recycle, $RECYCLE.BIN, $Recycle.Bin, Recycler, #snapshot, @Recently-Snapshot, @__thumb, @eaDir,
    .@__thumb, lost+found, found.000, .zfs, .snapshot, ~snapshot, .Trash-1000, .Trashes, Network Trash Folder,
    @GMT-2026.11.24-08.00.00, __MACOSX, System Volume Information
"""
TEMPORARY = """
    photo.jpg~RF3a2b1c.TMP, ps8A1F.tmp, psE2.TMP, X.JPG.PART, X.JPG.FilePart, photo.jpg.1a2b3c4d.partial,
    x.jpg.!qB, x.jpg.!ut, x.jpg.aria2, x.jpg.download, X.CRDOWNLOAD, THUMBS.DB, Desktop.ini
"""


@pytest.mark.parametrize("folder", [*map(str.strip, BASKETS.split(","))])
def test_trade_fault_8_waste_baskets_snapshots_and_thumbnails_are_left_alone(
    tmp_path: Path, folder: str
) -> None:
    for place in (folder, f"desk/{folder}/deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "old.jpg").touch()
    (tmp_path / "desk" / "new.jpg").touch()
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"desk/new.jpg"}


@pytest.mark.parametrize("name", [*map(str.strip, TEMPORARY.split(","))])
def test_trade_fault_9_temporary_names_are_no_pictures_in_either_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "part.jpg").touch()
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"part.jpg"}


@pytest.mark.parametrize("inbox", ["", " ", ".", "./", "..", "conf/.."])
def test_trade_fault_13_the_configuration_is_never_in_its_inbox(tmp_path: Path, inbox: str) -> None:
    (tmp_path / "home" / "conf").mkdir(parents=True)
    file = tmp_path / "home" / "config.yaml"
    others = "outbox: /o/outbox, archive: /o/archive, failed: /o/failed, reports: /o/reports, state: /o/state"
    file.write_text(f'folders: {{inbox: "{inbox}", {others}}}')
    with pytest.raises(ConfigError, match=r"(?s)inbox.*(is empty|taken for a picture).*name"):
        config.load(file)


def test_trade_fault_13_a_link_to_a_configuration_elsewhere_may_not_lie_there_either(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{inbox: {tmp_path}/inbox}}")
    assert config.load(file).folders.inbox == tmp_path / "inbox"
    (tmp_path / "inbox" / "link.yaml").symlink_to(file)
    with pytest.raises(ConfigError, match="taken for a picture"):
        config.load(tmp_path / "inbox" / "link.yaml")


@pytest.mark.parametrize("setting", ["folders.outbox", "folders.state", "regions.logos.folder"])
def test_trade_fault_13_no_path_may_be_empty(tmp_path: Path, setting: str) -> None:
    sections: dict[str, Any] = {"folders": {"inbox": "inbox"}}
    *above, last = setting.split(".")
    place = sections
    for name in above:
        place = place.setdefault(name, {})
    place[last] = ""
    with pytest.raises(ConfigError, match=f"{setting}.*empty"):
        config.parse(sections, base=tmp_path)


@pytest.mark.parametrize("folder", ["urgent", "urgent/", "./urgent", "urgent//", "desk/../urgent"])
def test_trade_fault_15_folders_with_slashes_have_their_priority(tmp_path: Path, folder: str) -> None:
    watch = {"priorities": {folder: 10, "./": 1}}
    settings = config.parse({"folders": {"inbox": "inbox"}, "watch": watch}, base=tmp_path)
    assert priority(b"urgent/a/b.jpg", settings.watch.priorities) == 10
    assert priority(b"other/b.jpg", settings.watch.priorities) == 1


@pytest.mark.parametrize("folder", ["", "/urgent", "../urgent", "/"])
def test_trade_fault_15_folders_that_no_picture_can_lie_in_are_refused(tmp_path: Path, folder: str) -> None:
    watch = {"priorities": {folder: 10}}
    with pytest.raises(ConfigError, match=r"watch\.priorities.*below the inbox"):
        config.parse({"folders": {"inbox": "inbox"}, "watch": watch}, base=tmp_path)


@pytest.mark.parametrize(
    ("match", "remedy"),
    [
        ("./x/*.jpg", r"write 'x/\*\.jpg'"),
        ("portraits/", r"write 'portraits/\*\*'"),
        ("a//b", "write 'a/b'"),
        ("/srv/inbox/**", "below the inbox"),
        ("../x/**", "below the inbox"),
        ("", "fits no path"),
    ],
)
def test_trade_fault_15_rules_that_can_fit_no_path_are_refused(
    tmp_path: Path, match: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)rules\.0.*{remedy}"):
        config.parse({"folders": {"inbox": "inbox"}, "rules": [{"match": match}]}, base=tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "dead"),
    [
        ("**", "x/*.jpg", True),
        ("x/**", "x/y/*.jpg", True),
        ("x/*.jpg", "x/*.jpg", True),
        ("x/**", "xy/*.jpg", False),
        ("x/*.jpg", "x/**", False),
        ("*/**", "**/a.jpg", False),
    ],
)
def test_trade_fault_15_rules_behind_one_that_fits_more_are_refused(
    tmp_path: Path, first: str, second: str, dead: bool
) -> None:
    sections = {"folders": {"inbox": "inbox"}, "rules": [{"match": first}, {"match": second}]}
    if dead:
        with pytest.raises(ConfigError, match=r"rules\.1.*can never count.*rules\.0"):
            config.parse(sections, base=tmp_path)
    else:
        assert len(config.parse(sections, base=tmp_path).rules) == 2
