"""The process that has the connection to a Ray cluster: starts it, talks to it in JSON, and ends it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.config import cluster
from backfire.errors import ConfigError
from backfire.service.worker import local

if TYPE_CHECKING:
    from backfire.service.worker.node import Actor

PROBE_S = 30.0
"""How long a question to the cluster's head may take."""

# The daemon's end


class Driver:
    """The child process.

    Attributes:
        heard: when it last told anything, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.heard = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=drive, args=(theirs, os.getpid()), name="driver", daemon=True)
        self._process.start()
        theirs.close()

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when it tells something or dies."""
        return [self._connection, self._process.sentinel]

    def send(self, message: dict[str, Any]) -> None:
        """Tell it something."""
        with suppress(OSError):  # it has died, which `receive` finds out
            self._connection.send_bytes(json.dumps(message).encode())

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """What it has told, and whether it has ended."""
        messages: list[dict[str, Any]] = []
        try:
            while self._connection.poll():
                messages.append(json.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            return messages, True
        if messages:
            self.heard = time.monotonic()
        return messages, not messages and not self._process.is_alive()

    def kill(self) -> None:
        """End it now; Ray ends its actors then."""
        self._connection.close()
        self._process.kill()
        self._process.join()


# The child's end


def drive(connection: Connection, parent: int, actor_class: Callable[[], type[Actor]] | None = None) -> None:
    """The child's main function; `actor_class` names a class in place of `node.Actor`."""
    local.die_with(parent)
    local.limit_memory(0)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the daemon decides
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):  # Ray prints there what happens on nodes, between the daemon's lines of JSON
        os.dup2(nowhere, output)
    try:
        settings = cluster.Cluster.model_validate(json.loads(connection.recv_bytes())["settings"])
        join(settings)
        # Imported here: it reads the environment, and the daemon, which imports this module, has no Ray.
        from backfire.service.worker import actors, node

        chosen = actor_class() if actor_class else node.Actor
        asyncio.run(actors.Actors(connection, settings, chosen).run())
    except (EOFError, BrokenPipeError):
        pass  # the daemon is gone
    except Exception as error:
        with suppress(OSError):
            connection.send_bytes(json.dumps({"ended": str(error) or repr(error)}).encode())


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
    if trouble := _refusal(settings):
        raise ConnectionError(trouble)
    if not _refusal(settings, {"RAY_AUTH_MODE": "disabled"}):
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


def _refusal(settings: cluster.Cluster, environment: dict[str, str] | None = None) -> str:
    """Why the cluster's head does not answer; empty if it does. Asked by Ray's own command."""
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
        return "does not answer; look whether its head runs, and at the firewall"
    if not told.returncode:
        return ""
    if "AuthenticationError" in told.stderr:
        return "refuses the token; copy the token of its head to cluster.token_file"
    return "does not answer; look whether its head runs, and at the firewall"
