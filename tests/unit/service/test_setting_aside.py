"""The state of a job that cannot be protected, until its original lies in the folder of failed pictures."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa
import yaml
from typer.testing import CliRunner

from backfire.cli.commands import app
from backfire.errors import Code, InputError
from backfire.service.store.schema import alembic_config
from backfire.service.store.store import Store
from backfire.service.worker.protocol import Finished, Order
from backfire.types import JobState
from benchmarks import passthrough
from benchmarks.soak import png
from tests.support.house import SOON, House, house

__all__ = ["house"]


def test_explain_says_that_a_picture_is_being_set_aside(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 1})
    config = home.base / "config.yaml"
    config.write_text(yaml.safe_dump({"folders": {"inbox": "inbox"}}))
    (home.base / "inbox" / "a.png").write_bytes(b"no picture")
    failed = home.base / "failed"
    failed.rmdir()
    failed.touch()  # a file where the folder should be: nothing can be put there
    home.turn(times=5)
    assert home.states() == ["setting_aside"]
    monkeypatch.chdir(home.base)
    told = CliRunner().invoke(app, ["explain", "a.png", "-c", str(config)], catch_exceptions=False).stdout
    assert f"cannot be protected and is being moved to {failed}" in told
    assert "outbox" not in told
    failed.unlink()
    home.turn(seconds=60, times=3)
    assert home.states() == ["failed"]
    assert set(home.files("failed")) == {"a.png", "a.png.error.json"}


@pytest.mark.parametrize("code", [Code.NO_REGION, Code.MASK_EMPTY])
def test_a_mask_that_comes_while_its_picture_fails_has_it_worked_again(
    house: Callable[..., House], code: Code
) -> None:
    home = house(watch=SOON, regions={"detectors": ["sidecar"], "none_found": "fail"})
    if code == Code.MASK_EMPTY:
        home.drop("a.mask.png", content="of nothing")
    worked = []

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        worked.append(order.name)
        if len(worked) == 1:
            home.drop("a.mask.png", content="of a face")
            raise InputError(code, f"{order.name}: shows nothing to protect")
        return passthrough.process(order, progress)

    home.process = process
    home.drop("a.png")
    home.turn(times=10)
    assert home.states() == ["archived"]
    assert home.files("inbox") == home.files("failed") == {}
    assert home.files("archive") == {"a.png": png("a.png"), "a.mask.png": png("of a face")}
    assert home.service.jobs.store.jobs()[0].attempts == 1


@pytest.mark.parametrize(("replaced", "states"), [(True, ["archived"]), (False, ["skipped"])])
def test_a_picture_that_is_taken_away_while_it_fails_is_not_set_aside(
    house: Callable[..., House], replaced: bool, states: list[str]
) -> None:
    home = house(watch=SOON)

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        if (order.folder / "input").read_bytes() != png("a.png"):
            return passthrough.process(order, progress)
        (home.base / "inbox" / "a.png").unlink()
        if replaced:
            home.drop("a.png", content="of today")
        raise InputError(Code.UNREADABLE, f"{order.name}: cannot be decoded")

    home.process = process
    home.drop("a.png")
    home.turn(times=10)
    assert home.states() == states
    assert home.files("failed") == {}


def test_a_receipt_of_an_attempt_that_did_not_end_is_not_that_of_a_failed_picture(
    house: Callable[..., House],
) -> None:
    home = house(watch=SOON)
    attempts = []

    def process(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        attempts.append(order.name)
        if len(attempts) > 1:
            raise InputError(Code.UNREADABLE, f"{order.name}: cannot be decoded")
        passthrough.process(order, progress)
        raise OSError(errno.ENOSPC, "No space left on device")

    home.process = process
    home.drop("a.png")
    home.turn(times=10)
    assert home.states() == ["failed"]
    assert home.files("reports") == {}


def test_an_older_database_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "backfire.sqlite"
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    row = "INSERT INTO jobs (path, state, attempts, code, not_before, created, updated) VALUES "
    with engine.connect() as connection:
        alembic.command.upgrade(alembic_config(connection), "0002")
        connection.exec_driver_sql(row + "(CAST('good' AS BLOB), 'publishing', 1, NULL, 0, 0, 0)")
        connection.exec_driver_sql(row + "(CAST('bad' AS BLOB), 'publishing', 1, 'unreadable', 0, 0, 0)")
        connection.commit()
    with Store(path) as store:
        assert [job.state for job in store.active()] == [JobState.PUBLISHING, JobState.SETTING_ASIDE]
        assert store.add([b"bad", b"good"], at=1.0) == [], "either still has its job"
