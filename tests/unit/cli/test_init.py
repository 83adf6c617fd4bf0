"""The commands for a first start: `init`, `man`, and completion in the shell."""

from __future__ import annotations

import ast
import os
import pty
import re
import shutil
import subprocess
import sys
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
from tests.support.sandbox import environment

ERRORS = Path(__file__).parents[3] / "docs/reference/errors.md"


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


def at_terminal(typed: bytes, *arguments: str) -> str:
    """What `backfire init` shows at a terminal at which somebody types."""
    ours, terminal = pty.openpty()
    os.write(ours, typed)
    ran = subprocess.run(
        [sys.executable, "-m", "backfire.cli", "init", *arguments],
        stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(), timeout=60, check=False,
    )  # fmt: skip
    os.close(terminal)
    os.close(ours)
    return ran.stdout


def long_px(folder: Path) -> int | None:
    return config.load(folder / "config.yaml").output.long_px


@pytest.mark.parametrize(("typed", "expected"), [(b"\n", None), (b"12\nlarge\n2048\n", 2048)])
def test_init_asks_at_a_terminal_how_large_pictures_are_published(
    tmp_path: Path, typed: bytes, expected: int | None
) -> None:
    told = at_terminal(typed, str(tmp_path / "new"))
    assert long_px(tmp_path / "new") == expected
    assert told.count("Longer side of published pictures in pixels") == typed.count(b"\n")
    for wrong in (b"12", b"large"):
        refused = f"output.long_px: got {wrong.decode()!r}, expected a number of pixels, 64 or more" in told
        assert refused == (wrong in typed)


def test_init_asks_nothing_where_the_answer_is_given_or_nobody_would_see_the_question(tmp_path: Path) -> None:
    given = at_terminal(b"512\n", str(tmp_path / "given"), "--long-px", "1600")
    as_json = at_terminal(b"512\n", str(tmp_path / "json"), "--json")
    again = at_terminal(b"512\n", str(tmp_path / "given"))
    piped = CliRunner().invoke(app, ["init", str(tmp_path / "piped")], input="512\n", catch_exceptions=False)
    assert not [told for told in (given, as_json, again, piped.output) if "Longer side" in told]
    assert [long_px(tmp_path / name) for name in ("given", "json", "piped")] == [1600, None, None]
    assert "exists already and is kept" in again
    kept = CliRunner().invoke(app, ["init", str(tmp_path / "kept"), "--long-px", "0"], catch_exceptions=False)
    assert (kept.exit_code, long_px(tmp_path / "kept")) == (0, None)
    refused = CliRunner().invoke(app, ["init", str(tmp_path / "refused"), "--long-px", "63"])
    assert refused.exit_code == 2
    assert not (tmp_path / "refused").exists()


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
    documented = re.findall(r"(?m)^\| (\d+) \|", ERRORS.read_text())
    assert [*map(int, documented)] == [*manual.EXIT_STATUS]
    assert "\\fB--failed\\fR\nAll that failed or were set aside." in page


def test_every_command_that_may_end_with_3_is_named_where_that_is_explained() -> None:
    """A command may in functions that it calls, also in those of another of the modules."""
    functions: dict[str, set[str]] = {}
    commands: dict[str, str] = {}
    for file in Path(manual.__file__).parent.glob("*.py"):
        group = "" if file.stem not in ("models", "cluster") else f"{file.stem} "
        for one in ast.parse(file.read_text()).body:
            if isinstance(one, ast.FunctionDef):
                name = f"{file.stem}.{one.name}"
                used = {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}
                functions[name] = used & {"SOME_FAILED", "report", "_each"}
                if any("command" in ast.unparse(decorator) for decorator in one.decorator_list):
                    commands[name] = group + one.name
    ends = {command for name, command in commands.items() if functions[name]}
    ends |= {"bag", "models fetch"}  # by errors that are no mistakes in the configuration
    (row,) = re.findall(r"(?m)^\| 3 \| (.*)", ERRORS.read_text())
    assert [command for command in sorted(ends) if f"`{command}`" not in row] == []


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
