"""Random sequences of users' actions, crashes and clock jumps, against what the documentation promises.

The service is the real one, in this process; a function call stands in for its worker. A crash is an
exception at a random system call, after which no further call of the dying process succeeds. A power cut also
removes every name of a file or folder whose own folder had not been synced.

To see that the tests notice broken promises, the daemon was changed by hand. This test noticed: a result
recorded before it is published, or published before its receipt; an original removed before its copy is in
place. Others noticed: content that is there already and is published again, a name written over, a folder
that a crash left unsynced (`test_outbox`); an outcome of an earlier start of a job (`test_worker`); a change
while copying, an attempt not counted before the work (`test_one_only`, fault 04).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backfire.files import manifest
from benchmarks.soak import png
from tests.support.house import House, furnish

STEPS = 20
NAMES = st.sampled_from(["a.png", "b.png", "sub/c.png"])


class Crash(BaseException):
    """The process is gone."""


class Fate:
    """After `left` more system calls, `act` is called, or the process dies where there is no `act`.

    A dead process makes no further call until it is started anew.
    """

    CALLS = ("fsync", "link", "rename", "replace", "unlink", "open", "mkdir", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.act: Callable[[], None] | None = None
        self.dead = False
        self._unsynced: list[tuple[str, Callable[[], Any]]] = []
        """For each name that a power cut would take: its folder, and what undoes the naming; oldest first."""
        for name in self.CALLS:
            patch.setattr(os, name, self._mortal(getattr(os, name)))
        for name in ("link", "rename", "replace"):
            patch.setattr(os, name, self._naming(getattr(os, name)))
        patch.setattr(os, "mkdir", self._making(os.mkdir))
        patch.setattr(os, "fsync", self._syncing(os.fsync))

    def _naming(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(source: Any, target: Any, **options: Any) -> Any:
            path = Path(os.fsdecode(target))
            former = path.read_bytes() if path.is_absolute() and path.exists() else None
            result = call(source, target, **options)
            if path.is_absolute() and "inbox" not in path.parts:  # what users do there is not undone
                new = (lambda: shutil.rmtree(path)) if path.is_dir() else path.unlink
                undo = new if former is None else lambda: path.write_bytes(former)
                self._unsynced.append((str(path.parent), undo))
            return result

        return wrapped

    def _making(self, call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Any, *options: Any, **more: Any) -> None:
            call(path, *options, **more)
            made = Path(os.fsdecode(path))
            if made.is_absolute() and "inbox" not in made.parts:
                self._unsynced.append((str(made.parent), lambda: shutil.rmtree(made)))

        return wrapped

    def _syncing(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def wrapped(descriptor: int) -> None:
            call(descriptor)
            synced = os.readlink(f"/proc/self/fd/{descriptor}")
            self._unsynced = [entry for entry in self._unsynced if entry[0] != synced]

        return wrapped

    def cut_power(self) -> None:
        """Undo every naming that was not durable."""
        while self._unsynced:
            with suppress(FileNotFoundError):
                self._unsynced.pop()[1]()

    def is_unsynced(self, path: Path) -> bool:
        """Whether a power cut might take a file's name, or that of a folder above it."""
        folders = {str(parent) for parent in path.parents}
        return any(folder in folders for folder, _ in self._unsynced)

    def _mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    self.left = None
                    self.dead = self.act is None
                    if self.act is not None:
                        self.act()
            if self.dead:
                raise Crash
            return call(*arguments, **options)

        return wrapped


class Promises(RuleBasedStateMachine):
    """Actions on a small inbox, and what must be true after each of them."""

    @initialize()
    def move_in(self) -> None:
        self.patch = pytest.MonkeyPatch()
        furnish(self.patch)
        self.base = Path(tempfile.mkdtemp(prefix="backfire-promises-"))
        self.house = House(
            self.base,
            watch={"settle_s": 2, "mask_wait_s": 0, "rescan_s": 1, "incomplete_wait_s": 10_000},
            # More than a sequence has crashes: a picture on which the daemon died too often is set aside.
            protect={"attempts": STEPS},
        )
        self.fate = Fate(self.patch)
        self.lying: dict[str, bytes] = {}
        """By name, the whole pictures that the users left in the inbox."""
        self.partial: dict[str, bytes] = {}
        self.dropped: set[bytes] = set()
        self.renamed: Counter[bytes] = Counter()
        self.kept: set[tuple[str, bytes]] = set()
        """Folder and content of each file whose name was durable in outbox or archive after some work."""
        self.number = 0

    # What users and their programs do

    @rule(name=NAMES)
    def drop(self, name: str) -> None:
        self.write(name, self.fresh())

    @rule(name=NAMES)
    def begin(self, name: str) -> None:
        data = self.fresh()
        self.write(name, data[: len(data) // 2], whole=False)
        self.partial[name] = data

    @precondition(lambda self: self.partial)
    @rule()
    def finish(self) -> None:
        name, data = self.partial.popitem()
        self.write(name, data)

    @precondition(lambda self: self.lying)
    @rule(name=NAMES)
    def move(self, name: str) -> None:
        former, data = next(iter(self.lying.items()))
        target = self.base / "inbox" / name
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(self.base / "inbox" / former, target)
        except FileNotFoundError:  # it was taken already
            return
        del self.lying[former]
        self.renamed[data] += 1
        self.partial.pop(name, None)
        self.lying[name] = data

    @precondition(lambda self: self.lying)
    @rule()
    def take_back(self) -> None:
        name, _ = self.lying.popitem()
        (self.base / "inbox" / name).unlink(missing_ok=True)

    def fresh(self) -> bytes:
        self.number += 1
        return png(str(self.number))

    def write(self, name: str, data: bytes, *, whole: bool = True) -> None:
        target = self.base / "inbox" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        self.lying.pop(name, None)
        self.partial.pop(name, None)
        if whole:
            self.lying[name] = data
            self.dropped.add(data)

    # What happens to the daemon

    @rule(seconds=st.sampled_from([0.3, 1, 3]), times=st.integers(1, 6))
    def work(self, seconds: float, times: int) -> None:
        self.house.turn(seconds, times)
        for folder in ("outbox", "archive"):
            files = self.house.files(folder)
            durable = (name for name in files if not self.fate.is_unsynced(self.base / folder / name))
            self.kept |= {(folder, files[name]) for name in durable}

    @rule(calls=st.integers(0, 60), power=st.booleans())
    def crash(self, calls: int, power: bool) -> None:
        self.fate.left = calls
        try:
            self.house.turn(1, 6)
        except Crash:
            pass
        finally:
            self.fate.left, self.fate.dead = None, False
        self.house.crash()
        if power:
            self.fate.cut_power()
        self.house.again()

    @rule(name=NAMES, calls=st.integers(0, 60))
    def drop_meanwhile(self, name: str, calls: int) -> None:
        """A user drops a picture, perhaps over another, at a random system call of the daemon."""
        self.fate.left, self.fate.act = calls, lambda: self.drop(name)
        try:
            self.house.turn(1, 6)
        finally:
            self.fate.left = self.fate.act = None

    @rule(seconds=st.sampled_from([-3600, 3600]))
    def jump(self, seconds: int) -> None:
        self.house.wall += seconds

    # What is promised

    @invariant()
    def nothing_is_lost(self) -> None:
        held = [*self.house.files("archive").values(), *self.everything_in("inbox")]
        assert set(self.lying.values()) <= set(held)

    @invariant()
    def nothing_is_published_that_was_not_dropped_whole_and_nothing_twice(self) -> None:
        published = Counter(self.house.files("outbox").values())
        assert published.keys() <= self.dropped
        # A picture that was renamed in the inbox after it was published is published under the new name, too.
        assert all(count <= 1 + self.renamed[data] for data, count in published.items())

    @invariant()
    def what_was_put_in_place_stays(self) -> None:
        assert self.kept <= {
            (folder, data) for folder, _ in self.kept for data in self.house.files(folder).values()
        }

    @invariant()
    def what_is_published_has_its_receipt(self) -> None:
        receipts = self.house.files("reports")
        assert {f"{name}.json" for name in self.house.files("outbox")} <= receipts.keys()

    @invariant()
    def an_original_leaves_only_after_its_result_is_out(self) -> None:
        assert set(self.house.files("archive").values()) <= set(self.house.files("outbox").values())
        assert self.house.files("failed") == {}

    def everything_in(self, folder: str) -> list[bytes]:
        """The content of all files, also of those that have a hidden name for a moment."""
        return [path.read_bytes() for path in (self.base / folder).rglob("*") if path.is_file()]

    def hashed(self, folder: str) -> set[tuple[bytes, str]]:
        """Path and SHA-256 of each file."""
        return {
            (os.fsencode(name), hashlib.sha256(data).hexdigest())
            for name, data in self.house.files(folder).items()
        }

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        try:
            self.house.turn(3, 30)
            assert set(self.lying.values()) <= set(self.house.files("outbox").values()), "all comes out"
            assert set(self.house.files("inbox")) <= set(self.partial), "and nothing is left"
            assert list(self.base.rglob(".backfire-*")) == []
            for folder in ("outbox", "archive"):
                listed = {(entry.path, entry.sha256) for entry in manifest.read(self.base / folder).entries}
                assert self.hashed(folder) <= listed, "and all of it is in a manifest"
        finally:
            self.house.crash()
            self.patch.undo()
            shutil.rmtree(self.base)


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=25,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,  # the same sequences everywhere; benchmarks/soak.py tries random ones
)
