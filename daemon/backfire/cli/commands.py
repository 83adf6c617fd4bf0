"""All commands: each module adds its own to the app in `common`."""

from __future__ import annotations

import os
from typing import Annotated, NoReturn

import typer

from backfire import __version__
from backfire.cli import (
    archive,
    check,
    cluster,
    common,
    detect,
    init,
    jobs,
    models,
    page,
    pictures,
    review,
    serve,
    sheet,
    today,
)
from backfire.cli.common import BAD_CONFIG, BAD_STORE, INTERRUPTED, SOME_FAILED, UNAVAILABLE, app
from backfire.errors import BackfireError, ConfigError, StoreError, UnavailableError

__all__ = [
    "app",
    "archive",
    "check",
    "cluster",
    "detect",
    "init",
    "jobs",
    "models",
    "page",
    "pictures",
    "review",
    "run",
    "serve",
    "sheet",
    "today",
]


def run() -> None:
    """Run the program; errors of Backfire and of files become a message and an exit code and no traceback."""
    common.users_umask = os.umask(0o027)
    try:
        app()
    except UnavailableError as error:
        _refuse(str(error), UNAVAILABLE)
    except ConfigError as error:
        _refuse(str(error), BAD_CONFIG)
    except StoreError as error:
        _refuse(str(error), BAD_STORE)
    except BackfireError as error:
        _refuse(str(error), SOME_FAILED)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        if error.filename is None:  # a bug, and not a file that somebody named
            raise
        _refuse(f"{error.filename}: {error.strerror}", BAD_CONFIG)


def _refuse(message: str, code: int) -> NoReturn:
    common.print_error(message)
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
