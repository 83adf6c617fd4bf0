"""The driver's list of actors, and why some of them do not start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from backfire.config.cluster import Cluster

PENDING_S = 30.0
"""The time after which it is told that an actor does not start: Ray itself says nothing of that."""


@dataclass(eq=False)
class Slot:
    """An actor, or one that is being started.

    Attributes:
        number: its name between daemon and driver; never used twice.
        orders: what it is to work, at most one.
        since: when it was started or became idle, by the monotonic clock.
        ready: whether it can work.
        busy: whether it has a picture.
        trouble: why it did not start.
        node: the name of its node, once it is ready.
        needs: what it reserves.
    """

    number: int
    needs: dict[str, float]
    orders: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    busy: bool = False
    trouble: str = ""
    node: str = ""
    task: asyncio.Task[None] | None = None


def trouble(slots: Collection[Slot], settings: Cluster, *, fit: int, nodes: int) -> str:
    """Why there are fewer workers than there should be, for a person; empty if there are not.

    Args:
        slots: those that there are.
        settings: the section `cluster`.
        fit: how many workers fit on the nodes.
        nodes: how many nodes there are.
    """
    now = time.monotonic()
    late = sum(not slot.ready and not slot.trouble and now - slot.since > PENDING_S for slot in slots)
    said = next((slot.trouble for slot in slots if slot.trouble), "")
    needs = ", ".join(f"{amount:g} {name}" for name, amount in settings.needs.items())
    if late and len(slots) > fit:
        said = (
            f"{late} of {len(slots)} workers wait for a node: each needs {needs}, and {fit} fit on "
            f"the cluster's {nodes} nodes; add nodes or lower cluster.actors"
        )
    elif late:
        said = said or (
            f"{late} of {len(slots)} workers have not started for {PENDING_S:g} s, though {fit} "
            f"fit on the cluster's {nodes} nodes: others have reserved {needs} there, or a node "
            "is slow to load; `ray status` tells which"
        )
    elif nodes and not slots and not fit:
        said = f"on no node of the cluster fits a worker, which needs {needs}; add nodes"
    return said
