"""Faults 5, 8, 21, 25, 26: full disks, missing mounts, missing rights, bad databases, power cuts."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from backfire.files import outbox
from backfire.service.store import database
from tests.support.house import House
from tests.support.jobs import assert_published, picture, reasons, states, wait_until_idle
from tests.support.sandbox import Process, Sandbox, wait_for
from tests.support.system import below, calling, failing, without_links

KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
def test_fault_05_what_is_not_synced_may_vanish_so_nothing_unsynced_gets_a_final_name(
    tmp_path: Path, links: bool
) -> None:
    """Before a file gets its final name its content is synced, and after that its folder."""
    synced: set[tuple[int, int]] = set()
    order: list[str] = []

    def recorded(real: Callable[[int], None], descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.add((status.st_ino, status.st_size))
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real(descriptor)

    def naming(real: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        if b".backfire-" not in os.path.basename(os.fsencode(target)) and not os.path.isdir(source):
            status = os.stat(source)
            assert (status.st_ino, status.st_size) in synced, "named before it was synced"
            order.append("name")
        real(source, target, **options)

    named = [calling(name, naming) for name in ("link", "rename", "replace")]
    with calling("fsync", recorded), named[0], named[1], named[2]:
        with nullcontext() if links else without_links():
            outbox.place(b"result", tmp_path / "outbox", b"p.png", key=KEY)
        assert order[-3:] == ["file", "name", "folder"]
        outbox.replace(b"{}", tmp_path / "reports", b"p.json")
        assert order[-3:] == ["file", "name", "folder"]


def apart(sandbox: Sandbox, *folders: str, size: str = "2m") -> Process:
    """Start the daemon in a mount namespace of its own, with small file systems on some of its folders."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unprivileged user namespaces")
    mounts = " && ".join(f"mount -t tmpfs -o size={size} tmpfs {sandbox.base / name}" for name in folders)
    (sandbox.base / "state").mkdir(exist_ok=True)
    return sandbox.start("unshare", "-Urm", "sh", "-c", f'{mounts} && exec "$@"', "sh")


def inside(process: Process, command: str) -> None:
    """Run a shell command where the daemon sees its file systems."""
    enter = ["nsenter", "--preserve-credentials", "-U", "-m", "-t", str(process.pid), "sh", "-c", command]
    subprocess.run(enter, check=True, capture_output=True)


@pytest.mark.parametrize("folder", ["outbox", "archive", "reports"])
def test_fault_08_no_space_pauses_and_resumes_by_itself(gated: Sandbox, folder: str) -> None:
    gated.configure(limits={"free_mb": 0})
    process = apart(gated, folder)
    place = gated.base / folder
    inside(process, f"dd if=/dev/zero of={place}/.filler bs=1k 2>/dev/null || true")
    data = picture(size=(120, 90))
    gated.drop(data, "p.png")
    wait_for(lambda: "free some space" in reasons(gated), because="the job to wait for a retry")
    assert states(gated)[0] in ("publishing", "published")
    inside(process, f"rm {place}/.filler")
    wait_until_idle(gated)
    assert process.poll() is None
    assert (states(gated), gated.files("failed")) == (["archived"], set())
    (gated.base / "dropped").write_bytes(data)
    is_there = f"test -s {place}/p.png.json" if folder == "reports" else f"cmp {place}/p.png dropped"
    inside(process, f"cd {gated.base} && {is_there}")


def test_fault_08_no_space_in_the_spool_and_the_database(gated: Sandbox) -> None:
    gated.configure(limits={"free_mb": 0})
    process = apart(gated, "state", size="4m")
    place = gated.base / "state"
    inside(process, f"dd if=/dev/zero of={place}/filler bs=1k 2>/dev/null || true")
    data = {f"{number}.png": picture(number, size=(120, 90)) for number in range(3)}
    for name, content in data.items():
        gated.drop(content, name)
    wait_for(
        lambda: '"database_unavailable"' in gated.log() or '"postponed"' in gated.log(),
        because="the daemon to notice",
    )
    assert process.poll() is None
    inside(process, f"rm {place}/filler")
    wait_for(lambda: gated.files("outbox") == set(data), because="it to go on by itself")
    wait_for(lambda: gated.files("inbox") == set(), because="the originals to be archived")
    # Only the daemon can see the database, which lies on its own mount. The last step of a job adds this to
    # its receipt.
    wait_for(
        lambda: all("from the archive" in str(gated.receipt(name)) for name in data),
        because="the jobs to end",
    )
    process.terminate()
    assert process.wait(60) == 0
    assert_published(gated, data)


def test_fault_08_too_little_free_space_pauses_the_work_before_anything_fails(gated: Sandbox) -> None:
    gated.configure(limits={"free_mb": 10**9})
    process = gated.start()
    data = picture()
    gated.drop(data, "p.png")
    wait_for(
        lambda: "limits.free_mb asks for" in gated.backfire("status").stdout, because="status to tell of it"
    )
    assert set(states(gated)) <= {"settling", "waiting_mask"}
    gated.configure(limits={"free_mb": 0})
    process.send_signal(signal.SIGHUP)
    wait_until_idle(gated)
    assert_published(gated, {"p.png": data})


def test_fault_21_a_share_that_is_unmounted_is_waited_for_without_a_restart(gated: Sandbox) -> None:
    process = apart(gated, "inbox", size="4m")
    data = picture()
    (gated.base / "p.png").write_bytes(data)
    (gated.base / "gate").write_text("open")
    inside(process, f"cp {gated.base}/p.png {gated.inbox}/p.png")
    wait_for(lambda: states(gated) == ["running"], because="the job to run")
    # Without the share, its files are gone too: there is only the empty folder that it was mounted on.
    inside(process, f"mount -t tmpfs keep /mnt && cp {gated.inbox}/p.png /mnt && umount -l {gated.inbox}")
    wait_for(lambda: "is not mounted now" in gated.backfire("status").stdout, because="the daemon to miss it")
    (gated.base / "gate").unlink()
    wait_for(lambda: "is not mounted now" in reasons(gated), because="publishing to wait for it")
    assert gated.files("outbox") == set()
    inside(process, f"mount -t tmpfs tmpfs {gated.inbox} && cp -p /mnt/p.png {gated.inbox}/p.png")
    wait_until_idle(gated)
    assert process.poll() is None
    assert set(states(gated)) == {"archived"}, "nothing was given up while the share was away"
    assert_published(gated, {"p.png": data})


def test_fault_25_unreadable_input_names_uid_and_mode_and_is_tried_again(house: Callable[..., House]) -> None:
    home = house()
    home.drop("p.png", content=picture())
    (home.base / "inbox" / "p.png").chmod(0o200)

    def reads_it(path: Any, flags: int, *_: Any) -> bool:
        return path == b"p.png" and bool(flags & os.O_NONBLOCK)

    with failing("open", number=errno.EACCES, when=reads_it):  # root may read what nobody else may
        home.turn(times=30)
        assert f"as uid {os.geteuid()}" in home.reasons()
        assert "mode 0200" in home.reasons()
        assert home.reasons().count("mode 0200") < 5, "it backs off, and does not repeat itself"
        assert home.states() == ["settling"]
    home.turn(times=80)
    assert home.states() == ["archived"]


def test_fault_25_an_outbox_without_write_access_is_waited_for(house: Callable[..., House]) -> None:
    home = house()
    home.drop("p.png", content=picture())
    with failing("open", number=errno.EACCES, when=below(home.base / "outbox")):
        home.turn(times=30)
        assert home.states() == ["publishing"]
        assert f"give uid {os.geteuid()} write access" in home.reasons()
    home.turn(times=80)
    assert home.states() == ["archived"]
    assert home.service.jobs.store.jobs()[0].attempts == 1


def test_fault_26_a_locked_database_is_waited_for(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon waits for a lock for 30 s, here for less; then it pauses and tries again."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    home = house(watch={"settle_s": 0, "rescan_s": 0.01})
    home.drop("p.png", content=picture())
    holder = sqlite3.connect(
        home.base / "state" / "backfire.sqlite", isolation_level=None, check_same_thread=False
    )
    holder.execute("BEGIN IMMEDIATE")
    home.tick = 0.05
    with capture_logs() as lines:

        def was_noticed() -> bool:
            return any(line["event"] == "database_unavailable" for line in lines)

        def release() -> None:
            try:
                wait_for(was_noticed, seconds=30, because="the daemon to notice the lock")
            finally:
                holder.execute("COMMIT")

        releasing = threading.Thread(target=release)
        releasing.start()
        home.service.run(until_idle=True)
        releasing.join()
    holder.close()
    assert was_noticed()
    assert home.states() == ["archived"]


def test_fault_26_a_corrupt_database_is_refused_with_restore_steps(gated: Sandbox) -> None:
    (gated.base / "state").mkdir()
    (gated.state / "backfire.sqlite").write_bytes(b"holiday pictures" * 1000)
    gated.drop(picture(), "p.png")
    result = gated.backfire("run", timeout=60)
    assert result.returncode == 4
    assert "move the file aside" in result.stderr
    assert gated.files("inbox") == {"p.png"}
    (gated.state / "backfire.sqlite").unlink()
    assert gated.backfire("once").returncode == 0


def test_fault_26_after_the_database_was_deleted_the_inbox_is_taken_in_again(gated: Sandbox) -> None:
    data = picture()
    gated.drop(data, "p.png")
    assert gated.backfire("once").returncode == 0
    for file in gated.state.glob("backfire.sqlite*"):
        file.unlink()
    gated.drop(data, "p.png")
    spool = gated.state / "spool"
    (spool / "7").mkdir()  # as of a picture that is held, whose result would be deleted
    refused = gated.backfire("once")
    assert refused.returncode == 4
    assert "move the folder spool beside it away, too" in refused.stderr
    assert (spool / "7").is_dir()
    spool.rename(gated.base / "away")
    spool.mkdir()  # an empty one has nothing to lose
    assert gated.backfire("once").returncode == 0
    assert_published(gated, {"p.png": data})
