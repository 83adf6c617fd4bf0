"""`backfire init`: a commented configuration and the folders that it names."""

from __future__ import annotations

import os
from pathlib import Path

from backfire import config
from backfire.config.example import starter
from backfire.errors import ConfigError

NAME = "config.yaml"


def init(folder: Path, long_px: int | None = None) -> Path:
    """Write a configuration into a folder and make the folders beside it; nothing is overwritten.

    Args:
        folder: where the configuration and the folders are to be; made where it is missing.
        long_px: `output.long_px`, 64 or more; None keeps the size of every picture.

    Returns:
        The configuration's file.

    Raises:
        ConfigError: there is a configuration already, or something cannot be written there.
    """
    file = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(starter(long_px))
        for made in config.load(file).folders.named().values():
            made.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename}: exists already and is kept; name another folder") from error
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be made ({error.strerror})") from error
    return file
