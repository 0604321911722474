"""What is done to a cluster while messages are handled.

Each fault is a coroutine function that breaks something, waits until the worker handles messages
again where it can, and puts the cluster right. Its docstring is its name in the table.
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


@dataclass(frozen=True, slots=True)
class Scene:
    """A cluster with a worker that consumes `QUEUE` of one virtual host."""

    cluster: RabbitCluster
    vhost: str
    ledger: Ledger

    async def connected(self) -> int:
        """The node that the worker consumes from."""
        nodes = await eventually(
            lambda: self.cluster.nodes_of("workerkit consumers", self.vhost), what="connected"
        )
        return nodes[0]

    async def elsewhere(self, queue: str = QUEUE) -> int:
        """Move the leader of *queue* to a node that the worker does not consume from; which one."""
        node = (await self.connected() + 1) % len(self.cluster.nodes)
        await asyncio.to_thread(self.cluster.move_leader, queue, self.vhost, node)
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
    """kill -9 of the node that made the `.dlq`"""
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
    """partition: the node the worker is connected to, alone for 15 s"""
    number = await scene.connected()
    await asyncio.to_thread(scene.cluster.cut_off, number)
    await asyncio.sleep(15.0)
    await asyncio.to_thread(scene.cluster.heal)
    await scene.goes_on()


async def cut_off_leader(scene: Scene) -> None:
    """partition: the leader of its queue, alone for 15 s"""
    number = await scene.elsewhere()
    await asyncio.to_thread(scene.cluster.cut_off, number)
    await asyncio.sleep(15.0)
    await asyncio.to_thread(scene.cluster.heal)
    await scene.goes_on()


async def freeze_two(scene: Scene) -> None:
    """SIGSTOP of the other two for 5 s: nobody serves"""
    number = await scene.connected()
    others = [each for each in range(len(scene.cluster.nodes)) if each != number]
    for each in others:
        await asyncio.to_thread(scene.cluster.pause, each)
    await asyncio.sleep(5.0)
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
