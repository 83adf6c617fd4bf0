"""When files of the inbox are taken in; with the real store and folders, and a clock that the test moves."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backfire.admin import retry
from backfire.admin.explain import explain
from backfire.errors import InputError
from backfire.files import inbox
from backfire.files.inbox import Hints
from backfire.imaging.decoding import decode
from backfire.service.originals import Originals
from backfire.service.spool import Spool
from backfire.service.worker.protocol import Finished, Order
from backfire.types import Job, JobState
from benchmarks.soak import png
from tests.support.house import SOON, House, house
from tests.support.pictures import encoded, photo
from tests.support.system import full

__all__ = ["house"]


def test_a_done_marker_is_waited_for_and_goes_with_the_original(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1, "proof": "done"})
    inbox = home.base / "inbox"
    (inbox / "a.png").write_bytes(png("a"))
    (inbox / "b.png").write_bytes(png("b"))
    home.turn(times=50)
    assert home.states() == ["settling", "settling"], "however long they stay unchanged"
    (inbox / "a.png.done").touch()
    (inbox / "b.done").touch()
    home.turn(times=8)
    assert home.states() == ["archived", "archived"]
    assert set(home.files("archive")) == {"a.png", "a.png.done", "b.png", "b.done"}
    assert home.files("inbox") == {}


@pytest.mark.parametrize("lacks", ["its proof", "a writer's end"])
def test_once_leaves_what_waits_for_somebody_and_ends(house: Callable[..., House], lacks: str) -> None:
    proof = "done" if lacks == "its proof" else "none"
    home = house(watch={**SOON, "rescan_s": 1, "mode": "polling", "incomplete_wait_s": 20, "proof": proof})
    home.drop("a.png", "b.png")
    (home.base / "inbox" / "a.png.done").touch()
    began, home.tick = home.clock, 0.05
    step = home.service.step

    def bounded(hints: Hints) -> None:
        if home.clock > began + 200:
            home.service.stop()
        step(hints)

    home.service.step = bounded  # type: ignore[method-assign]
    with open(home.base / "inbox" / "b.png", "r+b" if lacks == "a writer's end" else "rb"):
        summary = home.service.run(until_idle=True)
    assert (summary.published, summary.left) == (1, 1)
    assert began + 20 < home.clock < began + 200
    assert home.states() == ["archived", "settling"]


def test_a_proof_may_be_spelt_otherwise_and_a_lone_one_is_named(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1, "proof": "done"})
    home.drop("IMG.JPG", "cafe\N{COMBINING ACUTE ACCENT}.png")
    for name in ("img.jpg.DONE", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.done", "other.done"):
        (home.base / "inbox" / name).touch()
    home.turn(times=8)
    assert home.states() == ["archived", "archived"]
    assert set(home.files("inbox")) == {"other.done"}
    assert "there is none of its name" in home.service.inbox.unused.reasons()["other.done"]


def test_a_checksum_must_match(house: Callable[..., House]) -> None:
    watch = {"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1, "proof": "sha256", "incomplete_wait_s": 20}
    home = house(watch=watch)
    inbox = home.base / "inbox"
    for name in ("good", "bad", "late"):
        (inbox / f"{name}.png").write_bytes(png(name))
    right = hashlib.sha256(png("good")).hexdigest()
    (inbox / "good.png.sha256").write_text(f"{right.upper()}  good.png\n")
    (inbox / "bad.png.sha256").write_text("0" * 64)
    (inbox / "late.png.sha256").write_text("1" * 64)
    home.turn(times=8)
    assert sorted(home.states()) == ["archived", "settling", "settling"]
    (inbox / "late.png.sha256").write_text(hashlib.sha256(png("late")).hexdigest())
    home.turn(times=40)
    assert set(home.files("outbox")) == {"good.png", "late.png"}
    assert set(home.files("failed")) == {"bad.png", "bad.png.sha256", "bad.png.error.json"}
    assert b'"checksum"' in home.files("failed")["bad.png.error.json"]
    assert home.files("inbox") == {}


LIST = "\r\n\r\nAlgorithm : {}\r\nHash      : {}\r\nPath      : C:\\p.png\r\n\r\n"
TABLE = (
    "\r\nAlgorithm       Hash                            Path\r\n"
    "---------       ----                            ----\r\n{:<16}{}       C:\\p.png\r\n\r\n"
)
"""What PowerShell writes of an object, narrower than it is."""


def test_a_checksum_is_read_as_programs_write_it(house: Callable[..., House]) -> None:
    home = house(watch={**SOON, "proof": "sha256"})
    digest = hashlib.sha256(png("p")).hexdigest()
    written = {
        "bare": digest.encode(),
        "binary": f"{digest} *binary.png\r\n".encode(),
        "bom": b"\xef\xbb\xbf" + digest.encode(),
        "bsd": f"SHA256 ({'0' * 64}.png) = {digest}\n".encode(),
        "bsd\\backslash": f"\\SHA256 (bsd\\\\backslash.png) = {digest}\n".encode(),
        "certutil": f"SHA256 hash of certutil.png:\r\n{digest}\r\nCertUtil: done\r\n".encode(),
        "openssl": f"SHA2-256(openssl.png)= {digest}\n".encode(),
        "powershell": (digest.upper() + "\r\n").encode("utf-16"),
        "powershell-list": LIST.format("SHA256", digest.upper()).encode("utf-16"),
        "powershell-table": TABLE.format("SHA256", digest.upper()).encode("utf-16"),
        "with\\backslash": f"\\{digest}  with\\\\backslash.png\n".encode(),
        "wrong-none": b"",
        "wrong-other": f"SHA256 ({digest}) = {'0' * 64}\n".encode(),
        "wrong-short": digest[:-1].encode(),
        "wrong-list": LIST.format("SHA512", digest * 2).encode(),
        "wrong-table": TABLE.format("SHA512", digest * 2).encode(),
        "wrong-sha512": f"{digest}{digest}  wrong-sha512.png\n".encode(),
    }
    for name, proof in written.items():
        home.drop(f"{name}.png", content="p")
        (home.base / "inbox" / f"{name}.png.sha256").write_bytes(proof)
    home.turn(times=80)
    assert set(home.files("outbox")) == {f"{name}.png" for name in written if not name.startswith("wrong")}
    told = {job.name: str(job.message) for job in home.service.jobs.store.jobs() if job.code == "checksum"}
    assert set(told) == {f"{name}.png" for name in written if name.startswith("wrong")}
    without = [name for name, message in told.items() if "without a SHA-256, expected" in message]
    assert sorted(without) == [
        *("wrong-list.png", "wrong-none.png", "wrong-sha512.png", "wrong-short.png", "wrong-table.png")
    ]
    assert "its checksum file says 000000000000…" in told["wrong-other.png"]


def test_a_proof_that_two_pictures_share_stays_for_the_second(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1, "proof": "done"})
    (home.base / "inbox" / "a.png").write_bytes(png("1"))
    (home.base / "inbox" / "a.jpg").write_bytes(png("2"))
    (home.base / "inbox" / "a.done").touch()
    home.turn(times=12)
    assert home.states() == ["archived", "archived"]
    assert home.files("inbox") == {}


def test_a_file_in_a_folder_named_masks_is_a_picture_if_no_picture_claims_it(
    house: Callable[..., House],
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 5, "rescan_s": 1})
    masks = home.base / "inbox" / "carnival" / "masks"
    masks.mkdir(parents=True)
    (masks / "venice.png").write_bytes(png("venice"))
    (masks / "claimed.png").write_bytes(png("mask"))
    (home.base / "inbox" / "lone.mask.png").write_bytes(png("lone"))
    home.turn(times=30)
    assert home.states() == [], "it may be the mask of a picture that is still to come"
    (masks.parent / "claimed.png").write_bytes(png("picture"))
    home.turn(times=60)
    assert set(home.files("outbox")) == {"carnival/masks/venice.png", "carnival/claimed.png"}
    assert set(home.files("inbox")) == {"lone.mask.png"}, "a mask by its name stays one"


@pytest.mark.parametrize("moment", ["while it waits", "while it is worked", "before it is archived"])
def test_a_mask_that_was_taken_for_a_picture_serves_its_picture_when_that_comes(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 0})
    home.drop("masks/p.png", content="mask")
    (home.base / "inbox" / "p").mkdir()  # a folder of its name is no picture
    used: dict[str, list[str]] = {}

    def work(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        used[order.name] = [name for name, _ in order.masks]
        if order.name == "masks/p.png" and moment == "while it is worked":
            home.drop("p.png")
        return process(order, progress)

    def copy(originals: Originals, job: Job, *given: Any) -> Any:
        if job.name == "masks/p.png" and moment == "before it is archived":
            home.drop("p.png")
        return real(originals, job, *given)

    process, real = home.process, Originals.copy
    home.process = work
    monkeypatch.setattr(Originals, "copy", copy)
    if moment == "while it waits":
        home.stuck = True
        home.drop("busy.png")
        home.turn(times=70)
        assert home.states() == ["running", "ready"]
        home.drop("p.png")
        home.turn(times=3)
        assert home.states()[1] == "skipped"
        home.stuck = False
        home.crash()
        home.again()
    home.turn(times=80)
    assert used["p.png"] == ["masks/p.png"]
    assert "p.png" in home.files("outbox")
    assert ("masks/p.png" in home.files("outbox")) == (moment == "before it is archived")
    assert home.files("inbox") == {}


@pytest.mark.parametrize("changed", [False, True])
def test_a_picture_whose_rights_change_while_it_is_worked_is_not_worked_again(
    house: Callable[..., House], changed: bool
) -> None:
    home = house(watch=SOON)
    home.drop("p.png", "p.mask.png")
    worked = []

    def work(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        worked.append(order.name)
        for file in (home.base / "inbox").iterdir():
            status = file.stat()
            if changed and len(worked) == 1:
                data = bytearray(file.read_bytes())
                data[len(data) // 2] ^= 1
                file.write_bytes(data)
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            file.chmod(0o640 + len(worked))
        return process(order, progress)

    process, home.process = home.process, work
    home.turn(5, times=6)
    assert home.states() == ["archived"]
    assert len(worked) == 1 + changed
    assert home.files("inbox") == {}


@pytest.mark.parametrize("moment", ["while it is queued", "while it is worked", "while it is put in place"])
def test_a_picture_that_is_copied_over_itself_is_not_worked_again(
    house: Callable[..., House], moment: str
) -> None:
    """Device and inode change, too, when its share is mounted again."""
    home = house(watch=SOON)
    home.drop("p.png", "p.mask.png")

    def again() -> None:
        for file in (home.base / "inbox").iterdir():
            new = file.with_suffix(".part")
            new.write_bytes(file.read_bytes())
            new.replace(file)

    def work(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        if moment == "while it is worked":
            again()
        return process(order, progress)

    process, home.process = home.process, work
    if moment == "while it is queued":
        home.stuck = True
        home.turn(5, times=2)
        again()
        home.stuck = False
        home.crash()
        home.again()
    elif moment == "while it is put in place":
        with full(home.base / "outbox"):
            home.turn(5, times=6)
        again()
    home.turn(60, times=6)
    assert home.states() == ["archived"]
    assert "changed" not in home.reasons()
    assert set(home.files("archive")) == {"p.png", "p.mask.png"}
    assert home.files("inbox") == {}


def test_what_was_touched_in_the_queue_is_read_a_part_at_a_time(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    home.drop("a.png", "b.png", "c.png")
    home.stuck = True
    home.turn(5, times=2)
    ready = home.service.jobs.of(JobState.READY)
    real, read = inbox.digest, list[bytes]()

    def digest(root: Path, path: bytes) -> Any:
        read.append(path)
        return real(root, path)

    monkeypatch.setattr(inbox, "digest", digest)
    monkeypatch.setattr("backfire.service.inbox.READ_BYTES", 1)
    for file in (home.base / "inbox").iterdir():
        os.utime(file, (1, 1))
    for done in range(1, len(ready) + 1):
        assert home.service.inbox.look()
        for job in ready:
            home.service.intake._is_changed(job)
        assert len(read) == done
    assert home.service.inbox.look()
    assert not any(map(home.service.intake._is_changed, ready))
    assert sorted(read) == sorted(job.path for job in ready), "what was read is noted"


def test_a_backlog_is_taken_in_a_part_at_a_time(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 3600})
    for number in range(2500):
        (home.base / "inbox" / f"{number}.png").touch()
    home.turn()
    assert (len(home.states()), home.service.intake.busy) == (2000, True)
    home.turn()
    assert (len(home.states()), home.service.intake.busy) == (2500, False)


def test_old_jobs_are_forgotten(house: Callable[..., House]) -> None:
    home = house(limits={"free_mb": 0, "history_days": 1}, watch={"settle_s": 1, "rescan_s": 1})
    (home.base / "inbox" / "a.png").write_bytes(png("a"))
    home.turn(times=6)
    assert home.states() == ["archived"]
    home.turn(seconds=86400 + 10, times=2)
    assert home.states() == []
    assert set(home.files("outbox")) == {"a.png"}, "files stay"


def test_a_watch_on_a_folder_that_was_replaced_is_renewed(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    hints = Hints(inbox, "inotify", threading.Event())
    try:
        assert not hints.renew()
        (tmp_path / "new").mkdir()  # before the old one goes, or it may be given the same inode
        shutil.rmtree(inbox)
        (tmp_path / "new").rename(inbox)
        assert hints.renew()
        assert not hints.renew()
    finally:
        hints.close()


@pytest.mark.parametrize("mode", ["polling", "inotify"])
def test_hints_change_their_mode(tmp_path: Path, mode: str) -> None:
    hints = Hints(tmp_path, "inotify", threading.Event())
    try:
        assert hints.watch(mode) == (mode != "inotify")
        assert hints.mode == mode
    finally:
        hints.close()


def begun(home: House, name: str) -> int:
    """Drops a picture, and returns the seconds until the work on it begins."""
    (home.base / "inbox" / name).parent.mkdir(parents=True, exist_ok=True)
    (home.base / "inbox" / name).write_bytes(png(name))
    for seconds in range(60):
        home.turn()
        found = home.service.jobs.store.by_path(name.encode())
        if found and found[0].attempts:
            return seconds
    raise AssertionError(f"{name} was not begun")


WAITING: dict[str, Any] = {"settle_s": 2, "mask_wait_s": 20, "rescan_s": 1}


def test_a_folder_whose_pictures_never_had_masks_does_not_wait_for_them(house: Callable[..., House]) -> None:
    home = house(watch=WAITING, regions={"detectors": ["sidecar"]})
    assert [begun(home, f"desk/{number}.png") >= 20 for number in range(5)] == [True] * 5
    home.turn(30, times=3)
    assert begun(home, "desk/sixth.png") <= 4
    assert begun(home, "desk/below/a.png") >= 20, "nothing is known of that folder"
    assert begun(home, "other.png") >= 20


def test_a_folder_that_has_had_a_mask_waits_for_them(house: Callable[..., House]) -> None:
    home = house(watch={**WAITING, "mask_wait_s": 8}, regions={"detectors": ["sidecar"]})
    for number in range(6):
        if number == 2:
            (home.base / "inbox" / "2.mask.png").write_bytes(png("mask"))
            assert begun(home, "2.png") <= 4, "its mask is there"
        else:
            assert begun(home, f"{number}.png") >= 8
    home.turn(30, times=3)
    assert begun(home, "next.png") >= 8
    home.crash()
    home.again()
    assert begun(home, "after-a-restart.png") >= 8


def test_a_mask_that_comes_against_expectation_has_the_picture_worked_again(
    house: Callable[..., House],
) -> None:
    home = house(watch=WAITING, regions={"detectors": ["sidecar"]})
    for number in range(5):
        begun(home, f"{number}.png")
    home.turn(30, times=3)
    real, orders = home.process, list[int]()

    def late(order: Order, progress: Callable[[str, int, int], None]) -> Finished:
        if not orders:
            (home.base / "inbox" / "p.mask.png").write_bytes(png("mask"))
        orders.append(len(order.masks))
        return real(order, progress)

    home.process = late
    begun(home, "p.png")
    home.turn(times=20)
    assert orders == [0, 1]
    assert "p.mask.png" in home.files("archive")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_ends_too_early_does_not_wait_for_a_worker(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is told from its bytes what it waits for, it fails in time, and its rest may come meanwhile."""
    home = house(watch={"settle_s": 2, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 30})
    home.stuck = True
    home.drop("before.png")
    home.turn(times=5)
    assert home.states() == ["running"], "the only worker is busy, and stays so"
    cut, later = (home.base / "inbox" / name for name in ("cut", "later"))
    whole = encoded(photo(), kind)
    cut.write_bytes(whole[: len(whole) // 2])
    later.write_bytes(whole[: len(whole) // 2])
    home.turn(times=6)
    config_file = home.base / "config.yaml"
    told = explain(cut, home.settings, config_file, home.service.jobs.store).waits_for
    assert told.startswith(
        "cut: ends too early: waits for the rest, and fails when nothing was added to it for 32 s"
    )
    later.write_bytes(whole)
    home.turn(times=32)
    states = {job.name: job for job in home.service.jobs.store.jobs()}
    assert states["later"].state == JobState.READY
    assert (states["cut"].state, states["cut"].code, states["cut"].attempts) == (
        JobState.FAILED,
        "truncated",
        0,
    )
    worker_says = decoding_error(whole[: len(whole) // 2])
    message = states["cut"].message or ""
    assert message.startswith(worker_says), "it is refused by the same rule and in the same words"
    assert re.fullmatch(r"; nothing was added to it for 3[2-5] s", message.removeprefix(worker_says))


def test_a_copy_that_cannot_be_looked_at_costs_no_other_picture(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1})
    look, failures = Spool.cut_short, iter(range(3))

    def fails_at_first(spool: Spool, name: str) -> InputError | None:
        if name == "b.png" and next(failures, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return look(spool, name)

    monkeypatch.setattr(Spool, "cut_short", fails_at_first)
    for name in ("a.png", "b.png", "c.png"):
        home.drop(name)
    home.turn(times=5)
    states = {job.name: job.state for job in home.service.jobs.store.jobs()}
    assert states == {"a.png": "archived", "b.png": "settling", "c.png": "archived"}
    home.turn(times=30)
    assert home.states() == ["archived"] * 3, "it is tried again"


def decoding_error(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        decode(data, name="cut", max_pixels=1 << 20)
    return caught.value.message


def test_a_picture_that_ends_too_early_says_how_long_it_was_waited_for(house: Callable[..., House]) -> None:
    home = house(watch={"settle_s": 2, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 30})
    (home.base / "inbox" / "p.png").write_bytes(png("p")[:-20])
    home.turn(times=20)
    assert home.states() == ["settling"]
    home.turn(times=30)
    (job,) = home.service.jobs.store.jobs()
    assert job.code == "truncated"
    assert re.search(r"; nothing was added to it for 3[2-5] s$", job.message or "")


def test_a_failed_picture_that_is_deleted_after_a_retry_needs_nobody(house: Callable[..., House]) -> None:
    home = house(watch={**SOON, "settle_s": 20, "rescan_s": 1})
    store = home.service.jobs.store
    home.drop("a.png", content=b"\x89PNG\r\n\x1a\nno picture")
    home.turn(15, times=8)
    assert home.states() == ["failed"]
    for _ in range(2):
        (job,) = store.needing("failed", 9)
        assert retry.put_back(job, home.settings)
        home.turn(15, times=8)
    assert home.states() == ["failed"] * 3
    (job,) = store.needing("failed", 9)
    assert retry.put_back(job, home.settings)
    home.turn(2, times=2)
    assert home.states()[3] == "settling"
    (home.base / "inbox/a.png").unlink()
    home.turn(5, times=4)
    assert home.states() == ["skipped"] * 4
    assert store.needing("failed", 9) == []
    assert "left the inbox as job 4 before it was worked again" in home.reasons()


def test_a_failed_picture_whose_namesake_is_deleted_still_needs_somebody(house: Callable[..., House]) -> None:
    home = house(watch={**SOON, "settle_s": 20, "rescan_s": 1})
    home.drop("a.png", content=b"\x89PNG\r\n\x1a\nno picture")
    home.turn(15, times=8)
    home.drop("a.png")
    home.turn(2, times=2)
    assert home.states() == ["failed", "settling"]
    (home.base / "inbox/a.png").unlink()
    home.turn(5, times=4)
    assert home.states() == ["failed", "skipped"]
    assert [job.id for job in home.service.jobs.store.needing("failed", 9)] == [1]
