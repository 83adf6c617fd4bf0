"""What runs on the nodes of a cluster: an actor that turns a picture's bytes into a result's bytes.

It gets no path and no database; its files lie in a temporary folder while a picture is worked.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from backfire import __version__
from backfire.errors import Code
from backfire.service.worker import child, orders, protocol
from backfire.service.worker.protocol import FILES, Finished, Hindered, Outcome, Progress


class Actor:
    """Works pictures one after the other; its process is replaced when it dies.

    Args:
        version: of Backfire on the daemon's machine.

    Raises:
        RuntimeError: this node has another one, so that its results would be others.
    """

    process: child.Process = staticmethod(child.process)
    """Works one order; doubles stand in for it."""

    def __init__(self, version: str) -> None:
        if version != __version__:
            raise RuntimeError(
                f"node {self.name()} has Backfire {__version__}, the daemon {version}; install the same there"
            )
        self._progress: tuple[str, int, int] | None = None
        self.prepare()

    def prepare(self) -> None:
        """Load what takes long, so that a worker that is ready is quick."""
        import backfire.pipeline.protect  # noqa: F401

    def name(self) -> str:
        """The node's name, for people; it ends in Ray's number of the node, see `actors.NODE_ID`."""
        return f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:6]}"

    def progress(self) -> tuple[str, int, int] | None:
        """Phase, steps done and steps in all of the picture in work."""
        return self._progress

    def work(
        self, order: dict[str, Any], picture: bytes, masks: Sequence[bytes]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Work one order.

        Returns:
            The outcome with the digests of the files, and the files that belong to it, by name.
        """
        self._progress = None
        outcome: Outcome
        files: dict[str, bytes] = {}
        try:
            with tempfile.TemporaryDirectory(prefix="backfire-", ignore_cleanup_errors=True) as made:
                folder = Path(made)
                (folder / "input").write_bytes(picture)
                for (_, file), data in zip(order["masks"], masks, strict=True):
                    (folder / file).write_bytes(data)
                outcome = child.worked(orders.unpacked(order, folder), self, self.process)
                if isinstance(outcome, Finished):
                    files = {one: (folder / one).read_bytes() for one in FILES if (folder / one).exists()}
        except OSError as error:  # such as a full disk, which is the node's trouble and no picture's
            said = f"node {self.name()}: its temporary folder cannot be used ({error!r})"
            outcome = Hindered(order["job"], order["lease"], Code.INTERNAL, said)
        digests = {one: hashlib.sha256(data).hexdigest() for one, data in files.items()}
        return {"outcome": protocol.to_json(outcome), "digests": digests}, files

    # What `child.worked` needs of its end of the pipe: nobody asks for the job back, the actor is killed.

    def poll(self) -> bool:
        return False

    def recv(self) -> None:
        pass

    def send(self, obj: Sequence[Progress]) -> None:
        for report in obj:
            self._progress = report.phase, report.done, report.total
