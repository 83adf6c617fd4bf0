"""Notifications to systemd: one datagram each to $NOTIFY_SOCKET, see sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

PATIENCE_S = 10.0
"""How long a notification waits while the ones before it are not read; then it is dropped."""


def notify(*lines: str, patience_s: float = PATIENCE_S) -> None:
    """Notify systemd, if it started this process; it does not matter if nothing listens any more.

    Args:
        lines: of one datagram, for example `READY=1`, `WATCHDOG=1` or `STATUS=…`.
        patience_s: less than `PATIENCE_S` where the same notification is repeated soon.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.settimeout(patience_s)
        # Without a connection poll reports at once that it may send, and waiting would spin.
        connection.connect(address)
        connection.send("\n".join(lines).replace("\0", "").encode("utf-8", "replace"))
