"""The section `watch`: how the inbox is watched."""

from __future__ import annotations

import posixpath
from typing import Literal

from pydantic import Field, field_validator

from backfire.config.section import Positive, Seconds, Section
from backfire.types import composed

IGNORE = (
    ".*", "~*", "*.tmp", "*.part", "*.partial", "*.filepart", "*.crdownload", "*.opdownload", "*.download",
    "*.aria2", "*.!qB", "*.!ut", "*.!bt",
    "#recycle", "@Recycle", "$RECYCLE.BIN", "RECYCLER", "lost+found", "found.[0-9][0-9][0-9]",
    "Network Trash Folder", "Temporary Items", "#snapshot", "@snapshot", "@Recently-Snapshot", "@GMT-*",
    "System Volume Information", "@eaDir", "@__thumb", "@tmp", "__MACOSX", "Thumbs.db", "ehthumbs.db",
    "desktop.ini",
)  # fmt: skip
"""Patterns (fnmatch) of the names of files and folders that hold no picture, or none yet: what is still being
written or loaded, and waste baskets, snapshots and thumbnails of file servers. Hidden ones, such as .zfs,
.snapshot, .Trash-1000 and .stfolder, are among those that begin with a dot."""


class Watch(Section):
    """How the inbox is watched."""

    mode: Literal["auto", "inotify", "polling"] = "auto"
    """How new files are noticed early; auto polls on file systems that report no events."""
    settle_s: Seconds = 5
    """The seconds for which a file must not change before it counts as complete."""
    rescan_s: Positive = 30
    """The seconds between two scans of the inbox, which find everything; file events only come sooner."""
    mask_wait_s: Seconds = 10
    """The seconds that a complete picture waits for its masks, unless five pictures or more of its folder are
    known and none of them had any."""
    incomplete_wait_s: Seconds = 60
    """The further seconds that a file whose data end too early may stay unchanged, since copies stall."""
    proof: Literal["none", "done", "sha256"] = "none"
    """What a picture waits for: nothing, a file NAME.EXT.done, or a file NAME.EXT.sha256 that fits it."""
    priorities: dict[str, int] = Field(default_factory=dict)
    """Folders of the inbox that are served earlier or later than the others, which have 0; for example
    {urgent: 10, archive/2019: -5}."""
    ignore: tuple[str, ...] = IGNORE
    """Patterns of the names of files and folders that hold no picture, or none yet, in upper or lower case; a
    list of your own takes the place of this one."""

    @field_validator("priorities")
    @classmethod
    def _plain_folders(cls, value: dict[str, int]) -> dict[str, int]:
        """The folders as pictures' paths have them: `./urgent/` is `urgent`, and `.` is the inbox itself."""
        found: dict[str, int] = {}
        for folder, rank in value.items():
            plain = posixpath.normpath(composed(folder)) if folder else ""
            if not plain or plain.startswith("/") or ".." in plain.split("/"):
                raise ValueError(
                    f"watch.priorities: got {folder!r}, expected a folder below the inbox, such as 'urgent'; "
                    "write its path from the inbox on"
                )
            if found.setdefault(plain, rank) != rank:
                raise ValueError(
                    f"watch.priorities: {plain!r} is named twice, with {found[plain]} and {rank}; keep one"
                )
        return found

    @property
    def proof_ending(self) -> bytes:
        """How the names of proof files end; empty where none are used."""
        return b"" if self.proof == "none" else f".{self.proof}".encode()
