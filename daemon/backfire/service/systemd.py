"""Word to systemd: one datagram to $NOTIFY_SOCKET, see sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

PATIENCE_S = 10.0
"""How long a word waits where nobody reads the ones before it; then it is not said."""


def notify(*lines: str, patience_s: float = PATIENCE_S) -> None:
    """Tell systemd, where it started us; e.g. `READY=1`, `WATCHDOG=1`, `STATUS=…`. It may be deaf or gone.

    Args:
        lines: of one datagram.
        patience_s: less than `PATIENCE_S` where the same is said again soon.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.settimeout(patience_s)
        connection.connect(address)  # or poll would say at once that it may send, and waiting would spin
        connection.send("\n".join(lines).replace("\0", "").encode("utf-8", "replace"))
