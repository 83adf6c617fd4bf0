"""The command `page`: the addresses that it prints are those at which browsers find the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backfire.cli.commands import app


@pytest.mark.parametrize(
    ("serve", "places"),
    [
        ("page: 127.0.0.1:9480", ["http://127.0.0.1:9480"]),
        (
            "page: 127.0.0.1:9480, allowed_hosts: [desk.example]",
            ["http://127.0.0.1:9480", "https://desk.example"],
        ),
        (
            "page: unix:/run/backfire/page.sock, allowed_hosts: ['*.example', desk.example]",
            ["https://desk.example"],
        ),
        ("page: unix:/run/backfire/page.sock", ["http://localhost"]),
    ],
)
def test_the_token_is_printed_with_the_addresses_of_the_page(
    serve: str, places: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{inbox: inbox}}\nserve: {{{serve}}}\n")
    told = CliRunner().invoke(app, ["page", "--token", "-c", str(file)], catch_exceptions=False)
    secret, *addresses = told.stdout.splitlines()
    assert secret == (tmp_path / "state" / "page-token").read_text().strip()
    assert addresses == [f"{place}/unlock#{secret}" for place in places]


def test_the_command_line_of_the_page_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "folders: {inbox: inbox}\nserve: {page: 127.0.0.1:9480}\n"
        "hooks: {webhook: 'https://desk:SECRET@host/SECRET'}\n"
    )
    started: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.extend(command))
    CliRunner().invoke(app, ["page", "-c", str(file)], catch_exceptions=False)
    assert str(file) in " ".join(started)
    assert "SECRET" not in " ".join(started)
