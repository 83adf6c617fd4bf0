"""The commands for a first start: `init`, `man`, and completion in the shell."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from backfire import config
from backfire.admin.init import init
from backfire.cli import manual
from backfire.cli.commands import app
from backfire.config.example import ESSENTIAL, starter
from backfire.errors import ConfigError


def test_init_writes_a_configuration_that_works_and_makes_its_folders(tmp_path: Path) -> None:
    home = tmp_path / "new" / "place of pictures"
    told = CliRunner().invoke(app, ["init", str(home)], catch_exceptions=False)
    settings = config.load(home / "config.yaml")
    assert settings == config.parse({"folders": {"inbox": "inbox"}}, base=home)
    assert [folder for folder in settings.folders.named().values() if not folder.is_dir()] == []
    assert [line.partition("#")[0].strip() for line in told.stdout.splitlines()[-3:]] == [
        f"backfire check -c '{home}/config.yaml'",
        f"backfire once -c '{home}/config.yaml'",
        f"backfire run -c '{home}/config.yaml'",
    ]


def test_init_here_needs_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["init"], catch_exceptions=False)
    commands = [line.partition("#")[0].strip() for line in told.stdout.splitlines()[-3:]]
    assert commands == ["backfire check", "backfire once", "backfire run"]
    assert (tmp_path / "inbox").is_dir()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "waits.jpg").write_bytes(b"picture")
    init(tmp_path)
    (tmp_path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: exists already and is kept"):
        init(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"
    assert (tmp_path / "inbox" / "waits.jpg").read_bytes() == b"picture"
    with pytest.raises(ConfigError, match=r"below: cannot be made \(Not a directory\)"):
        init(tmp_path / "config.yaml" / "below")


def test_the_new_configuration_explains_the_essential_settings() -> None:
    lines = starter().splitlines()
    for path in ESSENTIAL:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"  {path.partition('.')[2]}:")]
        assert lines[at - 1].startswith("  # ")


def test_the_manual_page_names_every_command_and_option() -> None:
    root = typer.main.get_command(app)
    page = manual.page(root).replace("\\-", "-")
    for section in ("NAME", "SYNOPSIS", "OPTIONS", "COMMANDS", "EXIT STATUS", "FILES"):
        assert f".SH {section}\n" in page
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", {"": command}):
            assert f".SS {f'backfire {name} {inner}'.rstrip()}" in page
    assert "\\fB--failed\\fR\nAll that failed or were set aside." in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_the_manual_page_is_sound_roff() -> None:
    page = manual.page(typer.main.get_command(app))
    made = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8"], input=page, capture_output=True, text=True, check=True
    )
    assert made.stderr == ""
    assert "backfire retry" in re.sub(".\b", "", made.stdout)  # a bold letter is printed twice, over itself


def test_a_shell_completes_commands() -> None:
    asked = {"_BACKFIRE_COMPLETE": "complete_bash", "COMP_WORDS": "backfire re", "COMP_CWORD": "1"}
    told = CliRunner().invoke(app, [], env=asked, prog_name="backfire", catch_exceptions=False)
    assert told.stdout.split() == ["retry", "release"]
