"""The daemon's link to a cluster: a driver, started anew when it has ended, and what it says about it."""

from __future__ import annotations

import time
from typing import Any

import structlog

from backfire.config.cluster import Cluster
from backfire.service.worker.driver import Driver
from backfire.service.worker.pipe import Message

log = structlog.get_logger()

SILENCE_S = 60.0
"""How long the driver may be silent before it is ended: Ray's calls block while a cluster's head is away."""
AGAIN_S, AGAIN_MAX_S = 2.0, 60.0
"""The wait after a driver that has ended, twice as long each time."""
JOINED_WITH = ("address", "token_file", "runtime")
"""The settings that only another driver can take up."""


class Link:
    """Has a driver at work, or waits to start one.

    Args:
        section: the section `cluster` of the settings.

    Attributes:
        reached: whether the cluster is there.
        gone_at: since when it is not, by the monotonic clock.
        trouble: why there are fewer workers than there should be; empty if there are not.
        ended: why the driver is of no use any more; `drop` it then.
    """

    def __init__(self, section: Cluster) -> None:
        self._section = section
        self._driver: Driver | None = None
        self._waiting = 0
        self._start_at, self._pause = 0.0, AGAIN_S
        self.gone_at = time.monotonic()
        self.reached = False
        self.trouble = self.ended = self._reason = ""

    @property
    def waitables(self) -> list[Any]:
        """What becomes readable when the driver tells something or dies."""
        return [] if self._driver is None else self._driver.waitables

    def needs_another(self, section: Cluster) -> bool:
        """Whether the driver cannot go on under these settings."""
        changed = any(getattr(self._section, name) != getattr(section, name) for name in JOINED_WITH)
        return changed and self._driver is not None

    def configure(self, section: Cluster) -> None:
        """Work by other settings; see `needs_another`."""
        self._section = section
        self.send(settings=section.model_dump(mode="json"))

    def wait_for(self, waiting: int) -> None:
        """Have the driver know how many pictures have work left."""
        if waiting != self._waiting:
            self._waiting = waiting
            self.send(waiting=waiting)

    def send(self, **message: Any) -> None:
        """Tell the driver something, if there is one."""
        if self._driver is not None:
            self._driver.send(message)

    def receive(self) -> list[Message]:
        """What the driver has told; see `ended`."""
        if self._driver is None:
            self._start()
            return []
        messages, self.ended = self._driver.receive()
        if time.monotonic() - self._driver.heard > SILENCE_S:
            self.ended = self.ended or f"has been silent for {SILENCE_S:g} s"
        return messages

    def beat(self, trouble: str, nodes: int) -> None:
        """Take in that the driver lives, and is joined to so many nodes."""
        if not self.reached:
            log.info("cluster_joined", address=self._section.address, nodes=nodes)
        self.reached, self._pause = True, AGAIN_S
        self._say(trouble)

    def says_why(self, reason: str) -> None:
        """Take in why the driver is about to end."""
        self._reason = reason

    def drop(self) -> None:
        """End the driver, and start another one after a while."""
        self._say(self._reason or f"its driver {self.ended}; another one is started")
        if self.reached:
            log.error("cluster_lost", address=self._section.address, error=self.trouble)
        self.close()
        self._later()

    def leave(self) -> None:
        """End the driver, and start another one at once."""
        log.info("cluster_left", address=self._section.address)
        self.close()
        self.trouble, self._start_at, self._pause = "", 0.0, AGAIN_S

    def close(self) -> None:
        """End the driver."""
        if self._driver is not None:
            self._driver.kill()
        self._driver, self._reason, self.ended = None, "", ""
        if self.reached:
            self.gone_at = time.monotonic()
        self.reached = False

    def _start(self) -> None:
        if time.monotonic() < self._start_at:
            return
        try:
            self._driver = Driver()
        except OSError as error:
            self._say(f"its driver cannot be started ({error.strerror or error}); it is tried again")
            self._later()
            return
        self.send(settings=self._section.model_dump(mode="json"))
        self.send(waiting=self._waiting)

    def _later(self) -> None:
        self._start_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, AGAIN_MAX_S)

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.warning("cluster_trouble", address=self._section.address, error=trouble)
        self.trouble = trouble
