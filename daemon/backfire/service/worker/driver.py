"""The process that has the connection to a Ray cluster: starts it, talks to it in JSON, and ends it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from backfire.config import cluster
from backfire.errors import ConfigError
from backfire.service.worker import child, local
from backfire.service.worker.pipe import DaemonsEnd, DriversEnd, Message

if TYPE_CHECKING:
    from backfire.service.worker.node import Actor

PROBE_S = 25.0
"""How long a question to the cluster's head may take; two of them are shorter than `link.SILENCE_S`."""
AWAY = "does not answer; look whether its head runs, and at the firewall"

# The daemon's end


class Driver:
    """The child process.

    Attributes:
        heard: when it last told anything, by `time.monotonic`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self.heard = time.monotonic()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._pipe = DaemonsEnd(ours)
        self._process = context.Process(target=drive, args=(theirs, os.getpid()), name="driver", daemon=True)
        try:
            self._process.start()
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when it tells something or dies."""
        return [self._pipe.connection, self._process.sentinel]

    def send(self, message: Message) -> None:
        """Tell it something, from any thread; that it has died `receive` finds out."""
        self._pipe.send(message)

    def receive(self) -> tuple[list[Message], str]:
        """What it has told; and why it is of no use any more, empty while it is."""
        lives = self._process.is_alive()  # asked first: all that it told before its end has come then
        messages = self._pipe.receive()
        if messages:
            self.heard = time.monotonic()
        ended = self._pipe.broken or ("" if lives or messages else "has ended")
        if ended == "has ended":
            self._process.join(1)
            if self._process.exitcode is not None:
                ended += f" ({local.exit_reason(self._process.exitcode)})"
        return messages, ended

    def kill(self) -> None:
        """End it now; Ray ends its actors then."""
        self._pipe.connection.close()
        self._process.kill()
        self._process.join()


# The child's end


def drive(connection: Connection, parent: int, actor_class: Callable[[], type[Actor]] | None = None) -> None:
    """The child's main function; `actor_class` names a class in place of `node.Actor`."""
    child.die_with(parent)
    child.limit_memory(0)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the daemon decides
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):  # Ray prints there what happens on nodes, between the daemon's lines of JSON
        os.dup2(nowhere, output)
    pipe = DriversEnd(connection)
    try:
        settings = cluster.Cluster.model_validate(pipe.receive()["settings"])
        join(settings)
        pipe.send({"admitted": True})  # joining may take as long again
        # Imported here: it reads the environment, and the daemon, which imports this module, has no Ray.
        from backfire.service.worker import actors, node

        chosen = actor_class() if actor_class else node.Actor
        asyncio.run(actors.Actors(pipe, settings, chosen).run())
    except EOFError:
        pass  # the daemon is gone
    except Exception as error:
        pipe.send({"ended": str(error) or repr(error)})
    pipe.close()


def join(settings: cluster.Cluster) -> None:
    """Set up the environment for Ray, and make sure that the cluster has to be asked with a token.

    Raises:
        ConfigError: there is no token, or the cluster asks for none.
        ConnectionError: the cluster does not answer, or refuses the token.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    # A driver whose cluster is gone ends after so long, and the daemon starts another.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
    if "RAY_AUTH_TOKEN" not in os.environ:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file(settings))
    admitted = _asked(settings)
    if admitted == "refuses":
        raise ConnectionError("refuses the token; copy the token of its head to cluster.token_file")
    anybody = _asked(settings, {"RAY_AUTH_MODE": "disabled"}) if admitted == "admits" else "silent"
    if anybody == "silent":  # which does not mean that it asks for a token
        raise ConnectionError(AWAY)
    if anybody == "admits":
        raise ConfigError(
            "lets in clients without a token, so that anybody who reaches it can run programs there and "
            "here; start its nodes with RAY_AUTH_MODE=token"
        )


def token_file(settings: cluster.Cluster) -> Path:
    """The file of the cluster's token.

    Raises:
        ConfigError: it is missing, or others may read it.
    """
    file = settings.token_file or Path("~/.ray/auth_token").expanduser()
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"cluster.token_file {file}: cannot be read ({error.strerror}); without a token anybody who "
            "reaches the cluster can run programs there: make one with `ray get-auth-token --generate` and "
            "copy it to all nodes"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"cluster.token_file {file}: others may read it; run chmod 600 {file}")
    return file


def _asked(
    settings: cluster.Cluster, environment: dict[str, str] | None = None
) -> Literal["admits", "refuses", "silent"]:
    """What the cluster's head says to a client. Asked by Ray's own command."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address"]
    try:
        told = subprocess.run(
            [*command, settings.address or ""],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "silent"
    if not told.returncode:
        return "admits"
    return "refuses" if "AuthenticationError" in told.stderr else "silent"
