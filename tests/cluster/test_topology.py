"""FR3 on a real cluster: the node of a retry or dead-letter queue is down."""

import asyncio

import pytest

from tests.application import running
from tests.client import connected
from tests.proxy import Proxy
from tests.rabbit_cluster import RabbitCluster
from tests.waiting import eventually
from workerkit import AMQPConsumer, Queue, Reject, RetryPolicy


@pytest.mark.timeout(300)
async def test_fr3_a_consumer_consumes_while_the_node_of_its_dead_letter_queue_is_down(
    cluster: RabbitCluster, vhost: str
) -> None:
    """It reconnects and handles what can be handled; a dead letter waits until its queue is back.

    The queue of dead letters is classic here, as workerkit declared it before it had types.
    """
    handled: set[str] = set()  # One that was handled just before a cut is handled again.

    class Orders(AMQPConsumer):
        queues = [Queue("orders", "quorum")]

        async def handle(self, body: str) -> None:
            if body == "bad":
                raise Reject("as the sender wants it")
            handled.add(body)

    url = cluster.nodes[0].url(vhost)
    async with connected(cluster.nodes[1].url(vhost)) as elsewhere:
        await elsewhere.declare("orders.dlq")
    assert cluster.leader("orders.dlq", vhost) == 1
    async with (
        Proxy("127.0.0.1", cluster.nodes[0].port) as proxy,
        running("", Orders, amqp={"default": {"url": proxy.url(url)}}) as runner,
        connected(url) as client,
    ):
        await client.send("orders", b"before")
        await eventually(lambda: handled == {"before"})
        cluster.kill(1)
        proxy.drop()
        await client.send("orders", b"during")
        await eventually(lambda: "during" in handled, what=f"{runner.health}")
        await client.send("orders", b"bad", b"after")
        await eventually(lambda: "after" in handled)
        await asyncio.to_thread(cluster.start_node, 1)
        letter = await client.take("orders.dlq", 60.0)

    assert letter.body == b"bad"


@pytest.mark.timeout(300)
async def test_fr3_queues_of_a_cluster_are_replicated_by_the_setting(
    cluster: RabbitCluster, vhost: str
) -> None:
    """`QUEUE_TYPE=quorum`: a plain name, its dead letters and its retries have three members."""

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(5,))

        async def handle(self, body: str) -> None: ...

    url = cluster.nodes[0].url(vhost)
    async with running("", Orders, amqp={"default": {"url": url, "queue_type": "quorum"}}):
        names = sorted(cluster.any_node().queues(vhost))
        members = {name: cluster.members(name, vhost) for name in names}

    assert members == {
        "orders": [0, 1, 2],
        "orders.dlq": [0, 1, 2],
        "orders.retry.5s": [0, 1, 2],
    }


@pytest.mark.timeout(300)
async def test_fr5_another_worker_continues_while_a_node_is_cut_off(
    cluster: RabbitCluster, vhost: str
) -> None:
    """A worker on the majority side of a partition handles messages that the other cannot get."""
    handled: set[str] = set()

    class Orders(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: str) -> None:
            handled.add(body)

    def settings(number: int) -> dict[str, dict[str, str]]:
        return {"default": {"url": cluster.nodes[number].url(vhost), "queue_type": "quorum"}}

    async with (
        running("", Orders, amqp=settings(2)),
        running("", Orders, amqp=settings(0)),
        connected(cluster.nodes[0].url(vhost)) as client,
    ):
        await asyncio.to_thread(cluster.move_leader, "orders", vhost, 1)
        await asyncio.to_thread(cluster.cut_off, 2)
        meanwhile = [f"{number}" for number in range(50)]
        await client.send("orders", *map(str.encode, meanwhile))
        # Some may have been sent to the worker that is cut off: they return after the partition.
        await eventually(lambda: len(handled) > 25, 60.0)
        await asyncio.to_thread(cluster.heal)
        await eventually(lambda: handled == set(meanwhile), 60.0)
