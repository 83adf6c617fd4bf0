"""The command `page`: the status page in a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from backfire import config
from backfire.cli.common import DEFAULT, Config, app, err, out
from backfire.config import Serve, Settings
from backfire.errors import ConfigError
from backfire.web.options import Options


@app.command()
def page(
    token: Annotated[
        bool,
        typer.Option("--token", help="Print the token, and the addresses that unlock the page, and exit."),
    ] = False,
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Make another token first; it locks all browsers out.")
    ] = False,
    config_file: Config = DEFAULT,
) -> None:
    """Serve the status page at serve.page until stopped; it changes nothing without its token."""
    settings = config.load(config_file)
    address = settings.serve.page_address
    if address is None:
        raise ConfigError(f"{config_file}: serve.page is not set; write serve: {{page: 127.0.0.1:9480}}")
    secret = _token(settings, new=new_token)
    if token or new_token:
        out.print(secret, markup=False)
        for place in _reached_at(settings.serve):
            out.print(f"{place}/unlock#{secret}", markup=False, soft_wrap=True)
        return
    err.print(
        f"the status page is at {settings.serve.page}; to unlock it: backfire page --token", markup=False
    )
    # The page's process loads neither the configuration's libraries nor those of the other commands.
    options = options_of(settings, config_file, address)
    os.execv(sys.executable, [sys.executable, "-m", "backfire.web", options.to_json()])


def _reached_at(serve: Serve) -> list[str]:
    """Where browsers find the page: at its port on this machine, and by the name under which a proxy asks.

    A socket without such a name is reached through a tunnel, whose port its user must add.
    """
    here = [] if isinstance(serve.page_address, Path) else [f"http://{serve.page}"]
    proxy = [f"https://{host}" for host in serve.allowed_hosts if not host.startswith("*")][:1]
    return here + proxy or ["http://localhost"]


def _token(settings: Settings, *, new: bool) -> str:
    from backfire.web.guard import token as token_of  # the web stack would slow every other command down

    try:
        settings.folders.state.mkdir(parents=True, exist_ok=True)
        return token_of(settings.folders.state, new=new)
    except OSError as error:
        raise ConfigError(
            f"{settings.folders.state}: the page's token cannot be kept there ({error.strerror}); "
            "run this as the user of the daemon"
        ) from error


def options_of(settings: Settings, config_file: Path, address: tuple[str, int] | Path) -> Options:
    """What the page's process is told of a configuration."""
    from backfire.attack_paths import PATHS  # the arithmetic that it needs would slow every command down

    asked = [(rule.pattern, rule.verify) for rule in settings.rules] + [(".*", settings.verify)]
    read = [(rule.pattern, rule.regions) for rule in settings.rules] + [(".*", settings.regions)]
    return Options(
        config=config_file.absolute(),
        folders=settings.folders.named(),
        address=address,
        allowed_hosts=settings.serve.allowed_hosts,
        priorities=settings.watch.priorities,
        thresholds=tuple((pattern, _thresholds(verify.model_dump())) for pattern, verify in asked),
        masks=tuple(
            (pattern, regions.sidecar.protected if "sidecar" in regions.detectors else "")
            for pattern, regions in read
        ),
        mask_wait_s=settings.watch.mask_wait_s,
        tools={name: path.tool for name, path in PATHS.items()},
    )


def _thresholds(verify: dict[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in verify.items() if isinstance(value, float)}
