"""Files get their final names durably, never over others, whatever the file system can and at every crash."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from backfire.errors import PublishError
from backfire.files import durable, outbox, safe_paths
from backfire.files.inbox import Signature
from backfire.files.outbox.names import hidden, leaving_as
from backfire.files.parallel import in_parallel
from tests.support.system import Died, calling, dying, failing, named, short_names, without_links

KEY = "0123456789abcdef" * 4


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".backfire-*"))


def test_place_makes_folders_and_leaves_no_temporary(tmp_path: Path) -> None:
    assert outbox.place(b"data", tmp_path, b"a/b/p.png", key=KEY) == b"a/b/p.png"
    assert (tmp_path / "a" / "b" / "p.png").read_bytes() == b"data"
    assert not leftovers(tmp_path)


def test_a_file_of_the_same_content_is_kept_as_the_result(tmp_path: Path) -> None:
    outbox.place(b"data", tmp_path, b"p.png", key=KEY)
    assert outbox.place(b"data", tmp_path, b"p.png", key=KEY) == b"p.png"
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_other_content_is_never_overwritten(tmp_path: Path) -> None:
    outbox.place(b"old", tmp_path, b"p.png", key="f" * 64)
    assert outbox.place(b"new", tmp_path, b"p.png", key=KEY) == b"p.01234567.png"
    assert outbox.place(b"new", tmp_path, b"p.png", key=KEY) == b"p.01234567.png", "repeating it is harmless"
    assert (tmp_path / "p.png").read_bytes() == b"old"
    for _ in range(2):
        third = b"p." + sha(b"third")[:8].encode() + b".png"
        # Another result of the same key, as another device may make it, gets a name from its digest.
        assert outbox.place(b"third", tmp_path, b"p.png", key=KEY) == third
    assert outbox.find(tmp_path, b"p.png", key=KEY, sha256=sha(b"third")) == third
    (tmp_path / os.fsdecode(third)).write_bytes(b"somebody's")
    with pytest.raises(PublishError, match="its names are taken"):
        outbox.place(b"third", tmp_path, b"p.png", key=KEY)


def test_a_file_where_a_folder_is_needed_stays_and_the_folder_gets_another_name(tmp_path: Path) -> None:
    outbox.place(b"file", tmp_path, b"a.png", key=KEY)
    for _ in range(2):
        assert outbox.place(b"data", tmp_path, b"a.png/x/b.png", key=KEY) == b"a.png.d/x/b.png"
    (tmp_path / "source").write_bytes(b"data")
    put = outbox.put(tmp_path / "source", tmp_path, b"a.png/x/b.png", sha256=sha(b"data"), key=KEY)
    assert put == b"a.png.d/x/b.png" == outbox.find(tmp_path, b"a.png/x/b.png", key=KEY, sha256=sha(b"data"))
    outbox.replace(b"{}", tmp_path, b"a.png/r.json")
    assert (tmp_path / "a.png.d" / "r.json").read_bytes() == b"{}"
    assert (tmp_path / "a.png").read_bytes() == b"file"
    assert outbox.place(b"over", tmp_path, b"a.png.d", key=KEY) == b"a.png.01234567.d", (
        "a folder has that name"
    )


def test_files_of_the_longest_name_leave_room_for_folders(tmp_path: Path) -> None:
    long = b"x" * 255
    for name in (long, long[:253] + b".d"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"a file")
    placed = outbox.place(b"data", tmp_path, long + b"/p.png", key=KEY)
    assert placed == long[:251] + b".d.d/p.png"
    assert outbox.place(b"data", tmp_path, long + b"/p.png", key=KEY) == placed, "repeating it is harmless"


def test_where_files_have_all_names_of_a_folder_it_ends(tmp_path: Path) -> None:
    with calling("pathconf", lambda *_: 6):
        for name in ("abcdef", "abcd.d", "ab.d.d"):
            (tmp_path / name).write_bytes(b"a file")
        with pytest.raises(PublishError, match="have all names of its folders; move them away") as refused:
            outbox.place(b"data", tmp_path, b"abcdef/p.png", key=KEY)
    assert refused.value.lasting


def test_a_folder_that_a_crash_left_is_made_durable_before_anything_is_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "a" / "b").mkdir(parents=True)  # and the process died before it synced the names
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    outbox.place(b"data", tmp_path / "out", b"a/b/p.png", key=KEY)
    top = str(tmp_path / "out")
    assert synced[:2] == [top, f"{top}/a"]
    assert synced[-1] == f"{top}/a/b"
    synced.clear()
    outbox.place(b"more", tmp_path / "out", b"a/b/q.png", key=KEY)
    assert {top, f"{top}/a"}.isdisjoint(synced), "the names of the folders were synced before"


def test_a_file_is_moved_without_being_read(tmp_path: Path) -> None:
    for name in ("in", "failed"):
        (tmp_path / name).mkdir()
    root, failed, source = tmp_path / "in", tmp_path / "failed", tmp_path / "in" / "p.png"

    def drop() -> os.stat_result:
        with source.open("wb") as file:
            os.truncate(file.fileno(), 1 << 42)
        source.chmod(0)
        return source.stat()

    def shift(seen: os.stat_result) -> bool:
        same = Signature.of(seen).same
        assert outbox.vacant(failed, b"p.png", key=KEY, same=same) == expected
        return outbox.shift(root, b"p.png", failed, b"p.png", key=KEY, same=same)

    for name in ("p.png", "p.01234567.png"):
        expected = name.encode()
        assert shift(seen := drop())
        assert shift(seen), "repeating it is harmless"
        assert (failed / name).stat().st_ino == seen.st_ino
        assert list(root.iterdir()) == []
    drop()
    with pytest.raises(PublishError, match="its names are taken"):
        outbox.shift(root, b"p.png", failed, b"p.png", key=KEY, same=lambda _: True)
    other = Signature.of(source.stat())._replace(size=1)
    assert not outbox.shift(root, b"p.png", failed, b"q.png", key=KEY, same=other.same)
    assert source.exists()
    assert not (failed / "q.png").exists()


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
def test_a_file_that_replaces_the_one_to_be_moved_stays_where_it_is(tmp_path: Path, links: bool) -> None:
    """Somebody saves a new picture under the name just before the daemon moves the old one away."""
    root, failed, source = tmp_path / "in", tmp_path / "failed", tmp_path / "in" / "p.png"
    root.mkdir()
    failed.mkdir()
    source.write_bytes(b"old")
    same = Signature.of(source.stat()).same

    def just_before(real: Any, *given: Any, **more: Any) -> Any:
        if source.exists() and source.read_bytes() == b"old":
            (root / "new").write_bytes(b"a newer picture")
            (root / "new").rename(source)
        return real(*given, **more)

    with nullcontext() if links else without_links(), calling("link", just_before):
        assert not outbox.shift(root, b"p.png", failed, b"p.png", key=KEY, same=same)
    assert source.read_bytes() == b"a newer picture"
    assert list(failed.iterdir()) == []
    assert [path.name for path in root.iterdir()] == ["p.png"]


def test_a_crash_during_such_a_move_leaves_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    for call in ("link", "rename", "unlink"):
        root, failed = tmp_path / call, tmp_path / f"{call}-failed"
        root.mkdir()
        failed.mkdir()
        (root / "p.png").write_bytes(b"data")
        same = Signature.of((root / "p.png").stat()).same
        real = getattr(os, call)

        def dying(*given: Any, do: Any = real, **more: Any) -> None:
            do(*given, **more)
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            with pytest.raises(Crash):
                outbox.shift(root, b"p.png", failed, b"p.png", key=KEY, same=same)
        assert outbox.vacant(failed, b"p.png", key=KEY, same=same) == b"p.png"
        assert outbox.shift(root, b"p.png", failed, b"p.png", key=KEY, same=same)
        assert [path.name for path in failed.iterdir()] == ["p.png"]
        assert list(root.iterdir()) == []


@pytest.mark.parametrize("path", [b"../p", b"/p", b"a/../../p", b"a//p", b"./p"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: bytes) -> None:
    with pytest.raises(PublishError, match="plain relative path"):
        outbox.place(b"data", tmp_path / "out", path, key=KEY)


def test_a_name_of_255_bytes_fits(tmp_path: Path) -> None:
    name = b"n" * 251 + b".png"
    assert outbox.place(b"data", tmp_path, name, key=KEY) == name


def test_move_keeps_content_and_mtime(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "p.png"
    source.write_bytes(b"original")
    os.utime(source, ns=(1, 10**18))
    placed = outbox.move(
        tmp_path / "in", b"p.png", tmp_path / "arc", b"sub/p.png", sha256=sha(b"original"), key=KEY
    )
    target = tmp_path / "arc" / os.fsdecode(placed)
    assert target.read_bytes() == b"original"
    assert target.stat().st_mtime_ns == 10**18
    assert not source.exists()


def test_move_across_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.png").write_bytes(b"original")
    link = os.link

    def across(source: bytes, target: bytes, **options: bool) -> None:
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", across)
    outbox.move(tmp_path / "in", b"p.png", tmp_path / "arc", b"p.png", sha256=sha(b"original"), key=KEY)
    assert (tmp_path / "arc" / "p.png").read_bytes() == b"original"
    assert not (tmp_path / "in" / "p.png").exists()
    assert not leftovers(tmp_path)


def refused(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def unknown(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("renameat2", [True, False])
def test_without_hard_links_nothing_is_overwritten_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renameat2: bool
) -> None:
    monkeypatch.setattr(os, "link", refused)
    if not renameat2:
        monkeypatch.setattr(safe_paths, "rename_noreplace", unknown)
    assert outbox.place(b"old", tmp_path, b"p.png", key="f" * 64) == b"p.png"
    assert outbox.place(b"new", tmp_path, b"p.png", key=KEY) == b"p.01234567.png"
    assert (tmp_path / "p.png").read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_the_empty_file_of_a_crash_between_claim_and_rename_is_filled_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(safe_paths, "rename_noreplace", unknown)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        patch.setattr(os, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            outbox.place(b"data", tmp_path, b"p.png", key=KEY)
    assert (tmp_path / "p.png").read_bytes() == b""
    assert outbox.place(b"data", tmp_path, b"p.png", key=KEY) == b"p.png"
    assert (tmp_path / "p.png").read_bytes() == b"data"
    (tmp_path / "q.png").touch()
    assert outbox.place(b"data", tmp_path, b"q.png", key=KEY) == b"q.01234567.png", "it is not ours"


def test_remove_follows_no_link_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "p.png").write_bytes(b"original")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PublishError):
        outbox.remove(tmp_path / "in", b"sub/p.png", sha256=sha(b"original"), key=KEY)
    assert (tmp_path / "elsewhere" / "p.png").read_bytes() == b"original"


def test_put_refuses_content_that_is_not_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"changed")
    with pytest.raises(PublishError, match="reads back different"):
        outbox.put(tmp_path / "p.png", tmp_path / "arc", b"p.png", sha256=sha(b"original"), key=KEY)
    assert list((tmp_path / "arc").iterdir()) == []


def test_confirm_reads_the_final_name_back(tmp_path: Path) -> None:
    outbox.place(b"original", tmp_path, b"p.png", key=KEY)
    outbox.confirm(tmp_path, b"p.png", sha(b"original"))
    (tmp_path / "p.png").write_bytes(b"originaL")
    with pytest.raises(PublishError, match="the original stays where it is"):
        outbox.confirm(tmp_path, b"p.png", sha(b"original"))
    (tmp_path / "p.png").unlink()
    with pytest.raises(PublishError, match="cannot be"):
        outbox.confirm(tmp_path, b"p.png", sha(b"original"))


def test_remove_deletes_only_the_content_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"a newer picture")
    assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is False
    assert (tmp_path / "p.png").read_bytes() == b"a newer picture"
    (tmp_path / "p.png").write_bytes(b"original")
    assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is True
    assert list(tmp_path.iterdir()) == []
    assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is True, (
        "repeating it is harmless"
    )


def test_a_file_that_is_open_for_writing_is_not_removed_under_its_writer(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"original")
    with (tmp_path / "p.png").open("r+b") as writer:
        with pytest.raises(PublishError, match=r"p\.png: another program has it open for writing"):
            outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY)
        writer.write(b"a newer picture")
        writer.flush()
        assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is False
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"p.png": b"a newer picture"}


def test_a_file_that_is_open_for_writing_has_its_name_while_it_is_read(tmp_path: Path) -> None:
    """It would be missing at every try again, and a program that saves it would find none."""
    (tmp_path / "p.png").write_bytes(b"original")
    missing = []
    stop = durable.on_heartbeat(lambda: missing.append(not (tmp_path / "p.png").exists()))
    with (tmp_path / "p.png").open("r+b"), pytest.raises(PublishError, match="open for writing"):
        outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY)
    stop()
    assert missing == [False]


@pytest.mark.parametrize("content", [b"original", b"edited"])
def test_what_a_program_replaces_while_it_has_it_open_is_not_taken_for_a_new_picture(
    tmp_path: Path, content: bytes
) -> None:
    """Its content is archived, unless it was edited: then this file may be all there is of it."""
    (tmp_path / "p.png").write_bytes(b"original")
    (tmp_path / "new").write_bytes(b"a newer picture")
    opened = []

    def rename(real: Any, *given: Any, **more: Any) -> None:
        """The program opens the file at the last moment."""
        opened.append((tmp_path / "p.png").open("r+b"))
        opened[0].write(content)
        opened[0].flush()
        real(*given, **more)

    def meanwhile() -> None:
        if (tmp_path / "new").exists():
            (tmp_path / "new").replace(tmp_path / "p.png")

    stop = durable.on_heartbeat(meanwhile)
    with calling("rename", rename):
        gone = outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY)
    stop()
    opened[0].close()
    found = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    newer = {"p.png": b"a newer picture"}
    if content == b"original":
        assert (gone, found) == (True, newer)
    else:
        assert (gone, found) == (False, newer | {"p.01234567.png": b"editedal"})


def test_a_file_renamed_over_the_original_at_the_last_moment_survives(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"original")
    (tmp_path / "new").write_bytes(b"a newer picture")

    def meanwhile() -> None:  # the original has been read, and is about to be deleted
        if (tmp_path / "new").exists():
            os.rename(tmp_path / "new", tmp_path / "p.png")

    stop = durable.on_heartbeat(meanwhile)
    assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is True
    stop()
    assert not (tmp_path / "new").exists(), "it was renamed meanwhile"
    assert (tmp_path / "p.png").read_bytes() == b"a newer picture"


def test_a_file_that_a_crash_put_aside_and_whose_names_are_taken_is_not_written_over(tmp_path: Path) -> None:
    aside = tmp_path / os.fsdecode(leaving_as(b"p.png", KEY))
    other = tmp_path / os.fsdecode(outbox.keyed(tmp_path, b"p.png", KEY))
    for file, data in ((aside, b"the only copy"), (other, b"another"), (tmp_path / "p.png", b"original")):
        file.write_bytes(data)
    assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is False
    assert aside.read_bytes() == b"the only copy"
    other.unlink()
    assert outbox.remove(tmp_path, b"p.png", sha256=sha(b"original"), key=KEY) is True
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {other.name: b"the only copy"}


@pytest.mark.parametrize("most", [255, 143])
@pytest.mark.parametrize("spare", [0, 3, 11, 200])
def test_derived_names_fit_the_file_system(tmp_path: Path, most: int, spare: int) -> None:
    """Names of error files, duplicates and other formats, made of a name that leaves `spare` bytes free."""
    name = b"d/" + b"n" * max(1, most - spare - 4) + b".png"
    with short_names(most):
        report = outbox.beside(tmp_path, name, b".error.json", KEY)
        outbox.replace(b"{}", tmp_path, report)
        placed = [outbox.place(data, tmp_path, name, key=KEY) for data in (b"one", b"two", b"three")]
        other = outbox.place(b"four", tmp_path, outbox.renamed(tmp_path, name, ".webp"), key=KEY)
    assert (tmp_path / os.fsdecode(report)).is_file()
    assert placed[0] == name
    assert placed[1].endswith(b".01234567.png")
    assert other.endswith(b".webp")
    assert len({report, *placed, other}) == 5
    if spare >= 11:
        assert report == name + b".error.json", "what fits is not shortened"
    assert leftovers(tmp_path) == []


def test_the_error_for_a_name_that_the_file_system_does_not_take_has_a_remedy(tmp_path: Path) -> None:
    with short_names(143), pytest.raises(PublishError, match="shorten the name") as caught:
        outbox.place(b"data", tmp_path, b"n" * 140 + b".png", key=KEY)
    assert caught.value.lasting


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EILSEQ])
def test_a_name_with_letters_that_the_file_system_does_not_take_is_to_be_changed(
    tmp_path: Path, number: int
) -> None:
    refused = failing("link", number=number, when=named("12:30.png"))
    with refused, pytest.raises(PublishError, match="rename it or its folders") as caught:
        outbox.place(b"data", tmp_path, b"12:30.png", key=KEY)
    assert caught.value.lasting


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_gets_the_rights_that_are_named_less_the_umask(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(umask)
    try:
        outbox.place(b"data", tmp_path, b"a.png", key=KEY, mode=0o666)
        outbox.replace(b"data", tmp_path, b"a.json", mode=0o666)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.png", "a.json")}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_a_folder_that_a_crash_left_unfinished_gets_the_rights_of_the_outbox(
    tmp_path: Path, umask: int
) -> None:
    """The process dies at one of the calls after the other; the next one finds nothing half made."""
    top = tmp_path / "outbox"
    top.mkdir()
    top.chmod(0o2775)
    before = os.umask(umask)
    try:
        for calls in range(100):
            path = f"{calls}/b/p.png".encode()
            try:
                with dying("mkdir", "rmdir", "open", "fchmod", "rename", "unlink", after=calls):
                    outbox.place(b"data", top, path, key=KEY)
                break
            except Died:
                assert outbox.place(b"data", top, path, key=KEY) == path
                for folder in (f"{calls}", f"{calls}/b"):
                    assert stat.S_IMODE((top / folder).stat().st_mode) == 0o2775
                assert leftovers(top) == []
        assert calls > 8, "it did die at each of them"
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("top", "file"), [(0o2770, 0o660), (0o2775, 0o664), (0o3770, 0o660), (0o2750, 0o640), (0o777, 0o664)]
)
def test_folders_have_the_rights_of_the_outbox_where_a_setgid_bit_may_not_be_set(
    tmp_path: Path, top: int, file: int
) -> None:
    """As under systemd's RestrictSUIDSGID=, which refuses such a mode of any file."""

    def refused(real: Any, descriptor: int, mode: int) -> None:
        if mode & 0o6000:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(descriptor, mode)

    tmp_path.chmod(top)
    before = os.umask(0o027)
    try:
        with calling("fchmod", refused):
            outbox.place(b"data", tmp_path, b"a/b/p.png", key=KEY)
    finally:
        after = os.umask(before)
    assert after == 0o027
    for folder in ("a", "a/b"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == top & ~0o002
    assert stat.S_IMODE((tmp_path / "a/b/p.png").stat().st_mode) == file


@pytest.mark.parametrize(("top", "asked"), [(0o775, 0), (0o750, 0), (0o2775, 2)])
def test_the_umask_of_all_threads_changes_only_where_a_folder_hands_its_group_down(
    tmp_path: Path, top: int, asked: int
) -> None:
    calls = 0

    def counted(real: Any, mask: int) -> Any:
        nonlocal calls
        calls += 1
        return real(mask)

    tmp_path.chmod(top)
    with calling("umask", counted):
        outbox.place(b"data", tmp_path, b"a/p.png", key=KEY)
    assert calls == asked
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == top


def test_a_folder_that_a_crash_left_unfinished_goes_with_its_job(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with dying("fchmod", "rename", after=0), pytest.raises(Died):
        outbox.place(b"data", tmp_path, b"a/b/c/p.png", key=KEY)
    assert leftovers(tmp_path), "it had begun one"
    outbox.discard(tmp_path, b"a/b/c/p.png", key="f" * 64)
    assert leftovers(tmp_path), "another job's stays"
    outbox.discard(tmp_path, b"a/b/c/p.png", key=KEY)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("made", ["a folder", "a link"])
def test_a_folder_that_somebody_makes_meanwhile_stays_theirs(tmp_path: Path, made: str) -> None:
    def meanwhile(real: Any, source: Any, target: Any, **more: Any) -> None:
        if target == os.fsencode(tmp_path / "a"):
            if made == "a link":
                (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
            else:
                (tmp_path / "a").mkdir()
                (tmp_path / "a" / "theirs.png").touch()
        real(source, target, **more)

    (tmp_path / "elsewhere").mkdir()
    with calling("rename", meanwhile):
        assert outbox.place(b"data", tmp_path, b"a/p.png", key=KEY) == b"a/p.png"
    assert (tmp_path / "a" / "p.png").read_bytes() == b"data"
    assert (tmp_path / "a").is_symlink() == (made == "a link")
    assert (tmp_path / "a" / "theirs.png").exists() == (made == "a folder")
    assert leftovers(tmp_path) == []


def test_several_files_at_once_may_need_the_same_new_folder(tmp_path: Path) -> None:
    names = [f"a/b/{number}.png".encode() for number in range(32)]
    placed = in_parallel(lambda name: outbox.place(name, tmp_path, name, key=KEY), names)
    assert placed == names
    assert leftovers(tmp_path) == []


def test_destined_says_the_name_beforehand(tmp_path: Path) -> None:
    for data in (b"one", b"two", b"two"):
        foretold = outbox.destined(tmp_path, b"p.png", sha256=sha(data), key=KEY)
        assert outbox.place(data, tmp_path, b"p.png", key=KEY) == foretold


def test_the_error_of_a_full_disk_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PublishError, match="free some space") as caught:
        outbox.place(b"data", tmp_path, b"p.png", key=KEY)
    assert caught.value.retryable
    assert not list(tmp_path.iterdir()), "neither the final name nor a temporary file is there"


def test_a_temporary_file_that_a_crash_left_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    unlink = os.unlink
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        patch.setattr(os, "unlink", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            outbox.place(b"data", tmp_path, b"p.png", key=KEY)
    assert os.unlink is unlink
    assert leftovers(tmp_path)
    outbox.place(b"data", tmp_path, b"p.png", key=KEY)
    assert not leftovers(tmp_path)


def test_two_daemons_with_one_outbox_leave_each_other_s_unfinished_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("backfire.files.outbox.names"), "_daemon", b"")
    outbox.hide_as("11111111")
    begun = tmp_path / os.fsdecode(hidden(b"p.png", KEY))
    begun.write_bytes(b"half of a res")
    outbox.hide_as("22222222")
    outbox.place(b"another result", tmp_path, b"p.png", key=KEY)
    outbox.discard(tmp_path, b"p.png", key=KEY)
    assert begun.read_bytes() == b"half of a res"
    outbox.hide_as("11111111")
    outbox.discard(tmp_path, b"p.png", key=KEY)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("path", [b"sub/p.png", b"sub/deep/p.png"])
def test_where_links_may_not_be_nothing_is_put_through_one(tmp_path: Path, path: bytes) -> None:
    for name in ("failed", "inbox", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "failed/p.png").write_bytes(b"original")
    (tmp_path / "inbox/sub").symlink_to(tmp_path / "elsewhere")
    root, folder, digest = tmp_path / "failed", tmp_path / "inbox", sha(b"original")
    with pytest.raises(PublishError, match="expected a folder; replace the link by a folder"):
        outbox.move(root, b"p.png", folder, path, sha256=digest, key=KEY, into_inbox=True)
    with pytest.raises(PublishError, match="expected a folder"):
        outbox.shift(root, b"p.png", folder, path, key=KEY, same=lambda _: True, into_inbox=True)
    with pytest.raises(PublishError, match="expected a folder"):
        outbox.place(b"mask", folder, path, key=KEY, into_inbox=True)
    assert (root / "p.png").read_bytes() == b"original"
    assert [*(tmp_path / "elsewhere").iterdir()] == leftovers(tmp_path) == []
