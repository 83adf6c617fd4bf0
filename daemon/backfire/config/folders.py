"""The section `folders`: where pictures come from and go to."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from backfire.config.section import Section

DATABASE = "backfire.sqlite"
"""The name of the job database in the state folder."""


class Folders(Section):
    """Where pictures come from and go to; all folders but the inbox lie beside it unless set."""

    inbox: Path
    """The folder that pictures and their masks are dropped into."""
    outbox: Path = Path("outbox")
    """The folder of the protected copies."""
    archive: Path = Path("archive")
    """The folder of the unchanged originals of what was published."""
    failed: Path = Path("failed")
    """The folder of the originals that could not be protected, each with NAME.EXT.error.json."""
    review: Path = Path("review")
    """The folder of the originals that a person is to decide about, each with NAME.EXT.review.json."""
    reports: Path = Path("reports")
    """The folder of the receipts (NAME.EXT.json) and before/after sheets (NAME.EXT.sheet.jpg)."""
    state: Path = Path("state")
    """The folder of the job database and of private copies, which must be on a local disk."""

    @property
    def database(self) -> Path:
        """The file of the job database."""
        return self.state / DATABASE

    @property
    def spool(self) -> Path:
        """The folder of the jobs' private folders, which is made once the database has a job."""
        return self.state / "spool"

    def named(self) -> dict[str, Path]:
        """All folders by the names of their settings."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @model_validator(mode="after")
    def _apart(self) -> Folders:
        folders = list(self.named().items())
        for i, (name, path) in enumerate(folders):
            for other_name, other in folders[i + 1 :]:
                if path == other or path in other.parents or other in path.parents:
                    raise ValueError(
                        f"{name} {path} and {other_name} {other} lie inside each other or are the "
                        f"same; results would be taken in again; move {other_name} elsewhere"
                    )
        return self
