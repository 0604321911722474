"""A worker on three nodes, one of which fails: no confirmed message is lost."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.application import running
from tests.balancer import Balancer
from tests.cluster.faults import FAULTS, QUEUE, Fault, Scene
from tests.cluster.figures import Figures, record
from tests.cluster.traffic import Ledger, drain, longest_pause, publishing
from tests.rabbit import QueueState
from tests.rabbit_cluster import RabbitCluster
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Consumer, Publisher, Reject, Retry, RetryPolicy
from workerkit.amqp.queue import RETRY_INFIX

HEARTBEAT = 4
_COPIES = "copies"
_SETTLED = 120.0
_STUCK = 40.0


def orders(ledger: Ledger) -> list[type[Consumer]]:
    """Return a consumer that retries, dead-letters and publishes, and records its results."""

    class Orders(AMQPConsumer):
        queues = [QUEUE]
        concurrency = 8
        retry = RetryPolicy(delays=(0.3, 1, 1, 2, 5, 10), jitter=0)

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: str, message: AMQPMessage) -> None:
            kind = body.partition(":")[0]
            if kind == "never":
                raise Reject("as the sender wants it")
            if kind == "twice" and message.attempt == 1:
                raise Retry("as the sender wants it")
            if kind == "forward":
                await self.publisher.publish(body, _COPIES)
            ledger.note(body)

    class Copies(AMQPConsumer):
        queues = [_COPIES]

        async def handle(self, body: str) -> None:
            ledger.copies[body] += 1

    return [Orders, Copies]


@asynccontextmanager
async def reached(cluster: RabbitCluster, vhost: str, way: str) -> AsyncIterator[dict[str, Any]]:
    """Return the settings of a connection to *cluster*, by a list of hosts or a balancer."""
    common = {"heartbeat": HEARTBEAT, "queue_type": "quorum"}
    url = cluster.nodes[0].url(vhost)
    if way == "hosts":
        hosts = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
        yield {"url": url, "hosts": hosts, **common}
        return
    async with Balancer([node.port for node in cluster.nodes]) as balancer:
        yield {"url": url, "port": balancer.port, **common}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["hosts", "balancer"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_fr3_fr5_nothing_is_lost_when_a_node_fails(
    cluster: RabbitCluster, vhost: str, fault: Fault, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each confirmed message is handled or dead-lettered, and every queue is empty at the end."""
    caplog.set_level(logging.ERROR, "workerkit.observe")
    ledger = Ledger()
    urls = [node.url(vhost) for node in cluster.nodes]
    scene = Scene(cluster, vhost, ledger)
    async with (
        reached(cluster, vhost, way) as amqp,
        running("", *orders(ledger), amqp={"default": amqp}),
    ):
        async with publishing(urls, QUEUE, ledger):
            await scene.goes_on()
            began = time.monotonic()
            await fault(scene)
            ended = time.monotonic()
        await asyncio.to_thread(cluster.heal)
        stuck = await settled(cluster, vhost)
        await drain(urls[0], f"{QUEUE}.dlq", ledger.buried)
        assert cluster.members(QUEUE, vhost) == [0, 1, 2]
        assert cluster.members(f"{QUEUE}.dlq", vhost) == [0, 1, 2]
    figures = Figures(
        fault.__doc__ or "",
        way,
        cluster.version,
        len(ledger.confirmed),
        len(ledger.lost),
        ledger.twice,
        longest_pause(ledger.moments, began, ended),
        longest_pause(ledger.confirms, began, ended),
        stuck,
    )
    record(figures)

    assert ledger.lost == set(), figures
    assert {message.partition(":")[0] for message in ledger.buried} == {"never"}


async def settled(cluster: RabbitCluster, vhost: str) -> list[str]:
    """Wait until all queues but that of dead letters are empty.

    RabbitMQ 3.10 sometimes stops moving messages out of a queue of retries after a leader has
    failed. They are safe, and move on once the queue of retries has another leader.

    Returns:
        The queues that needed this.
    """

    def waiting() -> dict[str, QueueState]:
        queues = cluster.any_node().queues(vhost).items()
        return {
            name: queue
            for name, queue in queues
            if name != f"{QUEUE}.dlq" and queue.ready + queue.unacked
        }

    def empty() -> bool:
        assert waiting() == {}
        return True

    if cluster.version >= (4,):
        await eventually(empty, _SETTLED)
        return []
    with suppress(AssertionError):
        await eventually(empty, _STUCK)
    stuck = [name for name in waiting() if RETRY_INFIX in name]
    for name in stuck:
        node = (cluster.leader(name, vhost) + 1) % len(cluster.nodes)
        await asyncio.to_thread(cluster.move_leader, name, vhost, node)
    await eventually(empty, _SETTLED)
    return stuck
