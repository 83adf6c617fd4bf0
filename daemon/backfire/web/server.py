"""Serves the page over HTTP, at a loopback address or a Unix socket."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import NoReturn

import uvicorn

from backfire import __version__
from backfire.web.application import application
from backfire.web.options import Options

BAD_ADDRESS = 2
CONNECTIONS_MAX = 512


def serve(options: Options) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    # Made before anything can connect: who reaches the page finds its token in the state folder.
    page = application(options)
    listening = _listen(options.address)
    server = uvicorn.Server(
        uvicorn.Config(
            page,
            http="h11",
            ws="none",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=[("Server", f"backfire/{__version__}")],
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
    )
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The server stops at SIGTERM and then sends it to this process once more, which is to end in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.run([listening])
    finally:
        if isinstance(options.address, Path):
            options.address.unlink(missing_ok=True)


def _listen(address: tuple[str, int] | Path) -> socket.socket:
    try:
        if isinstance(address, Path):
            return _at_path(address)
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return socket.create_server(address, family=family)
    except OSError as error:
        _refuse(address, error)


def _at_path(path: Path) -> socket.socket:
    """A socket that the owner and the group may use, in place of one that nobody listens at any more."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED:
                    path.unlink()
        mask = os.umask(0o117)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(mask)
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


def _refuse(address: tuple[str, int] | Path, error: OSError) -> NoReturn:
    shown = f"unix:{address}" if isinstance(address, Path) else f"{address[0]}:{address[1]}"
    remedy = "name another address, or stop what listens there"
    print(f"backfire: serve.page {shown}: cannot be bound ({error.strerror}); {remedy}", file=sys.stderr)
    raise SystemExit(BAD_ADDRESS)
