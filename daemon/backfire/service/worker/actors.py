"""The process between the daemon and a Ray cluster: it has actors there, and a picture with each of them.

Ray unpickles what nodes send, so that whoever controls a node controls this process; it is a child of the
daemon, and what it tells the daemon is JSON. Ray's own retries are off: it would try a picture again without
the daemon's knowledge, and give up in the end. A lost actor is replaced, and what its picture was is the
daemon's to start again.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from backfire import __version__
from backfire.config.cluster import Cluster
from backfire.errors import Code
from backfire.service.worker import answers, returned, survey
from backfire.service.worker.node import Actor
from backfire.service.worker.pipe import DriversEnd, Message
from backfire.service.worker.protocol import (
    Failed,
    GivenBack,
    Hindered,
    Interrupted,
    Outcome,
    Progress,
    from_json,
    to_json,
)
from backfire.service.worker.slots import Slot, trouble

BEAT_S = 1.0
"""How often the daemon is told how things are."""
LOOK_S = 5.0
"""How often the cluster is asked for its nodes."""
AGAIN_S = 10.0
"""The wait after an actor that did not start."""
ASK_S = 2.0
"""How often an actor is asked for its progress, as long as there are few."""
ASKED_MOST = 50
"""How many actors are asked in a second."""
NAME_MAX = 200
"""How long the name of a node may be."""
NODE_ID = 6
"""How many characters of Ray's number of a node end its name."""


class Late(Exception):
    """A picture took longer than `cluster.deadline_s`."""


class Lost(Exception):
    """The actor cannot be used any more."""


class Actors:
    """Has actors and carries out what the daemon asks; see `cluster` for the messages.

    Args:
        pipe: to the daemon.
        settings: the section `cluster`.
        actor: the class of the actors.
    """

    def __init__(self, pipe: DriversEnd, settings: Cluster, actor: type[Actor]) -> None:
        self._pipe, self._settings, self._class = pipe, settings, actor
        self._slots: dict[int, Slot] = {}
        self._numbers = 0
        self._waiting = 0
        self._fit = 0
        self._nodes = 0
        self._open = True

    async def run(self) -> None:
        """Work until the daemon closes the pipe."""
        ray.init(
            address=self._settings.address,
            namespace="backfire",
            log_to_driver=False,
            runtime_env=self._settings.runtime or None,
        )
        loop = asyncio.get_running_loop()

        def take(message: Message | None) -> None:
            loop.call_soon_threadsafe(self._hear, message)

        self._pipe.listen(take)
        look = loop.create_task(self._look())
        while self._open:
            self._adjust()
            self._beat()
            await asyncio.sleep(BEAT_S)
        look.cancel()
        ray.shutdown()

    # From and to the daemon

    def _hear(self, message: Message | None) -> None:
        """Do what the daemon asks; None means that it is gone."""
        if message is None:
            self._open = False
        elif "waiting" in message:
            self._waiting = message["waiting"]
            self._adjust()
        elif "settings" in message:
            self._settings = Cluster.model_validate(message["settings"])
        elif (slot := self._slots.get(message["actor"])) is None:
            if "order" in message:
                self._tell(message["actor"], _given_back(message["order"], "its worker is gone"))
        elif "order" in message:
            slot.busy = True
            slot.orders.put_nowait(message)
        elif slot.task is not None:
            slot.task.cancel()

    def _tell(self, actor: int, report: Outcome | Progress) -> None:
        self._pipe.send({"actor": actor, "report": to_json(report)})

    def _beat(self) -> None:
        said = trouble(self._slots.values(), self._settings, fit=self._fit, nodes=self._nodes)
        self._pipe.send({"beat": said, "nodes": self._nodes, "fit": self._fit})

    # How many actors there are

    async def _look(self) -> None:
        while True:
            with suppress(Exception):  # whatever it is, it is asked again; a lost cluster ends this process
                nodes = [one for one in await asyncio.to_thread(ray.nodes) if one["Alive"]]
                self._nodes = len(nodes)
                self._fit = sum(survey.fitting(one["Resources"], self._settings) for one in nodes)
                alive = {one["NodeID"][:NODE_ID] for one in nodes}
                for name in {slot.node for slot in self._slots.values() if slot.ready}:
                    if name[-NODE_ID:] not in alive:
                        self._abandon(name)
                self._adjust()
            await asyncio.sleep(LOOK_S)

    def _adjust(self) -> None:
        """Start actors where pictures wait, and end those that nothing needs."""
        settings, now = self._settings, time.monotonic()
        most = self._fit if settings.actors == "auto" else settings.actors
        wanted = max(min(settings.min_actors, most), min(most, self._waiting))
        for _ in range(wanted - len(self._slots)):
            self._numbers += 1
            slot = self._slots[self._numbers] = Slot(self._numbers, settings.needs)
            slot.task = asyncio.get_running_loop().create_task(self._serve(slot))
        slots = self._slots.values()
        idle = [slot for slot in slots if slot.ready and not slot.busy and now - slot.since > settings.idle_s]
        # What is not there yet, perhaps as its node has gone, is not waited for either.
        spare = [*(slot for slot in slots if not slot.ready), *idle]
        outdated = [slot for slot in slots if slot.needs != settings.needs and not slot.busy]
        for slot in {*spare[: max(len(slots) - wanted, 0)], *outdated}:
            if slot.task is not None:
                slot.task.cancel()

    def _abandon(self, node: str) -> None:
        """End the idle actors of a node that is gone, before a picture finds out about each of them."""
        for slot in [slot for slot in self._slots.values() if slot.node == node and not slot.busy]:
            self._leave(slot)
            if slot.task is not None:
                slot.task.cancel()

    def _leave(self, slot: Slot) -> None:
        """Tell the daemon, once, that an actor is gone."""
        if self._slots.pop(slot.number, None) is not None:
            self._pipe.send({"actor": slot.number, "gone": True})

    # One actor

    async def _serve(self, slot: Slot) -> None:
        """Start an actor and give it one picture after the other, until it is lost or not needed."""
        actor = None
        try:
            try:
                actor = self._start()
                await answers.result(actor.__ray_ready__.remote())
                slot.node = str(await answers.result(actor.name.remote()))[-NAME_MAX:]
            except Exception as error:  # of Ray, or of what is installed on the node
                slot.trouble = f"a worker does not start: {answers.first_cause(error)}"
                await asyncio.sleep(AGAIN_S)
                return
            slot.ready, slot.since = True, time.monotonic()
            self._pipe.send({"actor": slot.number, "node": slot.node})
            while slot.needs == self._settings.needs:
                message = await slot.orders.get()
                report = await self._work(slot, actor, message["order"], Path(message["folder"]))
                slot.busy, slot.since = False, time.monotonic()
                if report is not None:
                    self._tell(slot.number, report)
        except Lost:
            pass
        finally:
            self._leave(slot)
            if actor is not None:
                ray.kill(actor)

    def _start(self) -> Any:
        settings = self._settings
        return (
            ray.remote(self._class)
            .options(
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus,
                resources=settings.resources or None,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=2,  # to be asked for its progress; it gets no second picture
            )
            .remote(__version__)
        )

    async def _work(self, slot: Slot, actor: Any, order: dict[str, Any], folder: Path) -> Outcome | None:
        """How an order ended; None where what came back lies in the spool, and the daemon knows of it.

        Raises:
            Lost: the actor is, and the daemon knows how the order ended.
        """
        about = order["job"], order["lease"]
        lost: Outcome
        try:
            names = ["input", *(file for _, file in order["masks"])]
            picture, *masks = await asyncio.to_thread(lambda: [(folder / one).read_bytes() for one in names])
            # In a thread, since it writes the picture to the object store, which may have to make room first.
            ref = await asyncio.to_thread(actor.work.remote, order, picture, masks)
            came = await self._awaited(slot, actor, ref, order)
            told, files = returned.understood(came, *about)
            await asyncio.to_thread(returned.leave, folder, order["lease"], told, files)
            self._pipe.send({"actor": slot.number, "returned": told["outcome"]})
            return None
        except Late:
            lost = Interrupted(
                *about,
                f"took longer than cluster.deadline_s, {self._settings.deadline_s:g} s; raise it if the work "
                "needs longer",
            )
        except RayError as error:  # before OSError, which it may be as well
            lost = answers.outcome(await answers.cause(actor, error), *about)
            if isinstance(lost, Failed):
                return lost
            if isinstance(lost, GivenBack):
                self._abandon(
                    slot.node
                )  # the daemon hears of those first, and gives the picture to none of them
        except OSError as error:
            return Hindered(*about, Code.INTERNAL, f"the daemon's spool cannot be used: {error!r}")
        except Exception as error:  # of what the node sent, which is no fault of the picture
            lost = _given_back(order, f"its node returned what cannot be understood ({error!r:.200})")
        self._tell(slot.number, lost)
        raise Lost

    async def _awaited(self, slot: Slot, actor: Any, ref: Any, order: dict[str, Any]) -> Any:
        """What an actor returns; its progress is told meanwhile.

        Raises:
            Late: it took longer than the deadline.
            RayError: see Ray.
        """
        result = asyncio.ensure_future(answers.result(ref))
        deadline = time.monotonic() + self._settings.deadline_s
        while (left := deadline - time.monotonic()) > 0:
            pause = max(ASK_S, len(self._slots) / ASKED_MOST)
            done, _ = await asyncio.wait({result}, timeout=min(pause, left))
            if done:
                return result.result()
            with suppress(RayError, TimeoutError, TypeError, ValueError):
                at = await asyncio.wait_for(answers.result(actor.progress.remote()), ASK_S)
                if at is not None:
                    phase, step, steps = at
                    said = {"type": "Progress", "phase": phase, "done": step, "total": steps}
                    self._tell(slot.number, from_json({**said, "job": order["job"], "lease": order["lease"]}))
        if result.done():
            return result.result()
        result.cancel()
        raise Late


def _given_back(order: dict[str, Any], reason: str) -> GivenBack:
    return GivenBack(order["job"], order["lease"], reason)
