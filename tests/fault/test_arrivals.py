"""Faults 9-15, 17-20, 29, 32: files come slowly, twice, by the thousand, without events, or out of order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backfire.errors import Code, InputError
from backfire.files import inbox
from tests.support.jobs import (
    PASS,
    assert_published,
    count_of,
    cpu_s,
    events,
    kill,
    picture,
    published_until,
    reasons,
    states,
    wait_until_idle,
)
from tests.support.pictures import encoded, mask_picture
from tests.support.sandbox import Sandbox, wait_for

KINDS = {"a.png": "PNG", "b.jpg": "JPEG", "c.webp": "WEBP", "d.tif": "TIFF"}


def of_every_format() -> dict[str, bytes]:
    return {name: picture(index, kind, (96, 80)) for index, (name, kind) in enumerate(KINDS.items())}


def test_fault_09_slow_copy_with_stalls(sandbox: Sandbox) -> None:
    """Each copy stalls twice, each time for longer than `settle_s` and `mask_wait_s` together."""
    sandbox.configure(**PASS, watch={"incomplete_wait_s": 3600})
    pictures = of_every_format()
    sandbox.start()
    for third in (1, 2):
        for name, data in pictures.items():
            with (sandbox.inbox / name).open("ab") as file:
                file.write(data[len(data) * (third - 1) // 3 : len(data) * third // 3])
        wanted = third * len(pictures)
        wait_for(
            lambda: reasons(sandbox).count("waits for the rest") >= wanted,  # noqa: B023
            because="every part to be found incomplete",
        )
    for name, data in pictures.items():
        with (sandbox.inbox / name).open("ab") as file:
            file.write(data[len(data) * 2 // 3 :])
    wait_until_idle(sandbox)
    assert_published(sandbox, pictures)
    assert states(sandbox) == ["archived"] * len(pictures)


def test_fault_09_a_copy_that_never_ends_fails_with_its_reason_and_may_come_again(sandbox: Sandbox) -> None:
    sandbox.configure(**PASS)
    data = picture(kind="JPEG")
    sandbox.drop(data[: len(data) // 2], "p.jpg")
    sandbox.start()
    wait_for(lambda: states(sandbox) == ["failed"], because="incomplete_wait_s to pass")
    assert sandbox.error("p.jpg")["code"] == "truncated"
    assert sandbox.error("p.jpg")["attempts"] == 0, "waiting cost no attempt, and no worker had to see it"
    sandbox.drop(data, "p.jpg")
    wait_until_idle(sandbox, count=2)
    assert (sandbox.outbox / "p.jpg").read_bytes() == data


def test_fault_09_a_file_open_for_writing_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(picture(kind="JPEG"))
    with (tmp_path / "p.jpg").open("ab"):
        with pytest.raises(InputError, match="still open for writing") as caught:
            inbox.take(tmp_path, b"p.jpg", tmp_path / "copy")
        assert caught.value.code == Code.CHANGED
    assert inbox.take(tmp_path, b"p.jpg", tmp_path / "copy").zeros == 0


def test_fault_10_a_file_whose_preallocated_end_is_still_zeros_is_waited_for(sandbox: Sandbox) -> None:
    sandbox.configure(**PASS, watch={"incomplete_wait_s": 3600})
    pictures = of_every_format()
    for name, data in pictures.items():
        half = len(data) // 2
        sandbox.drop(data[:half] + bytes(len(data) - half), name)
    sandbox.start()
    wait_for(
        lambda: reasons(sandbox).count("waits for the rest") >= 4, because="all four to be found incomplete"
    )
    assert sandbox.files("failed") == sandbox.files("outbox") == set()
    for name, data in pictures.items():
        with (sandbox.inbox / name).open("r+b") as file:
            file.write(data)
    wait_until_idle(sandbox)
    assert_published(sandbox, pictures)


def test_fault_10_a_whole_file_that_ends_in_zeros_is_taken_after_a_wait(sandbox: Sandbox) -> None:
    from PIL import Image

    sandbox.configure(**PASS, watch={"incomplete_wait_s": 5})
    black = encoded(Image.new("RGB", (64, 64)), "TIFF")
    sandbox.drop(black, "black.tif")
    assert sandbox.backfire("once").returncode == 0
    assert "ends in zeros" in reasons(sandbox)
    assert_published(sandbox, {"black.tif": black})


def test_fault_11_old_mtime_settles(gated: Sandbox) -> None:
    gated.start()
    data = picture()
    part = gated.base / "elsewhere.png"
    part.write_bytes(data)
    os.utime(part, (0, 0))
    part.rename(gated.inbox / "p.png")
    wait_until_idle(gated)
    assert_published(gated, {"p.png": data})
    assert (gated.archive / "p.png").stat().st_mtime == 0


def test_fault_12_create_close_empty_then_content_is_one_job(sandbox: Sandbox) -> None:
    sandbox.configure(**PASS, watch={"incomplete_wait_s": 3600})
    sandbox.start()
    sandbox.drop(b"", "p.png")
    wait_for(lambda: "is empty" in reasons(sandbox), because="the empty file to be seen")
    data = picture()
    sandbox.drop(data, "p.png")
    wait_until_idle(sandbox)
    assert_published(sandbox, {"p.png": data})
    assert states(sandbox) == ["archived"]


def test_fault_13_part_then_rename_makes_a_job_of_the_final_name_only(gated: Sandbox) -> None:
    gated.start()
    data = picture()
    gated.drop(data[:100], "p.png.part")
    gated.drop(picture(1), "marker.png")
    wait_for(lambda: states(gated) == ["archived"], because="a file that came later")
    part = gated.drop(data, "p.png.part")
    part.rename(gated.inbox / "p.png")
    wait_until_idle(gated, count=2)
    assert gated.files("outbox") == {"p.png", "marker.png"}
    assert states(gated) == ["archived", "archived"]


@pytest.mark.parametrize("moment", ["queued", "running"])
def test_fault_14_replaced_while(gated: Sandbox, moment: str) -> None:
    (gated.base / "gate").write_text("open")
    old, new, first = picture(1), picture(2), picture(3)
    if moment == "queued":
        gated.drop(first, "a.png")
    gated.start()
    if moment == "queued":
        wait_for(lambda: states(gated) == ["running"], because="the first to run")
    gated.drop(old, "p.png")
    wanted = "ready" if moment == "queued" else "running"
    wait_for(lambda: states(gated)[-1:] == [wanted], because=f"the job to be {wanted}")
    gated.drop(new, "p.png")
    if moment == "queued":
        wait_for(lambda: "changed while queued" in reasons(gated), because="the replacement to be seen")
    (gated.base / "gate").unlink()
    wait_until_idle(gated)
    assert_published(gated, {"p.png": new, **({"a.png": first} if moment == "queued" else {})})
    assert ("changed while it was worked" in reasons(gated)) == (moment == "running")


@pytest.mark.parametrize("when", ["before", "after", "never", "changed while running"])
def test_fault_15_mask(gated: Sandbox, when: str) -> None:
    waits = 60 if when in ("before", "after") else 0.3
    gated.configure(watch={"mask_wait_s": waits})
    (gated.base / "gate").write_text("open")
    data, mask, other = picture(), encoded(mask_picture()), encoded(mask_picture(box=(0, 0, 9, 9)))
    gated.start()
    if when in ("before", "changed while running"):
        gated.drop(mask, "p.mask.png")
    gated.drop(data, "p.png")
    if when == "after":
        wait_for(lambda: states(gated) == ["waiting_mask"], because="the picture to wait")
        gated.drop(mask, "p.mask.png")
    wait_for(lambda: states(gated) == ["running"], because="the job to run")
    if when == "changed while running":
        gated.drop(other, "p.mask.png")
    (gated.base / "gate").unlink()
    wait_until_idle(gated)
    assert gated.files("outbox") == {"p.png"}
    assert gated.files("archive") == ({"p.png"} if when == "never" else {"p.png", "p.mask.png"})
    if when == "changed while running":
        assert (gated.archive / "p.mask.png").read_bytes() == other
        assert events(gated).count("running") == 2


WRITER = """
import sys
from pathlib import Path
root, who, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    folder = root / who / str(number % 7)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{number}.png.part"
    part.write_bytes(b"%s %d" % (who.encode(), number))
    part.rename(folder / f"{number}.png")
"""


@pytest.mark.parametrize("each", [500, pytest.param(1700, marks=pytest.mark.slow)])
def test_fault_17_thousands_of_files_by_six_writers(gated: Sandbox, each: int) -> None:
    gated.configure(watch={"settle_s": 3600, "rescan_s": 1})
    gated.start()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(gated.inbox), f"w{index}", str(each)])
        for index in range(6)
    ]
    assert [writer.wait(120) for writer in writers] == [0] * 6
    wait_for(lambda: count_of(gated) >= 6 * each, because="every file to be a job")
    assert states(gated) == ["settling"] * 6 * each


def test_fault_18_lost_events_are_found_by_the_rescan(gated: Sandbox) -> None:
    """No event is delivered, as after an overflow of the queue; see tests/support/deaf.py."""
    gated.module = "tests.support.deaf"
    gated.start()
    originals = {f"sub/{number}.png": picture(number) for number in range(20)}
    for name, data in originals.items():
        gated.drop(data, name)
    wait_until_idle(gated, count=20)
    assert_published(gated, originals)


def test_fault_19_without_inotify_it_polls(gated: Sandbox) -> None:
    limit = "echo 0 > /proc/sys/user/max_inotify_instances"
    if subprocess.run(["unshare", "-Ur", "sh", "-c", limit], capture_output=True, check=False).returncode:
        pytest.skip("needs unprivileged user namespaces")
    process = gated.start("unshare", "-Ur", "sh", "-c", f'{limit}; exec "$@"', "sh")
    assert '"polling"' in gated.log()
    assert "inotify would not start" in gated.log()
    data = picture()
    gated.drop(data, "p.png")
    wait_until_idle(gated)
    assert_published(gated, {"p.png": data})
    assert process.poll() is None


def test_fault_20_moved_in_folder_mv_and_hard_link(gated: Sandbox) -> None:
    gated.start()
    originals = {f"{name}.png": picture(seed) for seed, name in enumerate(("dir/sub/a", "moved", "linked"))}
    outside = gated.base / "outside"
    (outside / "dir" / "sub").mkdir(parents=True)
    for name, data in originals.items():
        (outside / name).write_bytes(data)
    (outside / "dir").rename(gated.inbox / "dir")
    (outside / "moved.png").rename(gated.inbox / "moved.png")
    os.link(outside / "linked.png", gated.inbox / "linked.png")
    wait_until_idle(gated, count=3)
    assert_published(gated, originals)
    assert (outside / "linked.png").read_bytes() == originals["linked.png"], (
        "a hard link outside the inbox is left alone"
    )


def test_fault_29_same_content_under_two_names_is_worked_once(gated: Sandbox) -> None:
    data = picture()
    for name in ("a.png", "b.png", "sub/c.png"):
        gated.drop(data, name)
    gated.start()
    wait_until_idle(gated, count=3)
    assert_published(gated, dict.fromkeys(("a.png", "b.png", "sub/c.png"), data))
    assert events(gated).count("running") == 1
    receipts = {name: gated.receipt(name) for name in ("a.png", "b.png", "sub/c.png")}
    assert {name: receipt["file"] for name, receipt in receipts.items()} == {name: name for name in receipts}
    others = {name: receipt["worked_as"] for name, receipt in receipts.items() if "worked_as" in receipt}
    assert len(others) == 2
    assert all(source in receipts and source != name for name, source in others.items())


def test_fault_29_where_the_first_result_was_taken_away_it_is_worked_again(gated: Sandbox) -> None:
    gated.start()
    for name in ("a.png", "b.png"):
        gated.drop(picture(), name)
        wait_for(lambda: (gated.outbox / name).is_file(), because=name)  # noqa: B023
        wait_until_idle(gated)
        (gated.outbox / name).unlink()
    assert events(gated).count("running") == 2


@pytest.mark.parametrize(("backlog", "most_s"), [(600, 2), pytest.param(100_000, 5, marks=pytest.mark.slow)])
def test_fault_32_backlog_at_the_start(gated: Sandbox, backlog: int, most_s: float) -> None:
    """READY comes within seconds of work, and urgent and small pictures do not wait for the backlog."""
    gated.configure(watch={"priorities": {"urgent": 10}}, limits={"free_mb": 0})

    def ready_s() -> float:
        shutil.rmtree(gated.state, ignore_errors=True)  # each start is the first
        process = gated.start()
        took = cpu_s(process.pid)
        kill(process.pid)
        process.wait()
        return took

    empty_s = ready_s()
    (gated.base / "gate").write_text("open")
    large = picture(0, size=(120, 90))
    for number in range(backlog):
        folder = gated.inbox / "backlog" / str(number % 50)
        if number < 50:
            folder.mkdir(parents=True)
        # Each has content of its own, or all but the first would be duplicates, which cost no work.
        (folder / f"{number}.png").write_bytes(large + str(number).encode())
    # In addition to the time that the interpreter takes to start on this machine.
    assert ready_s() < most_s + empty_s
    gated.start()
    wait_for(lambda: count_of(gated) == backlog, seconds=300, because="the backlog to be found")
    wait_for(lambda: count_of(gated, "running"), seconds=300, because="the backlog to be worked")
    small, urgent = picture(1, size=(16, 12)), picture(2, size=(120, 90))
    gated.drop(small, "small.png")
    gated.drop(urgent, "urgent/p.png")
    wait_for(lambda: count_of(gated) == backlog + 2, because="the newcomers to be found")
    # The urgent one becomes ready although eight others are ready already.
    wait_for(lambda: "ready" in states(gated)[-2:], because="the urgent one to be ready")
    (gated.base / "gate").unlink()
    wait_for(lambda: {"small.png", "urgent/p.png"} <= gated.files("outbox"), because="both newcomers")
    wait_for(lambda: count_of(gated, "archived") >= 60, because="the rest to go on")
    assert published_until(gated, "small.png", "urgent/p.png") < 60
