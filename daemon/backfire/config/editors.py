"""The sections `editors` and `models`: editors of the user's own, and where fetched weights lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator

from backfire.config.section import Section
from backfire.errors import ConfigError


class DeclaredEditor(Section):
    """An editor beside the built-in ones; keys other than these are options of its kind."""

    model_config = ConfigDict(extra="allow")

    kind: str
    """Which class loads the editor: one of `backfire.inpaint.KINDS`."""
    weights: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files or folders, names that `backfire models list` shows, or what else the kind understands,
    such as a hub name; paths are absolute once the file is loaded."""
    start: Path | None = None
    """A file of stored starts for these weights, which `python -m training start` makes; see
    `protect.stored_start`."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are handed to the kind's loader."""
        return dict(self.model_extra or {})

    @field_validator("weights", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


NO_HOME = "there is no such home folder"


def _models_home() -> Path:
    """The folder that the XDG base directory specification gives to an application's own data.

    Raises:
        ConfigError: the user has no home folder, as with a number of its own in a container.
    """
    home = os.environ.get("XDG_DATA_HOME", "")
    try:
        data = Path(home) if home.startswith("/") else Path("~/.local/share").expanduser()
    except RuntimeError:
        remedy = "set models.folder in the configuration, or HOME or XDG_DATA_HOME in the environment"
        raise ConfigError(
            f"models.folder: lies in ~/.local/share by default, but {NO_HOME}; {remedy}"
        ) from None
    return data / "backfire/models"


class Models(Section):
    """Where fetched weights lie."""

    folder: Path = Field(default_factory=_models_home)
    """The folder of fetched weights; null is backfire/models in the user's data folder (~/.local/share)."""

    @field_validator("folder", mode="before")
    @classmethod
    def _default(cls, value: object) -> object:
        return _models_home() if value is None else value
