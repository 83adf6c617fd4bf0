"""Which configuration a published picture belongs to where nobody names one.

Such a file may have come with the picture, so it is used with care: it runs nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from backfire import config, weights
from backfire.config import Settings
from backfire.errors import ConfigError
from backfire.files import safe_paths
from backfire.inpaint import KINDS

CONFIGURATION = "config.yaml"
CODE = "command", "torchscript"
"""The detectors that run a program or a model that is code, which the configuration names."""


@dataclass(frozen=True)
class Configuration:
    """A configuration.

    Attributes:
        belongs: whether somebody named it or the picture lies in its outbox.
    """

    file: Path
    settings: Settings
    belongs: bool


def found_for(published: Path) -> tuple[Configuration | None, list[str]]:
    """The configuration that a picture belongs to, though nobody named it, and why others were left aside.

    It is that in the working folder or above the picture whose outbox the picture lies in, else that in the
    working folder. One that cannot be used is most likely another program's.
    """
    place = absolute(published)
    here: Configuration | None = None
    unusable: list[str] = []
    for folder in dict.fromkeys((Path.cwd(), *place.parents)):
        file = folder / CONFIGURATION
        if not safe_paths.is_regular(file):
            continue
        shown_as = Path(CONFIGURATION) if folder == Path.cwd() else file
        try:
            settings = config.load(shown_as)
        except ConfigError as error:
            why = str(error).splitlines()[0].removeprefix(f"{shown_as}: ")
            unusable.append(f"{shown_as} cannot be used ({why})")
            continue
        if settings.folders.outbox in place.parents:
            return Configuration(shown_as, settings, belongs=True), unusable
        if folder == Path.cwd():
            here = Configuration(shown_as, settings, belongs=False)
    return here, unusable


def absolute(published: Path) -> Path:
    """The path without `..`, which `Path.absolute` keeps, so that the folders above it are those it is in."""
    return Path(os.path.abspath(published))


def require_no_programs(settings: Settings, file: Path, published: Path) -> None:
    """Refuse settings that nobody named and that would run code: they may have come with the picture.

    What `hooks` and `provenance` name is not run by `verify`. A pipeline counts as code because its folder
    names the classes that load it, and its hub name makes this machine fetch it.

    Raises:
        ConfigError: the setting, and that the configuration has to be named.
    """
    codes = [f"regions.detectors: {name}" for name in settings.regions.detectors if name in CODE]
    codes += [
        f"editors.{name}"
        for name, editor in settings.editors.items()
        if editor.kind == "torchscript"
        or editor.options.get("trust")
        or (editor.kind in KINDS and KINDS[editor.kind].hub and {*editor.weights} - {*weights.catalogue()})
    ]
    if codes:
        raise ConfigError(
            f"{published}: {file}, with which it was made, names programs or models that are code "
            f"({', '.join(codes)}), and nobody named that file; if you trust it, name it with -c {file}"
        )
