"""Faults of a cluster while messages are handled.

Each failure is a coroutine function that breaks something, waits until the worker handles messages
again if it can, and repairs the cluster. Its docstring is its name in the table.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.cluster.traffic import Ledger
from tests.rabbit_cluster import RabbitCluster
from tests.waiting import eventually

QUEUE = "orders"
_AGAIN = 90.0  # Seconds until messages are handled again; the pause itself is measured.
_SOME = 40
_PARTITION = 20.0
_FROZEN = 5.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A cluster with a worker that consumes `QUEUE` of one virtual host."""

    cluster: RabbitCluster
    vhost: str
    ledger: Ledger

    async def connected(self, role: str = "consumers") -> int:
        """Return the node that the worker consumes from, or publishes to."""

        def nodes() -> list[int]:
            return self.cluster.nodes_of(f"workerkit {role}", self.vhost)

        return (await eventually(nodes, what="connected"))[0]

    async def elsewhere(self) -> int:
        """Move the leader of the queue to a node that the worker is not connected to; return it."""
        used = {await self.connected(), await self.connected("publisher")}
        node = next(each for each in range(len(self.cluster.nodes)) if each not in used)
        await asyncio.to_thread(self.cluster.move_leader, QUEUE, self.vhost, node)
        return node

    async def goes_on(self) -> None:
        """Wait until some more messages have been handled."""
        count = len(self.ledger.moments) + _SOME
        await eventually(lambda: len(self.ledger.moments) >= count, _AGAIN, what="handled again")


Fault = Callable[[Scene], Awaitable[None]]


async def kill_connected(scene: Scene) -> None:
    """kill -9 of the node the worker is connected to"""
    await _kill(scene, await scene.connected())


async def kill_leader(scene: Scene) -> None:
    """kill -9 of the leader of its queue"""
    await _kill(scene, await scene.elsewhere())


async def kill_dead_letters(scene: Scene) -> None:
    """kill -9 of the node that declared the `.dlq`"""
    await _kill(scene, scene.cluster.leader(f"{QUEUE}.dlq", scene.vhost))


async def rolling_restart(scene: Scene) -> None:
    """rolling restart of all three"""
    for number in range(len(scene.cluster.nodes)):
        await asyncio.to_thread(scene.cluster.restart, number)
        await scene.goes_on()


async def freeze_connected(scene: Scene) -> None:
    """SIGSTOP of the node the worker is connected to"""
    await _freeze(scene, await scene.connected())


async def freeze_leader(scene: Scene) -> None:
    """SIGSTOP of the leader of its queue"""
    await _freeze(scene, await scene.elsewhere())


async def cut_off_connected(scene: Scene) -> None:
    """partition of 20 s: without the node the worker consumes from"""
    await _cut_off(scene, await scene.connected())


async def cut_off_publisher(scene: Scene) -> None:
    """partition of 20 s: without the node the worker publishes to"""
    await _cut_off(scene, await scene.connected("publisher"))


async def cut_off_leader(scene: Scene) -> None:
    """partition of 20 s: without the leader of its queue"""
    await _cut_off(scene, await scene.elsewhere())


async def freeze_two(scene: Scene) -> None:
    """SIGSTOP of the other two nodes for 5 s: no majority"""
    number = await scene.connected()
    others = [each for each in range(len(scene.cluster.nodes)) if each != number]
    for each in others:
        await asyncio.to_thread(scene.cluster.pause, each)
    await asyncio.sleep(_FROZEN)
    for each in others:
        scene.cluster.resume(each)
    await scene.goes_on()


FAULTS: tuple[Fault, ...] = (
    kill_connected,
    kill_leader,
    kill_dead_letters,
    rolling_restart,
    freeze_connected,
    freeze_leader,
    cut_off_connected,
    cut_off_publisher,
    cut_off_leader,
    freeze_two,
)


async def _kill(scene: Scene, number: int) -> None:
    scene.cluster.kill(number)
    await scene.goes_on()
    await asyncio.to_thread(scene.cluster.start_node, number)
    await scene.goes_on()


async def _freeze(scene: Scene, number: int) -> None:
    await asyncio.to_thread(scene.cluster.pause, number)
    await scene.goes_on()
    scene.cluster.resume(number)
    await scene.goes_on()


async def _cut_off(scene: Scene, number: int) -> None:
    await asyncio.to_thread(scene.cluster.cut_off, number)
    await asyncio.sleep(_PARTITION)
    await asyncio.to_thread(scene.cluster.heal)
    await scene.goes_on()
