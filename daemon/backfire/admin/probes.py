"""Probes of the machine for `backfire check`: whether folders are writable, the clock sane, ports free."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from backfire.config import Settings
from backfire.files import locks
from backfire.service.hooks import webhook

FEW_WATCHES, FEW_INSTANCES = 8192, 16
"""Limits of inotify below which the check warns."""
SKEW_S = 60.0
"""How many seconds the clock of a file server may differ; people see the times of files."""

INOTIFY = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True)
class Check:
    """One line of the check; `remedy` is empty if nothing needs doing."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs doing."""
        return not self.remedy


def write(folder: Path, *, now: Callable[[], float] = time.time) -> Check | None:
    """Make, sync, rename and delete a hidden file as the daemon does; None if all of it works.

    The mode alone says little: read-only mounts, ACLs and file servers that distrust root refuse it too.
    """
    first = folder / f".backfire-check-{os.getpid()}.part"
    second = first.with_suffix(".tmp")
    doing = "make a file"
    try:
        descriptor = os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o640)
        try:
            doing = "write"
            os.write(descriptor, b"backfire check\n")
            os.fsync(descriptor)
            written = os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
        doing = "rename"
        os.rename(first, second)
        doing = "list"
        os.listdir(folder)
        doing = "delete"
        os.unlink(second)
    except OSError as error:
        remedies = {
            errno.EROFS: f"mount {folder} writable; under systemd name it in ReadWritePaths=",
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some space or raise the quota",
        }
        remedy = remedies.get(error.errno or 0, f"chown or chmod {folder}")
        return Check("write", f"{doing} ({error.strerror})", remedy)
    finally:
        for path in (first, second):
            with suppress(OSError):
                os.unlink(path)
    if abs(written - now()) > SKEW_S:
        off = written - now()
        found = f"trust its clock: files get times {off:+.0f} s off ours"
        return Check("write", found, "set both clocks by NTP")
    return None


def inotify(limits: Path = INOTIFY) -> Iterator[Check]:
    """The kernel's limits for file events; without events, rescans find everything later."""
    try:
        watches, instances, queued = (
            int((limits / f"max_{name}").read_text())
            for name in ("user_watches", "user_instances", "queued_events")
        )
    except (OSError, ValueError):
        yield Check("inotify", "none here; rescans find everything")
        return
    for name, value, least, better in (
        ("watches", watches, FEW_WATCHES, 524_288),
        ("instances", instances, FEW_INSTANCES, 128),
    ):
        remedy = f"raise it: sysctl fs.inotify.max_user_{name}={better}" if value < least else ""
        yield Check(f"inotify {name}", f"max_user_{name} {value}", remedy)
    yield Check("inotify queue", f"max_queued_events {queued}; what overflows is found by the next rescan")


def clock(database: Path, *, now: Callable[[], float] = time.time) -> Check:
    """Whether the wall clock is before the time at which the database or this software was written."""
    witnesses = {"this software was installed": Path(__file__), "the job database was written": database}
    for what, path in witnesses.items():
        with suppress(OSError):
            behind = path.stat().st_mtime - now()
            if behind > SKEW_S:
                return Check(
                    "clock",
                    f"{_day(now())}, {behind:.0f} s before {what}",
                    "set the clock: timedatectl set-ntp true",
                )
    return Check("clock", _day(now()))


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def surroundings(settings: Settings) -> Iterator[Check]:
    """What `serve` and `hooks` need, if they are set; nothing is sent to anybody."""
    if (metrics := settings.serve.address) is not None:
        yield _listening("metrics", metrics, "daemon" if _may_run(settings.folders.state / "lock") else "")
    page = settings.serve.page_address
    if isinstance(page, Path):
        yield _socket(page)
    elif page is not None:
        yield _listening("page", page, "page")
    if settings.hooks.command:
        program = settings.hooks.command[0]
        found = shutil.which(program)
        remedy = "" if found else "name a program that exists and that this uid may run"
        yield Check("hook command", found or f"{program} cannot be run", remedy)
    if settings.hooks.webhook is not None:
        yield _resolved(settings.hooks.webhook.get_secret_value())


def _may_run(lock: Path) -> bool:
    """Whether the daemon of this configuration runs, or nobody can tell: it holds its lock."""
    try:
        lock.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return locks.is_locked(lock) is not False


def _listening(subject: str, address: tuple[str, int], ours: str) -> Check:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                if ours and answering(address) == ours:
                    return Check(subject, f"{host}:{port} is answered by the running {ours}")
                return Check(subject, f"{host}:{port} is in use", "name another port")
            return Check(subject, f"{host}:{port}: {error.strerror}", "name another address")
    return Check(subject, f"{host}:{port} is free")


def _socket(path: Path) -> Check:
    """Whether the page can make its socket, or has."""
    folder = path.parent
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            if probe.connect_ex(os.fspath(path)) == 0:
                return Check("page", f"{path} is answered by the running page")
        except OSError as error:  # before anything is asked: the kernel takes 107 bytes
            return Check("page", f"{path}: {error}", "name a shorter path")
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return Check("page", f"{path} is no socket", "move it away, or name another path")
    except FileNotFoundError:
        if not folder.is_dir():
            return Check("page", f"{folder} is not here; the page may run in another container, or make it")
    except OSError as error:
        remedy = f"let uid {os.geteuid()} search {folder}, or name another path"
        return Check("page", f"{path}: {error.strerror}", remedy)
    trouble = write(folder)
    if trouble is not None:
        return Check("page", f"{path}: uid {os.geteuid()} cannot {trouble.found} there", trouble.remedy)
    return Check("page", f"{path} can be made")


def answering(address: tuple[str, int]) -> str:
    """Which of ours answers at this address within two seconds: `daemon`, `page`, or nothing."""
    connection = http.client.HTTPConnection(*address, timeout=2)
    try:
        connection.request("HEAD", "/healthz")
        answer = connection.getresponse()
        if not (answer.getheader("Server") or "").startswith("backfire/"):
            return ""
        # The page has none, and may refuse the host before it looks, which the daemon never does here.
        return "page" if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST) else "daemon"
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _resolved(url: str) -> Check:
    host, port = webhook.host(url)
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        remedy = "check the name, and under systemd systemd/webhook.conf"
        return Check("webhook", f"{webhook.masked(url)}: {error.strerror}", remedy)
    return Check("webhook", f"{webhook.masked(url)} has an address")
