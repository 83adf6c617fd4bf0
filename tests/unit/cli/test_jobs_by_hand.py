"""The commands that read the job database, on jobs that the test has put there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from backfire.admin.retry import retry
from backfire.cli import jobs as commands
from backfire.cli.commands import app
from backfire.cli.common import SOME_FAILED, moment
from backfire.errors import ConfigError, PublishError
from backfire.types import Job, JobState
from tests.support.page import Desk, desk

__all__ = ["desk"]


def backfire(desk: Desk, *words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "-c", str(desk.config)])


@pytest.mark.parametrize("words", [(1, 1), (1, "--failed")])
def test_a_picture_that_is_named_twice_is_tried_again_once(desk: Desk, words: tuple[object, ...]) -> None:
    desk.failed("a.jpg", "internal")
    told = backfire(desk, "retry", *words, "--json")
    assert (told.exit_code, json.loads(told.stdout)["retried"]) == (0, ["a.jpg"])
    assert (desk.base / "inbox/a.jpg").exists()


def test_one_that_cannot_be_moved_does_not_keep_the_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = desk.failed("a.jpg", "internal"), desk.failed("b.jpg", "internal")

    def full(job: Job, *more: Any) -> str | None:
        if job.id == first.id:
            raise PublishError("a.jpg: no space left")
        return retry(job, *more)

    monkeypatch.setattr(commands, "retried", full)
    told = backfire(desk, "retry", first.id, second.id, "--json")
    assert told.exit_code == SOME_FAILED
    assert json.loads(told.stdout) == {
        "retried": ["b.jpg"], "likely_to_fail": [], "not_moved": ["a.jpg"],
        "why": {"1": "a.jpg: no space left"}, "unknown": [],
    }  # fmt: skip


def test_the_reasons_of_two_jobs_of_one_name_are_both_told(desk: Desk) -> None:
    desk.published("a.png")
    desk.published("a.png")
    assert json.loads(backfire(desk, "retry", 1, 2, "--json").stdout)["why"].keys() == {"1", "2"}


def test_failures_from_before_today_are_listed_as_today_says(desk: Desk) -> None:
    desk.now -= 200_000
    desk.failed("a.jpg")
    desk.job("b.jpg", JobState.QUARANTINED, code="internal", message="why")
    said = backfire(desk, "today").stdout.partition("and 2 failures from before today: backfire ")[2]
    listed = backfire(desk, *said.partition("\n")[0].split()).stdout
    assert "a.jpg" in listed
    assert "b.jpg" in listed


def test_status_names_a_home_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("folders: {inbox: ~nosuchuser/inbox}\n")
    told = CliRunner().invoke(app, ["status", "-c", str(tmp_path / "config.yaml")])
    assert isinstance(told.exception, ConfigError)
    assert "folders.inbox: got '~nosuchuser/inbox', but there is no such home folder" in str(told.exception)


def test_an_hour_of_a_day_on_which_the_clock_is_changed_is_that_of_the_wall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        evening = time.mktime((2026, 10, 25, 20, 0, 0, 0, 0, -1))
        monkeypatch.setattr(time, "time", lambda: evening)
        assert time.localtime(moment("14:00")).tm_hour == 14
    finally:
        monkeypatch.undo()
        time.tzset()
