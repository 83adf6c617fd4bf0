"""What the commands that take jobs say of a number that none can have."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from backfire.cli.commands import app


@pytest.mark.parametrize("command", ["retry", "release", "accept"])
@pytest.mark.parametrize("text", ["0", "9" * 30])
def test_what_is_no_number_of_a_job_is_named(command: str, text: str) -> None:
    ended = CliRunner().invoke(app, [command, text], env={"COLUMNS": "200", "TERM": "dumb"})
    assert ended.exit_code == 2
    assert f"got '{text}', expected the number of a job or the name of a picture" in ended.output
