"""The command `check`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.text import Text

from backfire import config
from backfire.cli.common import DEFAULT, SOME_FAILED, AsJson, Config, app, out, printable

if TYPE_CHECKING:
    from backfire.admin.probes import Check


@app.command()
def check(config_file: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Say whether the daemon can work here: folders, space, file systems, devices, detectors, weights."""
    from backfire.admin.check import check as findings

    report(findings(config.load(config_file)), as_json=as_json)


def report(findings: Iterable[Check], *, as_json: bool) -> NoReturn:
    """Print the lines of a check and exit, with a code that says whether all of them are good."""
    found = []
    for finding in findings:  # each is printed when it is known, as the estimate of the time takes minutes
        found.append(finding)
        if not as_json:
            mark = Text("ok  ", "green") if finding.ok else Text("BAD ", "red")
            out.print(mark + Text(printable(f"{finding.subject}: {finding.found}")), soft_wrap=True)
            if not finding.ok:
                out.print(Text(f"      {printable(finding.remedy)}"), soft_wrap=True)
    if as_json:
        rows = [{"subject": f.subject, "ok": f.ok, "found": f.found, "remedy": f.remedy} for f in found]
        print(json.dumps(rows, indent=2))
    raise typer.Exit(0 if all(f.ok for f in found) else SOME_FAILED)
