"""The command `backfire`. Each module adds its commands to the app in `common`."""

from __future__ import annotations

import os
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from backfire import __version__
from backfire.cli import archive, check, detect, init, jobs, models, pictures, serve
from backfire.cli.common import BAD_CONFIG, BAD_STORE, SOME_FAILED, app, err
from backfire.errors import BackfireError, ConfigError, StoreError

__all__ = ["archive", "check", "detect", "init", "jobs", "main", "models", "pictures", "serve"]


def main() -> None:
    """Run the program; errors of Backfire become a message and an exit code and not a traceback."""
    os.umask(0o027)
    try:
        app()
    except ConfigError as error:
        _refuse(str(error), BAD_CONFIG)
    except StoreError as error:
        _refuse(str(error), BAD_STORE)
    except BackfireError as error:
        _refuse(str(error), SOME_FAILED)


def _refuse(message: str, code: int) -> NoReturn:
    err.print(Text(f"backfire: {message}", style="red"), soft_wrap=True)
    raise SystemExit(code)


def _version(value: bool) -> None:
    if value:
        print(f"backfire {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
