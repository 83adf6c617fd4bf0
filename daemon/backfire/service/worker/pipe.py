"""The pipe between daemon and driver of a cluster: JSON both ways, and neither end waits for the other.

A pipe holds some hundred messages. If both ends only wrote when it is full, each would wait for the other for
ever: the driver therefore reads and writes in threads of its own, and the daemon gives up a driver that does
not read. The daemon believes nothing of what a driver sends: it limits its size, and parses it as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

Message = dict[str, Any]

MESSAGE_MAX = 16 << 20
"""The bytes that a message of the driver may have; a result's files do not pass here."""
TOGETHER = 1000
"""How many messages the daemon takes in at a time, however many more a driver sends."""
PATIENCE_S = 10.0
"""How long the daemon waits in the midst of a message: for the rest of it, or until the driver reads on."""


class DaemonsEnd:
    """Sends to the driver and receives from it, and never waits for long.

    Args:
        connection: this end of a pipe of two ways.
        patience_s: how long it waits in the midst of a message.

    Attributes:
        broken: why nothing more can be sent or received; empty while it can.
    """

    def __init__(self, connection: Connection, patience_s: float = PATIENCE_S) -> None:
        self.connection, self.broken = connection, ""
        self._lock = threading.Lock()
        whole = int(patience_s)
        limit = struct.pack("ll", whole, int((patience_s - whole) * 1e6))
        with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                pipe.setsockopt(socket.SOL_SOCKET, option, limit)

    def send(self, message: Message) -> None:
        """Send a message, from any thread; where that fails, the pipe is broken."""
        data = json.dumps(message).encode()
        with self._lock:
            if self.broken:
                return  # the other end would take this for the rest of a message that it has in part
            try:
                self.connection.send_bytes(data)
            except BlockingIOError:
                self.broken = "does not read what it is sent"
            except OSError:
                self.broken = "has ended"

    def receive(self) -> list[Message]:
        """The messages that have come, as far as they can be understood; see `broken`."""
        messages: list[Message] = []
        try:
            while not self.broken and len(messages) < TOGETHER and self.connection.poll():
                message = json.loads(self.connection.recv_bytes(MESSAGE_MAX))
                if not isinstance(message, dict):
                    raise ValueError(f"got {type(message).__name__}, expected an object")
                messages.append(message)
        except BlockingIOError:
            self.broken = "stopped in the midst of a message"
        except (EOFError, OSError) as error:
            too_large = error.args == ("bad message length",)
            self.broken = "sends a message that is too large" if too_large else "has ended"
        except (ValueError, RecursionError) as error:
            self.broken = f"sends what is no message ({error})"
        return messages


class DriversEnd:
    """Sends to the daemon without waiting, and hears it in a thread.

    Args:
        connection: this end of the pipe.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._out: SimpleQueue[Message | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="to the daemon", daemon=True)
        self._writer.start()

    def send(self, message: Message) -> None:
        """Send a message as soon as the daemon reads; what it does not take any more is dropped."""
        self._out.put(message)

    def receive(self) -> Message:
        """The next message.

        Raises:
            EOFError, OSError: the daemon is gone.
        """
        message: Message = json.loads(self._connection.recv_bytes())
        return message

    def listen(self, take: Callable[[Message | None], None]) -> None:
        """Call `take`, in another thread, with each message, and with None when the daemon is gone."""

        def read() -> None:
            with suppress(EOFError, OSError):
                while True:
                    take(self.receive())
            take(None)

        threading.Thread(target=read, name="from the daemon", daemon=True).start()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until all is sent, so many seconds at most."""
        self._out.put(None)
        self._writer.join(patience_s)

    def _write(self) -> None:
        with suppress(OSError):
            while (message := self._out.get()) is not None:
                self._connection.send_bytes(json.dumps(message).encode())
