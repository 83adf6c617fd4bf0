"""What people read: texts of commands that other tests run with --json, and progress bars on a terminal."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from backfire import cli, weights
from backfire.admin.probes import Check
from backfire.cli import commands
from backfire.cli.commands import app
from backfire.errors import ConfigError
from backfire.files import manifest
from backfire.files.manifest import Entry
from tests.support.jobs import picture
from tests.support.sandbox import Sandbox, environment


def configured(tmp_path: Path, **sections: object) -> str:
    (tmp_path / "inbox").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"folders": {"inbox": "inbox"}, **sections}))
    return str(config)


EVIL = "\x1b]0;pwn\x07.png"
"""A file name that a terminal would obey."""


@pytest.mark.parametrize("command", ["audit", "bag", "check", "detect"])
def test_no_command_hands_the_terminal_what_a_file_name_says(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path)
    for name in ("outbox", "archive", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "archive" / EVIL).write_bytes(b"no picture")
    more = {"bag": [str(tmp_path / "bag")], "detect": [str(tmp_path / "archive" / EVIL)]}.get(command, [])
    if command == "bag":
        pytest.importorskip("bagit", reason="the extra archive is not installed")
        digest = hashlib.sha256(b"no picture").hexdigest()
        manifest.append(tmp_path / "archive", [Entry(os.fsencode(EVIL), digest)], at=0.0)
        manifest.append(tmp_path / "outbox", [Entry(os.fsencode(EVIL), digest)], at=0.0)
    if command == "check":
        found = [Check(subject="weights", found=f"{EVIL} is changed", remedy=f"delete {EVIL}")]
        monkeypatch.setattr("backfire.admin.check.check", lambda _: found)
    told = CliRunner().invoke(app, [command, *more, "-c", config])
    assert "\\x1b]0;pwn\\x07" in told.output
    assert "\x1b" not in told.output


def test_a_name_that_the_locale_cannot_print_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "日本.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "backfire.cli", "detect", "日本.png"]
    latin = {**os.environ, "PYTHONIOENCODING": "iso-8859-1"}
    told = subprocess.run(command, cwd=tmp_path, env=latin, capture_output=True, text=True)
    assert told.returncode == 3, told.stderr
    assert r"\u65e5\u672c.png: " in told.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_ends_the_command_with_one_line_at_most(unbuffered: str) -> None:
    command = [sys.executable, "-m", "backfire.cli", "man"]
    given = {**environment(), "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        told = subprocess.run(command, env=given, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    line = (
        "backfire: standard output: cannot be written (No space left on device); write it to another place\n"
    )
    assert (told.returncode, told.stderr) == (74, line)
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, env=given, stdout=full, stderr=full, check=False).returncode == 74
    reads, writes = os.pipe()
    os.close(reads)
    told = subprocess.run(command, env=given, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (told.returncode, told.stderr) == (74, "")  # as `| head` does with what it has no use for


def test_what_is_printed_can_be_captured_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", captured)
    monkeypatch.setattr(sys, "argv", ["backfire", "man"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    captured.seek(0)
    assert captured.read().startswith(".TH")


@pytest.mark.parametrize(("free_mb", "status"), [(0, 0), (10**9, 3)])
def test_check_says_line_by_line_what_is_good_and_what_to_do_about_the_rest(
    tmp_path: Path, free_mb: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfire.admin.check._pace", lambda _: "")  # times real edits
    config = configured(tmp_path, limits={"free_mb": free_mb}, regions={"detectors": ["sidecar"]})
    told = CliRunner().invoke(app, ["check", "-c", config])
    lines = told.stdout.splitlines()
    assert any(line.startswith("ok  ") for line in lines), told.output
    bad = [number for number, line in enumerate(lines) if line.startswith("BAD ")]
    if status == 0:
        assert bad == []
    else:
        assert [lines[number].startswith("BAD space for ") for number in bad] == [True], told.stdout
        assert lines[bad[0] + 1].startswith("      free some space: limits.free_mb asks for 1000000000 MiB")
    assert told.exit_code == status


def test_an_error_cannot_colour_the_terminal_or_move_its_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names in it may come from anybody; that of a file may hold any character but two."""

    def fail() -> None:
        raise ConfigError("first: \x1b]0;pwn\x07\x9b31m\nsecond")

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit):
        commands.run()
    assert capsys.readouterr().err == "backfire: first: \\x1b]0;pwn\\x07\\x9b31m\nsecond\n"


def test_models_list_names_every_model_in_full(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["models", "list", "-c", configured(tmp_path)])
    assert told.exit_code == 0, told.output
    first = {line.split()[0] for line in told.stdout.splitlines() if line.strip()}
    assert {*weights.catalogue()} <= first
    assert "folder: " in told.stdout


def test_a_terminal_gets_a_progress_bar(sandbox: Sandbox) -> None:
    sandbox.drop(picture(), "p.png")
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.passthrough", "once"],
        cwd=sandbox.base, stdout=subprocess.DEVNULL, stderr=terminal,
        env={**environment(), "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 4096)
        except OSError:  # EIO: the last process that had the terminal open has ended
            break
    os.close(reader)
    assert process.wait(60) == 0
    assert b"p.png: " in shown
    assert b"left:" in shown


def test_on_a_terminal_the_demo_asks_before_it_fetches(tmp_path: Path) -> None:
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "backfire.cli", "demo", "show", "--fetch"],
        cwd=tmp_path, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**environment(), "XDG_DATA_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    os.close(terminal)
    os.write(reader, b"n\n")
    told = process.communicate(timeout=60)[0].decode()
    os.close(reader)
    assert process.returncode == 1
    assert [model.name in told for model in weights.members("light")] == [True] * 4
    assert f"fetch these into {tmp_path / 'home' / 'backfire' / 'models'}?" in told.replace("\n", "")
    assert list(tmp_path.iterdir()) == [], "no folder is left that would be in the way of the next try"
