"""What the daemon refuses, waits for and logs when a folder, the disk or one of its own steps fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from backfire.admin import check
from backfire.errors import ConfigError, StoreError, UnavailableError
from backfire.files.outbox.names import hidden_by
from backfire.pipeline.result import PhaseProgress
from backfire.service import preflight
from backfire.service.heartbeat import TOLD_MOST
from backfire.service.publisher import Publisher
from backfire.service.store.reader import Reader
from backfire.service.worker.cluster import Cluster
from backfire.service.worker.protocol import Finished, Order, Place
from benchmarks import passthrough
from tests.support import nothing_found
from tests.support.bugs import about, bug
from tests.support.house import SOON, Call, House, house
from tests.support.system import full

__all__ = ["house"]

Make = Callable[..., House]


def test_a_daemon_whose_inbox_is_gone_does_not_start_on_an_empty_one(house: Make) -> None:
    """The share may not be mounted: an inbox that is made anew would hide what lies on it."""
    home = house(watch=SOON)
    home.crash()
    (home.base / "inbox").rmdir()
    with pytest.raises(UnavailableError, match="was there before and is gone; mount the share"):
        home.again()
    assert not (home.base / "inbox").exists()
    (home.base / "inbox").mkdir()
    home.again()
    home.drop("p.png")
    home.turn(5, times=6)
    assert home.states() == ["archived"]


def test_what_a_crash_left_is_looked_for_under_the_daemon_s_own_names(house: Make) -> None:
    home = house(watch=SOON)
    before = hidden_by("key")
    home.crash()
    home.again()
    assert hidden_by("key") == before
    assert len(before) == len(b".backfire-key-01234567-")


def test_a_folder_that_cannot_be_made_is_named_with_a_remedy(house: Make) -> None:
    home = house(watch=SOON)
    home.crash()
    (home.base / "archive").rmdir()
    (home.base / "archive").write_bytes(b"a file")
    with pytest.raises(UnavailableError, match=r"archive .*: cannot be made .*give uid \d+ access"):
        home.again()


def test_an_inbox_that_goes_while_the_daemon_runs_is_logged_once_and_its_return_too(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("p.png")
    (home.base / "inbox").rename(home.base / "away")
    with capture_logs() as lines:
        home.turn(5, times=6)
        (home.base / "away").rename(home.base / "inbox")
        home.turn(5, times=6)
    logged = [line["event"] for line in lines if line["event"].startswith("inbox_")]
    assert logged == ["inbox_unavailable", "inbox_restored"]
    assert home.states() == ["archived"]


@pytest.mark.parametrize(("node", "attempts"), [(None, 1), ("a", 0)])
def test_a_crash_counts_for_a_picture_that_was_worked_on_this_machine(
    house: Make, monkeypatch: pytest.MonkeyPatch, node: str | None, attempts: int
) -> None:
    """Also while the cluster is away: a picture that kills the daemon must not do so again and again."""
    monkeypatch.setattr(preflight, "require_cluster", lambda settings: None)
    home = house(watch=SOON, cluster={"address": "10.0.0.1:6379", "fallback": "local"})
    place = Place(node=node)
    monkeypatch.setattr(Cluster, "places", lambda cluster, waiting: (place,))
    monkeypatch.setattr(Cluster, "start", lambda cluster, place: Call(home))
    home.stuck = True
    home.drop("p.png")
    home.turn(times=6)
    assert home.states() == ["running"]
    home.crash()
    monkeypatch.setattr(Cluster, "places", lambda cluster, waiting: ())
    home.again()
    (job,) = home.service.jobs.active.values()
    assert (job.state, job.attempts) == ("ready", attempts)


def test_little_disk_space_is_logged_once_and_its_return_too(house: Make) -> None:
    home = house(watch=SOON, limits={"free_mb": 10**9})
    home.drop("p.png")
    with capture_logs() as lines:
        home.turn(5, times=6)
        assert "archived" not in home.states()
        assert "limits.free_mb asks for 1000000000" in home.service.operations._health()[2].decode()
        enough = home.settings.limits.model_copy(update={"free_mb": 0})
        home.service.load = lambda: home.settings.model_copy(update={"limits": enough})
        home.service.reload()
        home.turn(5, times=8)
    logged = [line for line in lines if line["event"].startswith("disk_space_")]
    assert [line["event"] for line in logged] == ["disk_space_low", "disk_space_restored"]
    assert "limits.free_mb asks for 1000000000" in logged[0]["error"]
    assert home.states() == ["archived"]
    assert home.service.operations._health()[0] == 200


def test_a_refused_reload_is_a_warning_of_health(house: Make) -> None:
    def refuse() -> NoReturn:
        raise ConfigError("config.yaml: limits.free_mb: got x, expected a number")

    home = house(watch=SOON)
    home.service.load = refuse
    home.service.reload()
    home.turn(5, times=2)
    status, _, text = home.service.operations._health()
    assert status == 200
    (warning,) = json.loads(text)["warnings"]
    assert warning.startswith("a reload was refused, and the former configuration stays in use: config.yaml")


def _second(home: House, inbox: str) -> House:
    """Another installation, whose inbox lies where the first one says."""
    folders = {name: str(home.base / "second" / name) for name in home.settings.folders.named()}
    return House(home.base / "second", watch=SOON, folders={**folders, "inbox": str(home.base / inbox)})


def test_an_inbox_that_was_made_again_is_locked_again(house: Make) -> None:
    """A share that is mounted anew is another folder under the same name."""
    home = house(watch={**SOON, "rescan_s": 1})
    home.turn()
    (home.base / "inbox").rename(home.base / "before")
    (home.base / "inbox").mkdir()
    second = _second(home, "inbox")
    home.drop("p.png")
    home.turn(5, times=6)
    assert "another backfire daemon works here" in home.service.heartbeat.report()["trouble"]
    assert home.states() == []
    second.crash()
    home.turn(5, times=6)
    assert home.states() == ["archived"]
    with pytest.raises(UnavailableError, match="another backfire daemon works here"):
        second.again()


def test_a_daemon_does_not_start_in_the_inbox_of_another(house: Make) -> None:
    home = house(watch=SOON)
    with pytest.raises(UnavailableError, match="the inbox of another backfire daemon at work; move it out"):
        _second(home, "inbox/desk")
    home.crash()
    preflight.InboxLock(home.base / "inbox" / "desk").close()


@pytest.mark.parametrize("then", ["deleted", "replaced"])
def test_a_database_that_is_gone_under_the_running_daemon_ends_it(house: Make, then: str) -> None:
    """What it publishes would be recorded nowhere."""
    home = house(watch=SOON)
    home.turn(5)
    database = home.settings.folders.database
    database.rename(home.base / "moved")
    if then == "replaced":
        shutil.copy(home.base / "moved", database)
    home.drop("p.png")
    with pytest.raises(StoreError, match=r"was deleted, .* are taken in again; then start") as raised:
        home.live(5)
    assert not raised.value.transient
    home.crash()
    home.again()
    home.turn(5, times=6)
    assert home.states() == ["archived"]


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_a_daemon_does_not_begin_anew_while_results_of_a_lost_database_lie_in_the_spool(
    house: Make, left: str
) -> None:
    """systemd starts it again after the database was moved, and what is held would have been deleted."""
    home = house(watch=SOON)
    home.process = nothing_found.process
    home.drop("held.png")
    home.turn(5, times=6)
    assert home.states() == ["review"]
    home.crash()
    database, held = home.settings.folders.database, home.files("state/spool")
    assert held
    database.rename(home.base / "moved")
    if left != "nothing":
        database.touch()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is gone or empty.* move the file back.*the folder spool"):
            home.again()
    assert home.files("state/spool") == held
    with pytest.raises(StoreError, match="is gone or empty"):
        Reader(database)  # as `status` and `jobs` open it
    assert [line.subject for line in check._database(database)] == ["database"]
    spool = home.settings.folders.spool
    spool.replace(home.base / "spool")
    spool.mkdir()
    preflight.require_database(home.settings)  # an empty one has nothing to lose
    spool.rmdir()
    (home.base / "spool").replace(spool)
    (home.base / "moved").replace(database)
    home.again()
    assert (home.states(), home.files("state/spool")) == (["review"], held)
    home.crash()
    # Where it is lost, the message names what to do.
    database.unlink()
    home.settings.folders.spool.rename(home.base / "away")
    home.again()
    assert home.states() == []


def test_a_step_that_fails_again_and_again_is_told_by_status_and_a_warning_of_health(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", "b.png")
    with full(home.base / "outbox"):
        home.turn(5, times=12)
    (warning,) = _warnings(home)
    assert warning.startswith("a.png: cannot be written in ")
    assert home.service.heartbeat.report()["trouble"] == warning
    home.turn(30, times=5)
    assert home.states() == ["archived", "archived"]
    assert _warnings(home) == []


def test_workers_that_can_work_on_no_picture_are_told_until_one_can(house: Make) -> None:
    def hindered(order: Order, progress: PhaseProgress) -> Finished:
        raise ConfigError("editor lama: its weights are damaged; fetch them again")

    home = house(watch=SOON)
    home.process = hindered
    home.drop("a.png", "b.png")
    home.turn(5, times=2)
    assert _warnings(home) == [], "it may have been for a moment"
    home.turn(5, times=30)
    assert _warnings(home) == ["editor lama: its weights are damaged; fetch them again"]
    home.process = passthrough.process
    home.turn(30, times=5)
    assert _warnings(home) == []


def _warnings(home: House) -> list[str]:
    warnings: list[str] = json.loads(home.service.operations._health()[2])["warnings"]
    return warnings


def test_all_files_that_no_picture_uses_are_counted_and_the_first_named(house: Make) -> None:
    home = house(watch=SOON)
    home.drop(*(f"{number:02}.txt" for number in range(TOLD_MOST + 3)), content="no picture")
    home.turn(5, times=4)
    fact = home.service.heartbeat.report()
    assert (len(fact["unused"]), fact["in_all"]["unused"]) == (TOLD_MOST, TOLD_MOST + 3)


def test_an_internal_error_while_the_daemon_ends_is_logged_and_other_jobs_are_given_back(house: Make) -> None:
    home = house(watch={**SOON, "rescan_s": 1, "mode": "polling"})
    home.drop("bad.png")
    with full(home.base / "outbox"):
        home.turn(5, times=4)
        assert home.states() == ["publishing"]
        home.stuck = True
        home.drop("b.png")
        home.turn(2, times=3)
    assert home.states() == ["publishing", "running"]
    home.clock, home.wall = home.clock + 1000, home.wall + 1000
    home.service.stop()
    with bug(Publisher, "_result", when=about("bad.png")), capture_logs() as lines:
        home.service.run()
    assert home.states() == ["publishing", "ready"]
    assert [line["path"] for line in lines if line["event"] == "internal_error"] == ["bad.png"]
