"""Faults that a trial on photographers' files and folders found; each test names the number of its fault."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from backfire import api, config
from backfire.admin.check import check
from backfire.cli.commands import app
from backfire.config import IGNORE
from backfire.errors import ConfigError
from backfire.files import inbox, outbox
from backfire.service.queue import priority
from backfire.types import JobState
from benchmarks.soak import png
from tests.support.house import House, house

__all__ = ["house"]

BASKETS = """
    #recycle, @Recycle, $RECYCLE.BIN, $Recycle.Bin, Recycler, #snapshot, @Recently-Snapshot, @__thumb, @eaDir,
    .@__thumb, lost+found, found.000, .zfs, .snapshot, ~snapshot, .Trash-1000, .Trashes, Network Trash Folder,
    @GMT-2026.11.24-08.00.00, __MACOSX, System Volume Information
"""
TEMPORARY = """
    photo.jpg~RF3a2b1c.TMP, ps8A1F.tmp, psE2.TMP, X.JPG.PART, X.JPG.FilePart, photo.jpg.1a2b3c4d.partial,
    x.jpg.!qB, x.jpg.!ut, x.jpg.aria2, x.jpg.download, X.CRDOWNLOAD, THUMBS.DB, Desktop.ini
"""


@pytest.mark.parametrize("folder", [*map(str.strip, BASKETS.split(","))])
def test_trade_fault_8_waste_baskets_snapshots_and_thumbnails_are_left_alone(
    tmp_path: Path, folder: str
) -> None:
    for place in (folder, f"desk/{folder}/deep"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "old.jpg").touch()
    (tmp_path / "desk" / "new.jpg").touch()
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"desk/new.jpg"}


@pytest.mark.parametrize("name", [*map(str.strip, TEMPORARY.split(","))])
def test_trade_fault_9_temporary_names_are_no_pictures_in_either_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "part.jpg").touch()
    assert set(inbox.scan(tmp_path, IGNORE).files) == {b"part.jpg"}


@pytest.mark.parametrize("inbox", ["", " ", ".", "./", "..", "conf/.."])
def test_trade_fault_13_the_configuration_is_never_in_its_inbox(tmp_path: Path, inbox: str) -> None:
    (tmp_path / "home" / "conf").mkdir(parents=True)
    file = tmp_path / "home" / "config.yaml"
    others = "outbox: /o/outbox, archive: /o/archive, failed: /o/failed, reports: /o/reports, state: /o/state"
    file.write_text(f'folders: {{inbox: "{inbox}", {others}}}')
    with pytest.raises(ConfigError, match=r"(?s)inbox.*(is empty|taken for a picture).*name"):
        config.load(file)


def test_trade_fault_13_a_link_to_a_configuration_elsewhere_may_not_lie_there_either(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(f"folders: {{inbox: {tmp_path}/inbox}}")
    assert config.load(file).folders.inbox == tmp_path / "inbox"
    (tmp_path / "inbox" / "link.yaml").symlink_to(file)
    with pytest.raises(ConfigError, match="taken for a picture"):
        config.load(tmp_path / "inbox" / "link.yaml")


@pytest.mark.parametrize("setting", ["folders.outbox", "folders.state", "regions.logos.folder"])
def test_trade_fault_13_no_path_may_be_empty(tmp_path: Path, setting: str) -> None:
    sections: dict[str, Any] = {"folders": {"inbox": "inbox"}}
    *above, last = setting.split(".")
    place = sections
    for name in above:
        place = place.setdefault(name, {})
    place[last] = ""
    with pytest.raises(ConfigError, match=f"{setting}.*empty"):
        config.parse(sections, base=tmp_path)


@pytest.mark.parametrize("folder", ["urgent", "urgent/", "./urgent", "urgent//", "desk/../urgent"])
def test_trade_fault_15_folders_with_slashes_have_their_priority(tmp_path: Path, folder: str) -> None:
    watch = {"priorities": {folder: 10, "./": 1}}
    settings = config.parse({"folders": {"inbox": "inbox"}, "watch": watch}, base=tmp_path)
    assert priority(b"urgent/a/b.jpg", settings.watch.priorities) == 10
    assert priority(b"other/b.jpg", settings.watch.priorities) == 1


@pytest.mark.parametrize("folder", ["", "/urgent", "../urgent", "/"])
def test_trade_fault_15_folders_that_no_picture_can_lie_in_are_refused(tmp_path: Path, folder: str) -> None:
    watch = {"priorities": {folder: 10}}
    with pytest.raises(ConfigError, match=r"watch\.priorities.*below the inbox"):
        config.parse({"folders": {"inbox": "inbox"}, "watch": watch}, base=tmp_path)


@pytest.mark.parametrize(
    ("match", "remedy"),
    [
        ("./x/*.jpg", r"write 'x/\*\.jpg'"),
        ("portraits/", r"write 'portraits/\*\*'"),
        ("a//b", "write 'a/b'"),
        ("/srv/inbox/**", "below the inbox"),
        ("../x/**", "below the inbox"),
        ("", "fits no path"),
    ],
)
def test_trade_fault_15_rules_that_can_fit_no_path_are_refused(
    tmp_path: Path, match: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)rules\.0.*{remedy}"):
        config.parse({"folders": {"inbox": "inbox"}, "rules": [{"match": match}]}, base=tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "dead"),
    [
        ("**", "x/*.jpg", True),
        ("x/**", "x/y/*.jpg", True),
        ("x/*.jpg", "x/*.jpg", True),
        ("x/**", "xy/*.jpg", False),
        ("x/*.jpg", "x/**", False),
        ("*/**", "**/a.jpg", False),
    ],
)
def test_trade_fault_15_rules_behind_one_that_fits_more_are_refused(
    tmp_path: Path, first: str, second: str, dead: bool
) -> None:
    sections = {"folders": {"inbox": "inbox"}, "rules": [{"match": first}, {"match": second}]}
    if dead:
        with pytest.raises(ConfigError, match=r"rules\.1.*can never count.*rules\.0"):
            config.parse(sections, base=tmp_path)
    else:
        assert len(config.parse(sections, base=tmp_path).rules) == 2


def _closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder `closed` of the inbox refuse to be read, as one of another user with mode 0700 does."""
    (tmp_path / "inbox" / "desk" / "closed").mkdir(parents=True, mode=0o700)
    (tmp_path / "inbox" / "desk" / "closed" / "a.png").write_bytes(png("a"))
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).rstrip("'").endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_trade_fault_4_a_folder_that_cannot_be_read_is_reported_everywhere(
    house: Callable[..., House],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _closed(tmp_path, monkeypatch)
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1})
    (home.base / "inbox" / "b.png").write_bytes(png("b"))
    with structlog.testing.capture_logs() as lines:
        home.turn(times=8)
    assert set(home.files("outbox")) == {"b.png"}, "other pictures are published"
    told = [line for line in lines if line["event"] == "folder_unreadable"]
    assert [line["path"] for line in told] == ["desk/closed"], "it is logged once"
    assert f"owner is uid {os.geteuid()} and its mode 0700" in told[0]["error"]
    assert "desk/closed" in home.service.operations.pulse.warnings[0]
    fact = home.service.jobs.store.fact("daemon")
    assert fact is not None
    assert set(fact[0]["unreadable"]) == {"desk/closed"}
    (line,) = (line for line in islice(check(home.settings), 10) if line.subject == "inbox/desk/closed")
    assert not line.ok
    home.hints.close()
    assert home.service.run(until_idle=True).unreadable == 1
    home.crash()
    file = tmp_path / "config.yaml"
    file.write_text("folders: {inbox: inbox}")
    for command in (["status"], ["explain", "desk/closed/a.png"]):
        app([*command, "-c", str(file)], standalone_mode=False)
        assert "mode 0700" in capsys.readouterr().out


def test_trade_fault_4_a_path_that_is_too_long_is_reported_and_hides_nothing(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=folder)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("far.png", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    (tmp_path / "near.png").touch()
    found = inbox.scan(tmp_path, IGNORE)
    assert set(found.files) == {b"near.png"}
    ((path, why),) = found.unreadable.items()
    assert "shorten" in why
    assert not found.knows(path)
    assert not found.knows(path + b"/x.png")


EACH = """
import json, os, sys, tempfile, traceback
from backfire.cli import commands, main
from backfire.pipeline import protect, verify

results = []
for arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as errors:
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            sys.argv[1:] = arguments
            try:
                main()
            except SystemExit as end:
                os._exit(end.code or 0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        results.append((code, errors.read().decode()))
print(json.dumps(results))
"""
"""Runs each command in a process of its own. The processes share the imports, which take seconds, and end
without freeing what was imported, which takes long, too."""


def _backfire(commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """The exit code and the standard error of each command."""
    # The limit on its memory ends a process that reads an endless device.
    limits = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # noqa: E731
    command = [sys.executable, "-c", EACH, json.dumps(commands)]
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, timeout=180, preexec_fn=limits, check=True
    )
    return [(code, text) for code, text in json.loads(done.stdout)]


def test_trade_fault_14_a_path_that_is_no_file_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("a"))
    (tmp_path / "b.png").write_bytes(png("b"))
    (tmp_path / "config.yaml").write_text("folders: {inbox: inbox}")
    os.mkfifo(tmp_path / "pipe")
    expected = [
        (["bag", "out"], "nothing was published yet"),
        (["demo", "a.png"], "is a file, expected a folder"),
        (["protect", "pipe", "-o", "o.png"], "no regular file"),
        (["protect", "/dev/zero", "-o", "o.png"], "no regular file"),
        (["protect", ".", "-o", "o.png"], "Is a directory"),
        (["detect", "a.png", "--mask", "pipe"], "no regular file"),
        (["verify", "pipe", "--original", "a.png"], "no regular file"),
        (["verify", "pipe"], "no regular file"),
        (["release", "1", "--mask", "pipe"], "no regular file"),
        (["protect", "a.png", "b.png", "-o", "o.jpg"], "expected a folder for 2 pictures"),
        (["check", "-c", "/dev/zero"], "has more than"),
    ]
    results = _backfire([command for command, _ in expected], tmp_path)
    for (command, says), (code, text) in zip(expected, results, strict=True):
        assert (code, says in text) == (2, True), (command, text)
        assert "Traceback" not in text
    assert not (tmp_path / "o.jpg").exists()


INTERRUPTED = """
import os, signal, sys
from backfire.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
module = sys.argv.pop()

class Interrupts:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
main()
"""


@pytest.mark.parametrize("module", ["backfire.cli.commands", "pydantic", "typer.rich_utils"])
def test_trade_fault_14_ctrl_c_while_it_starts_prints_no_traceback(tmp_path: Path, module: str) -> None:
    """Pressed while a module is imported: the first one, one in the midst, and one that help alone needs."""
    command = [sys.executable, "-c", INTERRUPTED, "--help", module]
    told = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=60, check=False)
    assert b"Traceback" not in told.stderr
    assert told.returncode in (-signal.SIGINT, 130, 1)


@pytest.mark.parametrize("mask", ["f.MASK.PNG", "F.mask.png", "F.JPG.Mask.png", "Masks/f.PNG", "masks/F.png"])
def test_trade_fault_17_commands_pair_masks_as_the_daemon_does(tmp_path: Path, mask: str) -> None:
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "F.JPG")
    (tmp_path / mask).parent.mkdir(exist_ok=True)
    painted = Image.new("L", (64, 48), 0)
    painted.paste(255, (8, 8, 24, 24))
    painted.save(tmp_path / mask)
    assert inbox.scan(tmp_path, IGNORE).masks_of(b"F.JPG") == [os.fsencode(mask)]
    assert inbox.scan_beside(tmp_path, [b"F.JPG"], ()).masks_of(b"F.JPG") == [os.fsencode(mask)]
    found = api.detect(tmp_path / "F.JPG", settings={"regions": {"detectors": ["sidecar"]}})
    assert [region.box for region in found.regions] == [(8, 8, 24, 24)]


NEARLY = ["d_mask.png", "d-mask.png", "d mask.PNG", "d.mask.jpg", "d.masks.png", "masks/d.jpg", "mask/d.png"]


@pytest.mark.parametrize("name", [*NEARLY, "d.png_mask.png"])
def test_trade_fault_11_a_file_with_nearly_the_name_of_a_mask_is_kept_and_reported(
    house: Callable[..., House], name: str
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 5, "rescan_s": 1}, regions={"detectors": ["sidecar"]})
    file = home.base / "inbox" / "desk" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(png("mask"))
    home.turn(times=4)
    assert home.states() == ["waiting_mask"], "its picture may still come"
    (home.base / "inbox" / "desk" / "d.png").write_bytes(png("d"))
    with structlog.testing.capture_logs() as lines:
        home.turn(times=30)
        home.crash()
        home.again()
        home.turn(times=100)
    assert set(home.files("inbox")) == {f"desk/{name}"}, "it stays, also after a restart"
    assert sorted(home.states()) == ["archived", "skipped"]
    (told, _) = (line for line in lines if line["event"] == "mask_without_picture")
    assert told["path"] == f"desk/{name}"
    wanted = (
        "desk/masks/d.png" if "/" in name else "desk/d.png.mask.png" if ".png_" in name else "desk/d.mask.png"
    )
    assert f"call it {wanted}" in told["reason"]
    assert home.service.inbox.unused.reasons() == {f"desk/{name}": told["reason"]}


@pytest.mark.parametrize("name", ["carnival_mask.png", "masks/venice.jpg", "unmasked.png", "maskenball.png"])
def test_trade_fault_11_a_name_like_a_masks_is_a_picture_if_no_picture_fits_it(
    house: Callable[..., House], name: str
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 5, "rescan_s": 1}, regions={"detectors": ["sidecar"]})
    (home.base / "inbox" / name).parent.mkdir(exist_ok=True)
    (home.base / "inbox" / name).write_bytes(png("mask"))
    home.turn(times=80)
    assert home.states() == ["archived"]


def test_trade_fault_11_masks_without_a_picture_are_reported_when_the_daemon_ends(
    house: Callable[..., House], tmp_path: Path
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 5, "rescan_s": 1})
    (home.base / "inbox" / "face.mask.png").write_bytes(png("mask"))
    (home.base / "inbox" / "a.jpg.json").write_text("{}")
    with structlog.testing.capture_logs() as lines:
        home.service.run(until_idle=True)
    told = {line["path"]: line["reason"] for line in lines if line["event"] == "mask_without_picture"}
    assert set(told) == {"face.mask.png", "a.jpg.json"}
    assert (
        "waits for a picture face.jpg, .png or the like; if it is a picture itself, rename it"
        in told["face.mask.png"]
    )
    fact = home.service.jobs.store.fact("daemon")
    assert fact is not None
    assert fact[0]["unused"] == told
    home.crash()
    file = tmp_path / "config.yaml"
    file.write_text("folders: {inbox: inbox}")
    for command in ("status", "explain"):
        arguments = [command, *(["face.mask.png"] if command == "explain" else []), "-c", str(file)]
        assert told["face.mask.png"] in CliRunner().invoke(app, arguments).output.replace("\n", "")


@pytest.mark.parametrize("name", ["_annotations.coco.json", "instances_default.json"])
def test_trade_fault_11_one_coco_file_serves_a_folder_and_stays(
    house: Callable[..., House], name: str
) -> None:
    home = house(
        watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1},
        regions={"detectors": ["sidecar"], "none_found": "pass"},
    )
    folder = home.base / "inbox" / "set"
    folder.mkdir()
    boxes = {"a.png": [2, 3, 4, 5], "b.png": [6, 7, 8, 9]}
    images = [{"id": i, "file_name": f"images/{one}"} for i, one in enumerate(boxes)]
    marks = [{"image_id": i, "bbox": box} for i, box in enumerate(boxes.values())]
    (folder / name).write_text(json.dumps({"images": images, "annotations": marks}))
    for one in (*boxes, "unmentioned.png"):
        Image.new("RGB", (32, 24), "gray").save(folder / one)
        Image.new("RGB", (32, 24), "gray").save(home.base / one)
    home.turn()
    found = inbox.scan(home.base / "inbox", IGNORE)
    assert found.orphans() == set()
    for one, (x, y, w, h) in boxes.items():
        assert found.masks_of(f"set/{one}".encode()) == [f"set/{name}".encode()]
        regions = api.detect(folder / one, settings={"regions": {"detectors": ["sidecar"]}}).regions
        assert [region.box for region in regions] == [(x, y, x + w, y + h)]
    assert found.masks_of(b"other/a.png") == []
    settings = {"regions": {"detectors": ["sidecar"], "none_found": "pass"}}
    assert api.detect(folder / "unmentioned.png", settings=settings).regions == []
    home.turn(times=20)
    assert home.states() == ["archived"] * 3
    assert set(home.files("inbox")) == {f"set/{name}"}, "pictures may still come"
    assert set(home.files("archive")) == {f"set/{one}" for one in (*boxes, "unmentioned.png", name)}


@pytest.mark.parametrize(
    ("top", "folder_mode", "file_mode"),
    [(0o2775, 0o2775, 0o664), (0o755, 0o755, 0o644), (0o2750, 0o2750, 0o640), (0o700, 0o700, 0o600)],
)
def test_trade_fault_18_what_is_published_has_the_rights_of_the_outbox(
    tmp_path: Path, top: int, folder_mode: int, file_mode: int
) -> None:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox").chmod(top)
    before = os.umask(0o027)  # as the program sets it
    try:
        path = outbox.place(b"1", tmp_path / "outbox", b"y/z/a.jpg", key="k" * 64)
    finally:
        os.umask(before)
    assert path == b"y/z/a.jpg"
    for name, mode in (("y", folder_mode), ("y/z", folder_mode), ("y/z/a.jpg", file_mode)):
        assert stat.S_IMODE((tmp_path / "outbox" / name).stat().st_mode) == mode, name


def _far(base: Path) -> None:
    """Drop a picture whose path fits below the inbox `in` but not below an outbox with a name of 200 letters,
    and another one with a short path.
    """
    place = base / "in"
    while len(os.fsencode(place)) < 4096 - 300:
        place = place / ("d" * 100)
    place.mkdir(parents=True)
    (place / ("n" * 100 + ".png")).write_bytes(png("far"))
    (base / "in" / "near.png").write_bytes(png("near"))


LONG_OUTBOX = {"inbox": "in", "outbox": "o" * 200}


def test_trade_fault_12_a_path_that_is_too_long_for_the_outbox_is_reported_and_not_tried(
    house: Callable[..., House],
) -> None:
    home = house(folders=LONG_OUTBOX, watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1})
    _far(home.base)
    with structlog.testing.capture_logs() as lines:
        home.turn(times=20)
    assert home.states() == ["archived"]
    (told,) = (line for line in lines if line["event"] == "folder_unreadable")
    assert "fit below outbox" in told["error"]
    assert "shorten" in told["error"]
    assert len(home.service.inbox.unreadable) == 1


def test_trade_fault_12_a_name_that_the_outbox_does_not_take_fails_after_some_tries(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daemon lets the path pass, as it does where a file system allows less than Linux.
    monkeypatch.setattr("backfire.service.inbox.PATH_MAX", 1 << 20)
    home = house(folders=LONG_OUTBOX, watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1})
    _far(home.base)
    home.turn(times=60)
    assert sorted(home.states()) == ["archived", "failed"]
    (failed,) = (job for job in home.service.jobs.store.jobs() if job.state == JobState.FAILED)
    assert failed.code == "publish"
    assert "shorten the name and those of its folders" in (failed.message or "")
    assert set(home.files("in")) == set()


@pytest.mark.parametrize(
    "text",
    ["folders: {inbox: inbox}\nwatch: {settle: 1}", "folders: {inbox: inbox}\nwatch: {}\nwatch: {}", "a: [b"],
)
def test_trade_status_works_where_the_configuration_is_broken(
    house: Callable[..., House], tmp_path: Path, text: str
) -> None:
    home = house(watch={"settle_s": 1, "mask_wait_s": 0, "rescan_s": 1})
    (home.base / "inbox" / "a.png").write_bytes(png("a"))
    home.turn(times=8)
    file = tmp_path / "config.yaml"
    for now, alive in (("goes on with the one that it read before", True), ("cannot start", False)):
        file.write_text(text)
        told = CliRunner().invoke(app, ["status", "-c", str(file)])
        shown = told.output.replace("\n", " ")
        assert told.exit_code == 2
        assert f"the daemon {now}: " in shown
        assert ("running as pid" in shown) is alive
        assert "1 protected" in shown
        if alive:
            home.crash()
