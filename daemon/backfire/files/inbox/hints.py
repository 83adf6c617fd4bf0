"""File events, as hints that a scan is due: the only watchdog door."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from backfire.files.inbox import mounts


class Hints:
    """Sets an event when something moves below the inbox; nothing depends on its being told.

    Attributes:
        mode: `inotify`, or `polling` where that is configured, the file system is a network
            one, or inotify would not start (then `trouble` says why).
    """

    def __init__(self, root: Path, mode: str, wake: threading.Event) -> None:
        self._root, self._wanted, self._wake = root, mode, wake
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None
        self.mode, self.trouble = mode, ""
        self._start()

    def _start(self) -> None:
        self.mode, self.trouble = self._wanted, ""
        if self.mode == "auto":
            kind = mounts.filesystem(self._root)
            self.mode = "polling" if kind in mounts.NETWORK else "inotify"
            self.trouble = f"{kind} raises no events for other hosts" if kind in mounts.NETWORK else ""
        if self.mode == "polling":
            return
        try:
            observer = Observer()  # this alone takes an inotify instance
            observer.schedule(_Waker(self._wake), str(self._root), recursive=True)
            observer.start()
            self._watched = _identity(self._root)
        except OSError as error:
            self.mode, self.trouble = "polling", f"inotify would not start ({error})"
        else:
            self._observer = observer

    def watch(self, mode: str) -> bool:
        """Watch in another mode from now on; whether it is another."""
        if mode == self._wanted:
            return False
        self.close()
        self._wanted = mode
        self._start()
        return True

    def renew(self) -> bool:
        """Watch anew if the watch has gone blind; whether it had.

        A share that went and came back is another folder under the old name, and an emitter that
        died of it says nothing: `observer.is_alive()` stays true.
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
        # Reading raises events too; our own scans must not call for the next one.
        if event.event_type not in ("opened", "closed_no_write"):
            self._wake.set()


def _identity(root: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino
