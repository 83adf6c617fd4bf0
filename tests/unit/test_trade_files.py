"""Faults that were found on files and folders as the trade has them, each test by the fault's number."""

from __future__ import annotations

from pathlib import Path

import pytest
from backfire.config import IGNORE
from backfire.files import inbox

BASKETS = """
    #recycle, @Recycle, $RECYCLE.BIN, $Recycle.Bin, Recycler, #snapshot, @Recently-Snapshot, @__thumb, @eaDir,
    .@__thumb, lost+found, found.000, .zfs, .snapshot, ~snapshot, .Trash-1000, .Trashes, Network Trash Folder,
    @GMT-2026.11.24-08.00.00, __MACOSX, System Volume Information
"""
TEMPORARY = """
    photo.jpg~RF3a2b1c.TMP, ps8A1F.tmp, psE2.TMP, X.JPG.PART, X.JPG.FilePart, photo.jpg.1a2b3c4d.partial,
    x.jpg.!qB, x.jpg.!ut, x.jpg.aria2, x.jpg.download, X.CRDOWNLOAD, THUMBS.DB, Desktop.ini
"""


@pytest.mark.parametrize("folder", map(str.strip, BASKETS.split(",")))
def test_trade_fault_8_waste_baskets_snapshots_and_thumbnails_are_left_alone(
    tmp_path: Path, folder: str
) -> None:
    for place in (folder, f"desk/{folder}/deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "old.jpg").touch()
    (tmp_path / "desk" / "new.jpg").touch()
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"desk/new.jpg"}


@pytest.mark.parametrize("name", map(str.strip, TEMPORARY.split(",")))
def test_trade_fault_9_temporary_names_are_no_pictures_in_either_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "part.jpg").touch()
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"part.jpg"}
