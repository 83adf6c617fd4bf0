"""Several faults at once, and what one of them must not do to the others."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from backfire import config
from backfire.admin import retry
from backfire.errors import Code, ConfigError, ModelError, UnavailableError
from backfire.files import inbox, manifest
from backfire.files.inbox import mounts
from backfire.files.outbox.names import hidden
from backfire.pipeline.result import PhaseProgress
from backfire.service import deduplicate
from backfire.service.hooks.courier import Courier
from backfire.service.worker.protocol import Finished, Order
from backfire.types import JobState
from benchmarks import passthrough
from benchmarks.soak import png
from tests.support.house import SOON, House
from tests.support.jobs import picture
from tests.support.notified import Notified
from tests.support.system import below, calling, failing, full, named

Make = Callable[..., House]


def test_an_outcome_that_waited_out_a_database_failure_is_not_taken_for_the_next_job(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content=picture(1)[:-20])
    home.drop("b.png", content=picture(2))
    dispatcher, jobs_ = home.service.dispatcher, home.service.jobs
    home.service.intake.step()
    home.clock += 5
    home.service.intake.step()
    home.clock += 5
    home.service.intake.step()
    assert dispatcher.step(), "the worker reports a.png, which is not recorded, as if the database failed"
    jobs_.load()
    dispatcher.resume(crashed=False)
    home.turn(5, times=5)
    assert (list(home.files("outbox")), home.states()) == (["b.png"], ["failed", "archived"])
    assert set(home.files("failed")) == {"a.png", "a.png.error.json"}


def test_an_error_of_a_library_about_one_picture_does_not_hold_up_the_others(house: Make) -> None:
    home = house(watch=SOON)

    def process(order: Order, progress: PhaseProgress) -> Finished:
        if order.name == "a.png":
            raise OSError("encoder error -2 when writing image file")  # as Pillow raises it, without errno
        return passthrough.process(order, progress)

    home.process = process
    home.drop("a.png", content=picture(1))
    home.drop("b.png", content=picture(2))
    home.turn(5, times=8)
    assert (list(home.files("outbox")), home.states()) == (["b.png"], ["failed", "archived"])


def test_a_result_that_cannot_be_written_to_the_spool_costs_no_attempt(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content=picture(1))
    with failing("fsync", number=errno.ENOSPC, when=named("result.json.part")):
        home.turn(5, times=6)
    (job,) = home.service.jobs.active.values()
    assert (job.state, job.attempts) == ("ready", 0)
    home.turn(40, times=4)
    assert home.states() == ["archived"]


def test_a_rule_decides_how_often_its_pictures_are_tried(house: Make) -> None:
    home = house(watch=SOON, rules=[{"match": "once/**", "attempts": 1}])

    def process(order: Order, progress: PhaseProgress) -> Finished:
        raise ModelError(Code.DETECTOR, "no luck")

    home.process = process
    home.drop("once/a.png", content=picture(1))
    home.turn(5, times=6)
    assert home.states() == ["failed"]


def test_half_a_copy_does_not_keep_the_disk_full(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content=picture(1))
    with failing("fsync", number=errno.ENOSPC, when=below(home.base / "state" / "spool")):
        home.turn(5, times=4)
        assert "No space" in home.reasons()
        assert home.files("state/spool") == {}
    home.turn(60, times=4)
    assert home.states() == ["archived"]


@pytest.mark.parametrize("left", [b"", b"half"])
def test_half_a_private_copy_is_made_anew(house: Make, left: bytes) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content=picture(1))
    with full(home.base / "archive"):
        home.turn(5, times=4)
    assert home.states() == ["published"]
    home.crash()
    (copy,) = (home.base / "state/spool").rglob("input")
    copy.write_bytes(left)
    home.again()
    home.turn(5, times=2)
    assert home.states() == ["archived"]
    assert home.files("archive")["a.png"] == picture(1)


def test_a_copy_noted_by_an_older_version_is_archived(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content=picture(1))
    with full(home.base / "archive"):
        home.turn(5, times=4)
    assert home.states() == ["published"]
    (taken,) = (home.base / "state/spool").rglob("taken.json")
    document = json.loads(taken.read_text())
    del document["proof"]
    taken.write_text(json.dumps(document))
    home.crash()
    home.again()
    home.turn(5, times=2)
    assert home.states() == ["archived"]


def test_mounts_of_any_name_are_understood(tmp_path: Path) -> None:
    lines = [
        b"22 1 8:1 / / rw - ext4 /dev/sda1 rw",
        "23 22 0:40 / /mnt/B\u00fccher\\040neu rw - cifs //server/b rw".encode(),
        b"24 22 0:41 / /media/stick\xff rw - vfat /dev/sdb1 rw",
    ]
    table = tmp_path / "mountinfo"
    table.write_bytes(b"\n".join(lines) + b"\n")
    inside = Path("/mnt/B\u00fccher neu/in")
    assert (inbox.mounted(inside, table).point, inbox.filesystem(inside, table)) == (
        "/mnt/B\u00fccher neu",
        "cifs",
    )
    assert inbox.filesystem(Path(os.fsdecode(b"/media/stick\xff/in")), table) == "vfat"


def test_a_lease_that_a_network_share_refuses_says_nothing_of_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFSv4 refuses the lease of every file that its server did not delegate."""
    table, device = tmp_path / "mountinfo", os.stat(tmp_path).st_dev
    (tmp_path / "p.png").write_bytes(b"whole")
    kinds = []
    with (tmp_path / "p.png").open("r+b") as file:  # so that there is no lease
        for kind in ("ext4", "nfs4"):
            table.write_text(f"1 0 {os.major(device)}:{os.minor(device)} / / rw - {kind} /dev/sda1 rw\n")
            monkeypatch.setattr(mounts.is_on_network, "__defaults__", (table,))
            kinds.append(inbox.is_being_written(file.fileno()))
    assert kinds == [True, False]


def test_a_new_version_that_is_saved_while_its_picture_is_archived_is_worked(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png")
    writers: list[IO[bytes]] = []

    def process(order: Order, progress: PhaseProgress) -> Finished:
        if not writers:
            writers.append((home.base / "inbox" / "a.png").open("r+b"))
        return passthrough.process(order, progress)

    home.process = process
    home.turn(times=5)
    assert home.states() == ["published"]
    assert "close it there" in home.reasons()
    assert set(home.files("inbox")) == {"a.png"}
    with writers[0] as writer:
        writer.write(png("a newer one"))
        writer.truncate()
    home.turn(seconds=60, times=4)
    assert home.states() == ["archived", "archived"]
    assert home.files("inbox") == {}
    assert sorted(home.files("archive").values()) == sorted([png("a.png"), png("a newer one")])


def test_a_result_that_was_taken_before_its_record_is_not_published_again_after_a_restart(
    house: Make,
) -> None:
    home = house(watch=SOON)
    home.drop("a.png")
    obstacle = home.base / "outbox" / os.fsdecode(manifest.name(home.wall))
    obstacle.mkdir(parents=True)
    home.turn(times=4)
    assert home.states() == ["publishing"]
    assert "move away what has its name" in home.reasons()
    (home.base / "outbox" / "a.png").unlink()
    home.crash()
    home.again()
    home.turn(times=4)
    obstacle.rmdir()
    home.turn(seconds=60, times=2)
    assert home.states() == ["archived"]
    assert home.files("outbox") == home.files("inbox") == {}
    assert manifest.read(home.base / "outbox").entries == (
        manifest.Entry(b"a.png", home.service.jobs.store.jobs()[0].output_sha256 or ""),
    )


def test_what_systemd_mounts_for_its_sandbox_is_no_share(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / ro - ext4 /dev/sda1 ro\n"
        "2 1 8:1 /srv/pictures /srv/pictures rw - ext4 /dev/sda1 rw\n"  # ReadWritePaths=
        "3 2 8:1 /elsewhere /srv/pictures/bound rw - ext4 /dev/sda1 rw\n"
        "4 2 0:40 / /srv/pictures/share ro - cifs //nas/p ro\n"
        "5 4 0:40 /in /srv/pictures/share/in rw - cifs //nas/p rw\n"
    )

    def point(path: str) -> str:
        return inbox.mounted(Path(path), table).point

    assert point("/srv/pictures/in") == "/"
    assert point("/srv/pictures/bound/in") == "/srv/pictures/bound"
    assert point("/srv/pictures/share/in/a") == "/srv/pictures/share"


@pytest.mark.parametrize(
    ("lines", "path", "point"),
    [
        (["1 0 / ext4", "2 1 /srv/a nfs4", "3 1 /srv tmpfs"], "/srv/a/in", "/srv"),
        (["1 0 / ext4", "3 1 /srv tmpfs", "2 3 /srv/a nfs4"], "/srv/a/in", "/srv/a"),
        (["1 0 / ext4", "2 1 /srv/a autofs", "3 2 /srv/a nfs4"], "/srv/a/in", "/srv/a"),
        (["1 1 / rootfs", "2 1 / ext4", "3 2 /srv/a nfs4"], "/srv/a/in", "/srv/a"),
        (["1 0 / ext4", "2 1 /srv/a nfs4", "3 1 / tmpfs"], "/srv/a/in", "/"),
        (["7 5 /srv ext4", "8 7 /srv/a nfs4", "9 5 /proc proc"], "/srv/a/in", "/srv/a"),
        (["1 2 / ext4", "2 1 /srv/a nfs4"], "/srv/a/in", "/srv/a"),
        (["7 5 /proc proc"], "/srv/a/in", ""),
        ([], "/srv/a/in", ""),
    ],
    ids=["hidden", "inside", "automounted", "rootfs", "hidden root", "chroot", "circle", "elsewhere", "none"],
)
def test_a_mount_that_another_one_hides_holds_nothing(
    tmp_path: Path, lines: list[str], path: str, point: str
) -> None:
    table = tmp_path / "mountinfo"
    with table.open("w") as file:
        for number, line in enumerate(lines):
            own, parent, folder, kind = line.split()
            file.write(f"{own} {parent} 0:{number} / {folder} rw - {kind} source rw\n")
    found = inbox.mounted(Path(path), table)
    assert found.point == point
    kinds = [line.split()[3] for line in lines if line.split()[2] == point]
    assert found.kind == (kinds[-1] if kinds else "unknown")


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders on which shares are mounted."""
    mounted: list[Path] = []

    def table(_: Path) -> Iterator[inbox.Mount]:
        yield inbox.Mount("/", "ext4", "/dev/sda1", "1", "0", "8:1", "/")
        for number, folder in enumerate(mounted):
            yield inbox.Mount(str(folder), "nfs4", "nas:/p", f"9{number}", "1", f"0:{number}", "/")

    monkeypatch.setattr("backfire.files.inbox.mounts._mounts", table)
    return mounted


@pytest.mark.parametrize("name", ["archive", "outbox"])
def test_nothing_is_moved_into_an_empty_mount_point(house: Make, shares: list[Path], name: str) -> None:
    home = house(watch={**SOON, "rescan_s": 1})
    shares.append(home.base / name)
    home.turn(5)
    home.silent = True
    home.drop("a.png", content=picture(1))
    home.turn(5, times=4)
    shares.clear()
    home.silent = False
    home.turn(5, times=4)
    assert set(home.files("inbox")) == {"a.png"}
    assert home.files(name) == home.files("outbox") == {}
    assert f"lay on {home.base / name} (nfs4, nas:/p), which is not mounted now" in home.reasons()
    told = home.service.jobs.store.fact("daemon")
    assert told is not None
    assert "mount it again" in told[0]["trouble"]
    home.drop("b.png", content=picture(2))
    home.turn(5, times=4)
    assert home.states()[1] == "settling", "nothing new is begun"
    shares.append(home.base / name)
    home.turn(60, times=6)
    assert home.states() == ["archived", "archived"]


def test_a_share_that_an_automounter_mounts_when_it_is_entered_is_not_gone(
    house: Make, shares: list[Path]
) -> None:
    home = house(watch={**SOON, "rescan_s": 1})
    folders = [home.base / "inbox", home.base / "archive"]
    shares.extend(folders)
    home.turn(5)
    shares.clear()

    def entered(real: Callable[..., Any], path: Any, **more: Any) -> Any:
        shares.extend(one for one in folders if path == f"{one}/." and one not in shares)
        return real(path, **more)

    with calling("stat", entered):
        home.drop("a.png", content=picture(1))
        home.turn(5, times=4)
    assert home.states() == ["archived"]


def test_the_mount_table_is_read_once_for_all_folders(house: Make, shares: list[Path]) -> None:
    home = house(watch=SOON)
    home.turn(5)
    mounts = home.service.inbox.mounts
    table, reads = inbox.mounts._mounts, 0

    def counted(file: Path) -> Iterator[inbox.Mount]:
        nonlocal reads
        reads += 1
        return table(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backfire.files.inbox.mounts._mounts", counted)
        mounts.require_written()
    assert reads == 1


def test_where_the_inbox_lay_by_an_older_version_is_still_known(house: Make, shares: list[Path]) -> None:
    home = house(watch=SOON)
    folder, store = home.base / "inbox", home.service.jobs.store

    def noted() -> dict[str, Any]:
        found = store.fact("inbox")
        assert found is not None
        return dict(found[0])

    def looked(*points: Path) -> bool:
        nonlocal store
        home.crash()
        shares[:] = points
        home.again()
        store = home.service.jobs.store
        home.turn(5)
        return not home.service.inbox.trouble

    old = {"path": str(folder), "mount": str(home.base)}
    store.set_fact("inbox", old, at=0)
    assert not looked(), "the share is gone"
    assert noted() == old
    assert f"lay on {home.base}, which is not mounted now" in home.service.inbox.trouble
    assert looked(home.base)
    assert noted() == {**old, "filesystem": "nfs4", "source": "nas:/p"}


def test_a_bind_mount_that_an_older_version_took_for_a_share_is_none(
    house: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    folder = home.base / "inbox"

    def table(_: Path) -> Iterator[inbox.Mount]:
        yield inbox.Mount("/", "ext4", "/dev/sda1", "1", "0", "8:1", "/")
        yield inbox.Mount(str(home.base), "ext4", "/dev/sda1", "2", "1", "8:1", str(home.base))

    monkeypatch.setattr("backfire.files.inbox.mounts._mounts", table)
    home.service.jobs.store.set_fact("inbox", {"path": str(folder), "mount": str(home.base)}, at=0)
    home.turn(5)
    assert home.service.inbox.trouble == ""


def test_without_a_mount_table_what_was_known_is_kept(
    house: Make, shares: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = house(watch=SOON)
    shares.append(home.base)
    home.turn(5)
    store = home.service.jobs.store
    before = store.fact("inbox"), store.fact("archive")
    monkeypatch.setattr("backfire.files.inbox.mounts._mounts", lambda _: iter(()))
    home.turn(5)
    assert (store.fact("inbox"), store.fact("archive")) == before


def test_a_folder_whose_share_is_gone_is_not_made_anew(house: Make, shares: list[Path]) -> None:
    home = house(watch=SOON)
    shares.append(home.base)
    home.turn(5)
    home.crash()
    shares.clear()
    (home.base / "archive").rmdir()
    with pytest.raises(UnavailableError, match=r"^archive .*archive: lay on .*; mount it again"):
        home.again()
    assert not (home.base / "archive").exists()


@pytest.mark.parametrize(
    "broken",
    [
        "day: 2026-13-45",
        "models: {folder: ~nobody-of-this-name/models}",
        "a: " + "[" * 1000,
        f"editors: {{e: {{kind: lama, weights: {'x' * 300}}}}}",
    ],
    ids=["date", "home", "depth", "length"],
)
def test_no_configuration_however_broken_ends_the_daemon_at_reload(
    house: Make, tmp_path: Path, broken: str
) -> None:
    home = house(watch=SOON)
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{inbox: inbox}}\n{broken}\n")
    home.service.load = lambda: config.load(file)
    home.service.reload()
    before = home.service.settings
    home.turn()
    assert home.service.settings is before
    assert "config.yaml" in home.service.heartbeat.refused_config


@pytest.mark.parametrize(
    "text", ["hooks:\n  webhook: https://u:SECRET@host/x: y\n", "hooks: https://u:SECRET@host/x\n"]
)
def test_a_refused_configuration_does_not_repeat_what_may_be_a_password(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("folders: {inbox: in}\n" + text)
    with pytest.raises(ConfigError) as refused:
        config.load(file)
    assert "SECRET" not in str(refused.value)


def test_a_longer_silence_is_allowed_from_the_reload_on(house: Make) -> None:
    home = house(limits={"free_mb": 0, "silence_s": 100})
    longer = home.settings.model_copy(
        update={"limits": home.settings.limits.model_copy(update={"silence_s": 5000})}
    )
    home.service.load = lambda: longer
    home.service.reload()
    home.turn()
    pulse = home.service.operations.pulse
    pulse.heard = home.clock - 4000
    assert pulse.stuck(home.clock) == []


def test_a_result_of_a_longer_extension_than_its_name_has_room_for_is_published(house: Make) -> None:
    home = house(watch=SOON)
    home.process = lambda *given: replace(passthrough.process(*given), extension=".webp")
    home.drop("x" * 251 + ".png", content=picture(1))
    home.turn(5, times=5)
    assert (home.states(), list(home.files("outbox"))) == (["archived"], ["x" * 250 + ".webp"])


def test_a_receipt_that_a_power_cut_emptied_does_not_end_the_daemon(house: Make) -> None:
    home = house(watch=SOON)
    home.drop("a.png", content=picture(1))
    with full(home.base / "archive"):
        home.turn(5, times=3)
    assert home.states() == ["published"]
    (spooled,) = (home.base / "state/spool").rglob("receipt.json")
    spooled.write_bytes(b"")
    (job,) = home.service.jobs.active.values()
    begun = home.base / "reports" / os.fsdecode(hidden(b"a.png.json", job.key or ""))
    begun.write_bytes(b"{")
    home.turn(60, times=2)
    assert home.states() == ["archived"]
    assert not begun.exists(), "nothing would finish writing it"
    assert json.loads(home.files("reports")["a.png.json"])["key"], "what was published keeps its receipt"


def test_many_files_that_cannot_be_read_do_not_hold_up_the_loop(house: Make) -> None:
    home = house(watch=SOON)
    tried: list[bytes] = []

    def slow(real: Callable[..., int], path: Any, flags: int, *given: Any, **more: Any) -> int:
        if flags & os.O_NONBLOCK and path.endswith(b".png"):
            tried.append(path)
            home.clock += 0.4
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, flags, *given, **more)

    for number in range(20):
        home.drop(f"{number:02}.png", content=picture(1))
    with calling("open", slow):
        home.turn(5, times=2)
        assert 1 <= len(tried) <= 18, "one batch in each round, and one file whose first bytes are looked at"
        home.turn(0.1, times=9)
    assert len(set(tried)) == 20, "the next rounds go on where this one stopped"


def test_a_slow_scan_may_be_followed_by_a_long_pause(house: Make, notified: Notified) -> None:
    home = house()

    def slow(real: Callable[..., Any], *given: Any) -> Any:
        home.clock += 30
        return real(*given)

    with calling("scandir", slow):
        for _ in range(40):
            notified.read()
            home.turn(5)
            assert "WATCHDOG=1" in notified.read()


@pytest.mark.parametrize(
    ("regions", "masks", "worked"),
    [
        ({"detectors": ["faces"]}, {}, 1),
        ({"detectors": ["command"], "command": {"argv": ["true"]}}, {}, 2),
        ({"detectors": ["sidecar"]}, {"a.json": b"[]", "b.json": b"[]"}, 2),
    ],
    ids=["by the key", "by a program", "by annotations that name pictures"],
)
def test_a_result_is_taken_over_only_where_its_key_decides_all(
    house: Make,
    regions: dict[str, Any],
    masks: dict[str, bytes],
    worked: int,
) -> None:
    home = house(watch=SOON, regions=regions)
    for name, data in masks.items():
        home.drop(name, content=data)
    for name in ("a.png", "b.png"):
        home.drop(name, content=picture(1))
        home.turn(20, times=4)
    assert (home.states(), sum(map(len, home.sent))) == (["archived", "archived"], worked)


@pytest.mark.parametrize("change", ["none", "another surrogate", "another held-out one", "other weights"])
def test_a_result_of_other_editors_is_not_taken_over(house: Make, tmp_path: Path, change: str) -> None:
    """`protect.surrogates: auto` is the same key, whatever editors are there."""
    file = tmp_path / "mine.pt"
    file.write_bytes(b"never read here")
    editors = {"mine": {"kind": "torchscript", "weights": [str(file)]}}
    home = house(watch=SOON, editors=editors, verify={"held_out": ["mine"]})
    home.wall = time.time() + (-3600 if change == "other weights" else 3600)
    home.drop("a.png", content=picture(1))
    home.turn(20, times=4)
    (made,) = (home.base / "reports").glob("a.png.json")
    names = {"surrogates": ["flux2-mini"], "held_out": ["mine"]}
    if change == "another surrogate":
        names["surrogates"].append("since-removed")
    elif change == "another held-out one":
        names["held_out"] = ["flux2-micro"]
    rows = {field: [{"name": name, "weights_sha256": "0"} for name in some] for field, some in names.items()}
    made.write_text(json.dumps({**json.loads(made.read_text()), **rows}))
    home.drop("b.png", content=picture(1))
    home.turn(20, times=4)
    assert home.states() == ["archived", "archived"]
    assert sum(map(len, home.sent)) == (1 if change == "none" else 2)


@pytest.mark.parametrize("on_nodes", [True, False])
def test_a_result_made_in_a_cluster_is_taken_over_without_the_editors_of_its_nodes(
    house: Make, on_nodes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    editors = {"mine": {"kind": "torchscript", "weights": ["/nowhere/mine.pt"]}}
    cluster = {"cluster": {"address": "head:6379"}} if on_nodes else {}
    protect, verify = {"surrogates": ["mine"]}, {"held_out": ["mine"]}
    home = house(watch=SOON)
    settings = config.parse(
        {"folders": {"inbox": "inbox"}, "editors": editors, "protect": protect, "verify": verify, **cluster},
        base=home.base,
    )
    (job,) = home.service.jobs.store.add([b"a.png"], at=home.wall)
    receipt = {field: [{"name": "mine"}] for field in ("surrogates", "held_out")}
    assert deduplicate._is_by_todays_editors(receipt, job, settings) == on_nodes
    assert ("the weights cannot be looked at" in capsys.readouterr().out) != on_nodes


def test_a_foreign_file_in_the_spool_does_not_end_the_daemon(house: Make) -> None:
    home = house(watch=SOON)
    (home.base / "state/spool").mkdir(exist_ok=True)
    (home.base / "state/spool/foreign").write_bytes(b"")
    home.crash()
    with failing("unlink", number=errno.EPERM, when=named("foreign")):
        home.again()
    home.drop("a.png", content=picture(1))
    home.turn(5, times=6)
    assert home.states() == ["archived"]


def test_a_hook_whose_retry_was_planned_by_a_clock_that_was_ahead_is_tried_now(
    house: Make, tmp_path: Path
) -> None:
    home = house(hooks={"command": ["sh", "-c", f"cat > {tmp_path}/told"]})
    job = home.service.jobs.store.add([b"a.png"], at=home.wall)[0]
    courier = Courier(home.settings, now=lambda: home.wall)
    courier(replace(job, state=JobState.PUBLISHED))
    (file,) = (home.base / "state/hooks").glob("*.json")
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "not_before": home.wall + 10 * 365 * 86400}))
    courier = Courier(home.settings, now=lambda: home.wall)
    courier._load()
    assert courier.step() is None
    assert json.loads((tmp_path / "told").read_text())["file"] == "a.png"


def test_retry_never_puts_a_picture_back_without_its_mask(house: Make) -> None:
    home = house(watch=SOON, regions={"detectors": ["sidecar"]})
    home.drop("a.png", content=picture(1)[:-20])
    home.drop("A.MASK.PNG", content=picture(2))
    home.turn(5, times=5)
    (job,) = home.service.jobs.store.jobs()
    mask = home.base / "failed/A.MASK.PNG"
    kept = mask.read_bytes()
    mask.unlink()
    assert not retry.put_back(job, home.settings)
    assert home.files("inbox") == {}
    mask.write_bytes(kept)
    assert retry.put_back(job, home.settings)
    assert set(home.files("inbox")) == {"a.png", "A.MASK.PNG"}


@pytest.mark.parametrize("read", [True, False])
def test_retry_puts_back_the_proof_for_which_the_picture_would_wait(house: Make, read: bool) -> None:
    limits = {"free_mb": 0} if read else {"free_mb": 0, "max_bytes": 10}
    home = house(watch={**SOON, "proof": "done"}, limits=limits)
    content = picture(1)[:-20]
    for _ in range(2 if read else 1):
        home.drop("a.png.done", content=b"")
        home.drop("a.png", content=content)
        home.turn(5, times=5)
        content = content[:-1]
    older = home.service.jobs.store.jobs()[-1]
    assert retry.put_back(older, home.settings)
    assert set(home.files("inbox")) == {"a.png", "a.png.done"}
    assert ("a.png.done" in home.files("failed")) == read, "another failed picture needs it"


def test_retry_says_that_a_picture_and_a_checksum_that_differ_are_copied_again(
    house: Make, tmp_path: Path
) -> None:
    home = house(watch={**SOON, "proof": "sha256"})
    home.drop("a.png.sha256", content="0" * 64)
    home.drop("a.png", content=picture(1))
    home.turn(5, times=5)
    store = home.service.jobs.store
    (job,) = store.jobs()
    told = retry.retry(job, home.settings, tmp_path / "c.yaml", store)
    assert "copy both into the inbox anew" in (told or "")
    assert set(home.files("failed")) >= {"a.png", "a.png.sha256"}
