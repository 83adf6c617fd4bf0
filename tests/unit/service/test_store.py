"""The job database: what it keeps, what it refuses, and what survives a killed process."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import backfire
from backfire.errors import StoreError
from backfire.service.store import database
from backfire.service.store.reader import Reader
from backfire.service.store.schema import HEAD, alembic_config, metadata
from backfire.service.store.store import Store
from backfire.types import ACTIVE, Choice, Event, Job, JobState, Verdict

S = JobState


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.db"


@pytest.fixture
def opened() -> Iterator[list[sqlite3.Connection]]:
    """The connections to SQLite that stores open during the test."""
    connections: list[sqlite3.Connection] = []

    def note(connection: sqlite3.Connection, _: object) -> None:
        connections.append(connection)

    sa.event.listen(sa.Pool, "connect", note)
    yield connections
    sa.event.remove(sa.Pool, "connect", note)


@pytest.fixture
def store(path: Path, opened: list[sqlite3.Connection]) -> Iterator[Store]:
    with Store(path) as store:
        yield store


def ready(store: Store, *paths: bytes) -> list[Job]:
    return [store.update(job.id, S.READY, at=2.0) for job in store.add(paths, at=1.0)]


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs a script with Store, Path and sys at hand, and waits for a line to start."""
    head = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from backfire.types import JobState\nfrom backfire.errors import StoreError\n"
        "from backfire.service.store.store import Store\nprint('up', flush=True); sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + script, *map(str, arguments)],
        cwd=Path(backfire.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


# What it keeps


def test_each_new_path_becomes_one_settling_job_with_an_event(store: Store) -> None:
    first = store.add([b"a.png", b"b.png", b"a.png"], at=10.0)
    assert [(job.path, job.state, job.created, job.updated) for job in first] == [
        (b"a.png", S.SETTLING, 10.0, 10.0),
        (b"b.png", S.SETTLING, 10.0, 10.0),
    ]
    assert store.history(first[0].id) == [Event(10.0, S.SETTLING, {})]
    assert [job.path for job in store.add([b"b.png", b"c.png"], at=11.0)] == [b"c.png"]
    assert store.add([], at=12.0) == []


def test_any_bytes_are_a_path(store: Store) -> None:
    names = [b"caf\xe9.png", b"new\nline.png", b"\xff\xfe/\x80.jpg", "é.png".encode(), b"x" * 255]
    jobs = store.add(names, at=1.0)
    assert [job.path for job in jobs] == names
    assert store.by_path(b"caf\xe9.png") == [jobs[0]]
    assert store.update(jobs[2].id, S.PUBLISHED, at=2.0, output_path=b"\xff.png").output_path == b"\xff.png"


def test_a_hundred_thousand_files_are_recorded_in_one_call(store: Store) -> None:
    names = [b"folder/%d.png" % number for number in range(100_000)]
    assert len(store.add(names[:10_000], at=1.0)) == 10_000
    assert [job.path for job in store.add(names, at=2.0)] == names[10_000:]
    assert store.counts()[S.SETTLING] == 100_000


@pytest.mark.parametrize("state", S)
def test_a_path_has_one_active_job_and_may_come_again_after_it_ended(store: Store, state: JobState) -> None:
    [job] = store.add([b"a.png"], at=1.0)
    store.update(job.id, state, at=2.0)
    again = store.add([b"a.png"], at=3.0)
    if state in ACTIVE:
        assert again == []
    else:
        assert [found.id for found in store.by_path(b"a.png")] == [again[0].id, job.id]
        with pytest.raises(StoreError, match="one active job at a time"):
            store.update(job.id, S.READY, at=4.0)
        assert len(store.history(job.id)) == 2, "a refused change leaves no event"


def test_update_sets_columns_and_adds_an_event(store: Store) -> None:
    [job] = store.add([b"a.png"], at=1.0)
    updated = store.update(
        job.id, S.PUBLISHED, at=5.5, detail={"seconds": 3, "é": [None, "\udcff"]},
        key="k", input_sha256="i", mask_sha256="m", config_sha256="c", output_path=b"o", output_sha256="s",
        verdict=Verdict.WEAK, code="weak", message="so so", not_before=9.0, attempts=2,
    )  # fmt: skip
    assert updated == Job(
        job.id, b"a.png", S.PUBLISHED, 2, "k", "i", "m", "c", b"o", "s",
        Verdict.WEAK, "weak", "so so", 9.0, created=1.0, updated=5.5,
    )  # fmt: skip
    assert isinstance(updated.verdict, Verdict)
    assert store.get(job.id) == updated
    assert store.history(job.id)[-1] == Event(5.5, S.PUBLISHED, {"seconds": 3, "é": [None, "\udcff"]})
    assert store.update(job.id, S.ARCHIVED, at=6.0, message=None).message is None


def test_history_is_in_the_order_of_writing_though_the_clock_jumps_back(store: Store) -> None:
    [job] = ready(store, b"a.png")
    store.start_attempt(job.id, at=1000.0)
    store.update(job.id, S.FAILED, at=3.0, detail={"code": "model"})
    assert [(event.at, event.state) for event in store.history(job.id)] == [
        (1.0, S.SETTLING),
        (2.0, S.READY),
        (1000.0, S.RUNNING),
        (3.0, S.FAILED),
    ]
    assert store.history(99) == []


def test_messages_with_undecodable_names_are_kept_as_escapes(store: Store) -> None:
    [job] = store.add([b"a"], at=1.0)
    name = os.fsdecode(b"caf\xe9.png")
    assert store.update(job.id, S.FAILED, at=2.0, message=name).message == r"caf\udce9.png"


def test_attempts_are_counted_and_given_back(store: Store) -> None:
    [job] = ready(store, b"a.png")
    running = store.start_attempt(job.id, at=3.0)
    assert (running.state, running.attempts) == (S.RUNNING, 1)
    back = store.give_back(job.id, at=4.0, detail={"why": "drain"})
    assert (back.state, back.attempts) == (S.READY, 0)
    assert store.history(job.id)[-1].detail == {"why": "drain"}


def test_only_a_ready_job_is_claimed_and_only_a_running_one_given_back(store: Store) -> None:
    [job] = ready(store, b"a.png")
    with pytest.raises(StoreError, match="is ready, expected running"):
        store.give_back(job.id, at=3.0)
    store.start_attempt(job.id, at=3.0)
    with pytest.raises(StoreError, match="is running, expected ready"):
        store.start_attempt(job.id, at=4.0)
    assert store.by_path(b"a.png")[0].attempts == 1


def test_each_start_is_a_new_lease_given_back_or_not(store: Store) -> None:
    [job] = ready(store, b"a.png")
    assert store.start_attempt(job.id, at=3.0).lease == 1
    assert store.give_back(job.id, at=4.0, state=S.SETTLING).state == S.SETTLING
    store.update(job.id, S.READY, at=5.0)
    assert (store.start_attempt(job.id, at=6.0).lease, store.by_path(b"a.png")[0].attempts) == (2, 1)


def test_what_is_written_together_happens_together_or_not_at_all(store: Store, path: Path) -> None:
    one, two = ready(store, b"one", b"two")
    with pytest.raises(StoreError, match="not in"), store.together():  # noqa: PT012, both are the point
        store.update(one.id, S.PUBLISHING, at=3.0)
        store.update(999, S.PUBLISHING, at=3.0)
    assert store.get(one.id) == one
    assert not store.is_together
    with Reader(path) as other, store.together():
        store.update(one.id, S.PUBLISHING, at=4.0)
        store.update(two.id, S.PUBLISHING, at=4.0)
        assert other.get(one.id) == one
    assert [job.state for job in store.active()] == [S.PUBLISHING, S.PUBLISHING]
    assert store.history(two.id)[-1] == Event(at=4.0, state=S.PUBLISHING, detail={})


def test_the_latest_result_is_the_newest_published_job_of_the_same_key(store: Store) -> None:
    one, two, three = ready(store, b"1", b"2", b"3")
    for job, state in ((one, S.ARCHIVED), (two, S.PUBLISHED), (three, S.FAILED)):
        store.update(job.id, state, at=3.0, key="k", output_sha256="s" if job != three else None)
    latest = store.latest_result("k")
    assert latest is not None
    assert latest.id == two.id
    assert store.latest_result("other") is None


def test_old_ends_are_forgotten_with_their_history_and_nothing_else(store: Store) -> None:
    old, young, active = ready(store, b"old", b"young", b"active")
    store.update(old.id, S.ARCHIVED, at=10.0)
    store.update(young.id, S.ARCHIVED, at=30.0)
    assert store.prune(before=20.0) == 1
    assert store.history(old.id) == []
    assert [job.id for job in store.jobs()] == [active.id, young.id]
    assert store.prune(before=20.0) == 0


def test_lists_and_counts(store: Store) -> None:
    one, two, three = ready(store, b"1", b"2", b"3")
    ended = store.update(two.id, S.ARCHIVED, at=5.0)
    published = store.update(three.id, S.PUBLISHED, at=6.0)
    assert store.active() == [one, published]
    assert store.jobs() == [published, ended, one]
    assert store.jobs(limit=1) == [published]
    assert store.jobs(S.ARCHIVED) == [ended]
    counts = store.counts()
    assert list(counts) == list(S)
    assert {state: n for state, n in counts.items() if n} == {S.READY: 1, S.ARCHIVED: 1, S.PUBLISHED: 1}


def test_facts_are_replaced(store: Store) -> None:
    assert store.fact("heartbeat") is None
    store.set_fact("heartbeat", {"pid": 1}, at=1.0)
    store.set_fact("heartbeat", {"pid": 2, "paused": None}, at=2.0)
    assert store.fact("heartbeat") == ({"pid": 2, "paused": None}, 2.0)


def test_what_is_no_job_and_what_is_no_column(store: Store) -> None:
    assert store.get(7) is None
    assert store.by_path(b"nowhere") == []
    with pytest.raises(StoreError, match=r"job 7: not in .*jobs\.db; `backfire jobs`"):
        store.update(7, S.READY, at=1.0)
    with pytest.raises(TypeError, match="path"):
        store.update(7, S.READY, at=1.0, path=b"other")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="JSON"):
        store.set_fact("clock", object(), at=1.0)


# Schema


def test_the_migrations_make_the_tables_of_the_module(store: Store, path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD
    # Alembic does not see a partial index's condition, AUTOINCREMENT or ON DELETE: compare the SQL too.
    query = (
        "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND name != 'alembic_version'"
    )
    fresh = sa.create_engine("sqlite://")
    with engine.connect() as migrated, fresh.begin() as direct:
        metadata.create_all(direct)
        made, meant = (
            {name: "".join(sql.split()) for name, sql in one.exec_driver_sql(query) if sql}
            for one in (migrated, direct)
        )
    fresh.dispose()
    assert made == meant
    assert {"jobs", "events", "facts", "jobs_active_path"} <= made.keys()


def test_the_jobs_table_is_the_job_type() -> None:
    assert metadata.tables["jobs"].c.keys() == [field.name for field in fields(Job)]


def test_the_next_migration_can_be_written_from_the_template(tmp_path: Path, path: Path) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(Path(database.__file__).with_name("migrations"), scripts)
    Store(path).close()
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.connect() as connection:
        config = alembic_config(connection)
        config.set_main_option("script_location", str(scripts))
        config.attributes["metadata"] = wider = sa.MetaData()
        for table in metadata.tables.values():
            table.to_metadata(wider)
        sa.Table("notes", wider, sa.Column("text", sa.Text))
        alembic.command.revision(config, "Notes", rev_id="9999", autogenerate=True)
        alembic.command.upgrade(config, "head")
        connection.commit()
        assert connection.exec_driver_sql("SELECT count(*) FROM notes").scalar() == 0
    with pytest.raises(StoreError, match=r"schema 9999, expected 0005 or older.*newer Backfire"):
        Store(path)
    with pytest.raises(StoreError, match="newer Backfire"):
        Reader(path)


def test_opening_says_nothing_and_leaves_logging_alone(path: Path) -> None:
    script = (
        "import logging\nbefore = dict(logging.root.manager.loggerDict)\n"
        "Store(Path(sys.argv[1])).close()\n"
        "assert not logging.root.handlers and logging.root.level == logging.WARNING\n"
        "assert not any(getattr(l, 'handlers', []) or getattr(l, 'disabled', False)"
        " for l in before.values())\n"
    )
    process = python(script, path)
    output, _ = process.communicate("\n", timeout=60)
    assert (process.returncode, output) == (0, "")


def test_the_file_is_set_up_to_lose_nothing(store: Store, opened: list[sqlite3.Connection]) -> None:
    assert store.active() == []
    (connection,) = opened
    settings = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000, "foreign_keys": 1}


def test_history_is_append_only_but_goes_with_a_pruned_job(store: Store, path: Path) -> None:
    keep, prune = store.add([b"keep", b"prune"], at=1.0)
    other = sqlite3.connect(path)
    other.execute("PRAGMA foreign_keys = ON")
    for statement in ("UPDATE events SET at = 0", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)
    other.execute("DELETE FROM jobs WHERE id = ?", (prune.id,))
    other.commit()
    other.close()
    assert store.history(prune.id) == []
    assert len(store.history(keep.id)) == 1
    assert store.add([b"prune"], at=2.0)[0].id == prune.id + 1, "no id is given twice"


# Reading beside the daemon


def test_read_only_sees_the_daemons_work_and_changes_nothing(store: Store, path: Path) -> None:
    [job] = ready(store, b"a.png")
    with Reader(path) as reader:
        assert reader.active() == [job]
        running = store.start_attempt(job.id, at=3.0)
        assert reader.get(job.id) == running
        for statement in ("DELETE FROM jobs", "INSERT INTO facts VALUES ('daemon', '{}', 4)"):
            with pytest.raises(StoreError, match="readonly"), reader._transaction() as connection:
                connection.exec_driver_sql(statement)
    assert store.jobs() == [running]


def test_read_only_works_while_no_daemon_runs(path: Path) -> None:
    with Store(path) as store:
        jobs = ready(store, b"a.png")
    with Reader(path) as reader:
        assert reader.jobs() == jobs


def test_read_only_creates_nothing(path: Path) -> None:
    remedy = r"is not there, .* waits for `backfire once`, or .*`backfire run`.* with -c"
    with pytest.raises(StoreError, match=remedy):
        Reader(path)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()
    with pytest.raises(StoreError, match=r"schema none, expected 0005; start the daemon once"):
        Reader(path)
    assert path.read_bytes() == b""


def test_odd_characters_in_the_files_path_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "50% off?#1" / os.fsdecode(b"caf\xe9 & jobs.db")
    with Store(path) as store:
        store.add([b"a"], at=1.0)
    with Reader(path) as reader:
        assert len(reader.active()) == 1
    assert path.exists()


# Trouble


def test_a_file_that_is_no_database_is_refused_with_restore_steps(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"holiday pictures" * 1000)
    for attempt in (Store, Reader):
        with pytest.raises(StoreError, match=r"jobs\.db: is damaged.*move the file aside.*jobs\.db-wal"):
            attempt(path)
    assert path.read_bytes() == b"holiday pictures" * 1000


def test_a_page_that_went_bad_is_found_at_the_start(path: Path) -> None:
    with Store(path) as store:
        store.add([b"%d.png" % number for number in range(2000)], at=1.0)
    with path.open("r+b") as file:
        for page in range(12, 20):
            file.seek(page * 4096)
            file.write(b"\xa5" * 4096)
    with pytest.raises(StoreError, match="is damaged"):
        Store(path)


def test_a_locked_database_is_an_error_that_says_so(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    with Store(path) as waiting:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"database is locked: locked for over 0\.05 s.*fuser"):
            waiting.add([b"a"], at=1.0)
        assert waiting.active() == [], "reading goes on"
        holder.execute("COMMIT")
        assert len(waiting.add([b"a"], at=2.0)) == 1, "and so does writing, afterwards"
    holder.close()


def test_a_full_disk_is_an_error_that_says_so_and_loses_nothing(
    store: Store, opened: list[sqlite3.Connection]
) -> None:
    jobs = ready(store, b"a.png")
    (connection,) = opened
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full: no space; free some"):
        store.add([b"%d.png" % number for number in range(5000)], at=3.0)
    assert store.active() == jobs
    connection.execute("PRAGMA max_page_count = 1000000")
    assert len(store.add([b"%d.png" % number for number in range(5000)], at=4.0)) == 5000


def test_a_write_that_the_system_refuses_may_pass_and_the_quota_is_named(store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(StoreError, match=r"disk I/O error.*quota of uid \d+ is used up") as caught:
            store.add([b"a.png"], at=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.transient
    assert [job.path for job in store.add([b"a.png"], at=2.0)] == [b"a.png"]


def test_a_folder_that_cannot_be_used_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"folder cannot be made .*; make it or name another"):
        Store(tmp_path / "file" / "jobs.db")
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StoreError, match=r"folder\.db: unable to open.*uid \d+ needs the right"):
        Store(tmp_path / "folder.db")


def test_a_file_without_the_right_to_write_is_refused_at_once(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_the_folder(place: Path, mode: int) -> bool:  # root may write everything: pretend not to be
        return place != path

    monkeypatch.setattr(os, "access", only_the_folder)
    with pytest.raises(StoreError, match=r"jobs\.db is not writable; uid \d+ needs the right"):
        Store(path)


# Several processes, and dead ones


def test_two_processes_claim_every_job_once_and_lose_no_update(store: Store, path: Path) -> None:
    jobs = ready(store, *(b"%d.png" % number for number in range(60)))
    script = """
with Store(Path(sys.argv[1])) as store:
    while (job := next((j for j in store.active() if j.state == JobState.READY), None)) is not None:
        try:
            store.start_attempt(job.id, at=10.0)
        except StoreError as error:
            assert "expected ready" in str(error), error
            continue
        store.update(job.id, JobState.ARCHIVED, at=11.0, detail={"by": sys.argv[2]})
        store.add([b"%s of %d" % (sys.argv[2].encode(), job.id)], at=12.0)
        print(job.id)
"""
    processes = [python(script, path, name) for name in ("left", "right")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    claims = [[int(line) for line in process.communicate(timeout=120)[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(claims[0] + claims[1]) == [job.id for job in jobs]
    for name, claimed in zip(("left", "right"), claims, strict=True):
        for number in claimed:
            job = store.get(number)
            assert job is not None
            assert (job.attempts, job.state) == (1, S.ARCHIVED)
            states = [event.state for event in store.history(number)]
            assert states == [S.SETTLING, S.READY, S.RUNNING, S.ARCHIVED]
            assert store.history(number)[-1].detail == {"by": name}
    assert store.counts()[S.SETTLING] == len(jobs)


def test_an_attempt_is_on_disk_before_the_work_that_kills_the_process(path: Path) -> None:
    with Store(path) as store:
        [job] = ready(store, b"killer.png")
    script = """
store = Store(Path(sys.argv[1]))
store.start_attempt(int(sys.argv[2]), at=3.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    for attempt in (1, 2):
        process = python(script, path, job.id)
        process.communicate("\n", timeout=60)
        assert process.returncode == -signal.SIGKILL
        with Reader(path) as reader:
            assert reader.active() == [
                Job(job.id, b"killer.png", S.RUNNING, attempt, created=1.0, updated=3.0, lease=attempt)
            ]
        with Store(path) as store:
            assert len(store.history(job.id)) == 1 + 2 * attempt
            store.update(job.id, S.READY, at=4.0, detail={"why": "the worker died"})


def test_what_was_returned_survives_a_kill_and_what_was_not_is_whole(path: Path) -> None:
    script = """
store = Store(Path(sys.argv[1]))
for number in range(10**6):
    [job] = store.add([b"%d.png" % number], at=float(number))
    print(job.id, flush=True)
"""
    process = python(script, path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    seen = [int(process.stdout.readline()) for _ in range(25)]
    process.kill()
    # By the same reader: it may have taken in more than the lines it gave out.
    seen += [int(line) for line in process.stdout]
    process.communicate(timeout=60)
    with Store(path) as store:
        jobs = store.active()
        assert [job.id for job in jobs][: len(seen)] == seen
        assert len(jobs) <= len(seen) + 1
        assert all(store.history(job.id) == [Event(job.created, S.SETTLING, {})] for job in jobs)
        assert store.add([b"after.png"], at=1.0)[0].id == jobs[-1].id + 1


def test_a_closed_store_leaves_one_whole_file(path: Path) -> None:
    with Store(path) as store:
        store.add([b"a"], at=1.0)
        store.close()
    assert [file.name for file in path.parent.iterdir()] == ["jobs.db"]


def test_a_database_of_the_version_before_review_is_brought_up_to_date(tmp_path: Path) -> None:
    """Jobs and history stay as they are, and the states that came with it claim their paths."""
    path = tmp_path / "jobs.db"
    _made_by_revision("0003", path)
    with Store(path) as store:
        waiting, ended = store.get(1), store.get(2)
        assert waiting is not None
        assert ended is not None
        assert (waiting.path, waiting.state, waiting.choice) == (b"a.png", S.PUBLISHED, None)
        assert (ended.state, ended.code) == (S.FAILED, "no_region")
        assert [event.state for event in store.history(2)] == [S.FAILED]
        held = store.update(store.add([b"c.png"], at=3.0)[0].id, S.HOLDING, at=4.0)
        assert store.add([b"c.png"], at=5.0) == [], "a picture that is being held is active"
        store.update(held.id, S.REVIEW, at=5.0)
        assert len(store.add([b"c.png"], at=6.0)) == 1, "one that is held is not"
        with pytest.raises(StoreError, match="UNIQUE"):
            store.decide(held.id, Choice.RELEASE, by="anna", at=7.0)


def test_what_is_held_can_be_seen_by_the_version_before(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with Store(path) as store:
        job = store.add([b"a.png"], at=1.0)[0]
        store.update(job.id, S.REVIEW, at=2.0, code="no_region")
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        alembic.command.downgrade(alembic_config(connection), "0003")
        assert connection.exec_driver_sql("SELECT state FROM jobs").scalar() == "failed"
    engine.dispose()
    with Store(path) as store:
        assert store.get(job.id) is not None


def _made_by_revision(revision: str, path: Path) -> None:
    """A database as an earlier version left it, with a published job and a failed one."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        alembic.command.upgrade(alembic_config(connection), revision)
        for number, (name, state, code) in enumerate(
            [(b"a.png", "published", None), (b"b.png", "failed", "no_region")], 1
        ):
            connection.execute(
                sa.text(
                    "INSERT INTO jobs (id, path, state, attempts, code, not_before, created, updated) "
                    "VALUES (:id, :path, :state, 1, :code, 0, 1, 2)"
                ),
                {"id": number, "path": name, "state": state, "code": code},
            )
            connection.execute(
                sa.text("INSERT INTO events (job_id, at, state, detail) VALUES (:id, 2, :state, '{}')"),
                {"id": number, "state": state},
            )
    engine.dispose()
