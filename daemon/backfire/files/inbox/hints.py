"""File events as hints that a scan is due; the only module that uses watchdog."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from backfire.files.inbox import mounts

# Folders that may not be read make watchdog print warnings to stderr, between the log's lines of JSON.
# Each scan reports such folders itself.
warnings.filterwarnings("ignore", module=r"watchdog\.")


class Hints:
    """Sets an event when something changes below the inbox; a missed change is found by the next scan.

    Args:
        root: the inbox.
        mode: `watch.mode`; `auto` polls network file systems.
        wake: the event.
        filesystem: the type of the file system that holds a folder.

    Attributes:
        mode: `inotify`, or `polling` if that is configured, if the file system is a network one,
            or if inotify could not be started.
        trouble: why it polls although it was not told to; else empty.
    """

    def __init__(
        self,
        root: Path,
        mode: str,
        wake: threading.Event,
        filesystem: Callable[[Path], str] = mounts.filesystem,
    ) -> None:
        self._root, self._wanted, self._wake, self._filesystem = root, mode, wake, filesystem
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self.mode, self.trouble = mode, ""
        self._start()

    def _start(self) -> None:
        self.mode, self.trouble = self._wanted, ""
        if self.mode == "auto":
            kind = self._filesystem(self._root)
            self.mode = "polling" if kind in mounts.NETWORK else "inotify"
            self.trouble = f"{kind} raises no events for other hosts" if kind in mounts.NETWORK else ""
        if self.mode == "polling":
            return
        try:
            observer = Observer()  # raises where no inotify instance is left
            observer.schedule(_Waker(self._wake), str(self._root), recursive=True)
            observer.start()
            self._watched = _identity(self._root)
        except OSError as error:
            self.mode, self.trouble = "polling", f"inotify would not start ({error})"
        else:
            self._observer = observer

    def watch(self, mode: str) -> bool:
        """Watch in this mode from now on; returns whether that is another one."""
        if mode == self._wanted:
            return False
        self.close()
        self._wanted = mode
        self._start()
        return True

    def renew(self) -> bool:
        """Start watching again if no more events can come; returns whether that was so.

        A share that was unmounted and mounted again is another folder under the same name. The thread
        that reads its events may die of that while `observer.is_alive()` stays true.
        """
        if self._observer is None:
            return False
        alive = all(emitter.is_alive() for emitter in self._observer.emitters)
        if alive and self._watched == _identity(self._root):
            return False
        self.close()
        self._start()
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5)
            self._observer = None


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Reading raises events too, and a scan must not cause the next one.
        if event.event_type not in ("opened", "closed_no_write"):
            self._wake.set()


def _identity(root: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino
