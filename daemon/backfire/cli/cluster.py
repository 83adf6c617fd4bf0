"""The command `cluster check`."""

from __future__ import annotations

import typer

from backfire import config
from backfire.cli.check import report
from backfire.cli.common import DEFAULT, AsJson, Config, app

commands = typer.Typer(help="A Ray cluster whose machines work the pictures.", no_args_is_help=True)
app.add_typer(commands, name="cluster")


@commands.command()
def check(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Compare versions, weights and devices of all nodes of the cluster, and name the node that differs."""
    from backfire.admin.cluster import check as findings

    report(findings(config.load(config_file)), as_json=as_json)
