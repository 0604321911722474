"""FR13. A queue that another client uses exclusively, such as the old process of a deployment."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiormq
import pytest

from tests.application import running
from tests.client import Client
from tests.consumers import collector
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import fields
from tests.waiting import eventually
from workerkit import Action, Queue
from workerkit.amqp.queue import QueueType
from workerkit.health import abort_reasons

IN_USE = "queue is used by another connection"
REFUSED = "consumer is not ready"


@asynccontextmanager
async def other_client(
    url: str, queue: str, prefetch: int = 0, **options: Any
) -> AsyncIterator[list[bytes]]:
    """Another client that consumes the queue inside the block."""
    bodies: list[bytes] = []

    async def keep(message: Any) -> None:
        await message.channel.basic_ack(message.delivery_tag)
        bodies.append(bytes(message.body))

    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        await channel.basic_qos(prefetch_count=prefetch)
        await channel.basic_consume(queue, keep, **options)
        yield bodies
    finally:
        await connection.close()


async def test_fr13_a_consumer_waits_for_a_queue_with_an_exclusive_consumer(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Health gives the reason. The process continues, and consumes when the other client ends."""
    await client.declare("q")
    consumer, bodies = collector("q")
    async with AsyncExitStack() as stack:
        others = await stack.enter_async_context(other_client(url, "q", exclusive=True))
        async with running(url, consumer, ready=False) as runner:
            await eventually(lambda: len(fields(caplog, IN_USE)) >= 4)
            health, given_up = runner.health[0], abort_reasons(runner.health)
            state, reason = health.state.value, health.reason
            await client.send("q", b"theirs")
            await eventually(lambda: others == [b"theirs"])
            await stack.aclose()
            await client.send("q", b"ours")
            await eventually(lambda: bodies == [b"ours"])
            await eventually(lambda: runner.ready)
            await eventually(lambda: rabbit.queues(vhost)["q"] == QueueState(0, 0, 1))

    assert (state, given_up) == ("waiting", [])
    assert "'q'" in reason
    assert "another client consumes it exclusively" in reason
    assert "grant" not in reason
    assert fields(caplog, IN_USE)[0]["queue"] == "q"
    assert not fields(caplog, REFUSED)


async def test_fr13_a_consumer_waits_for_an_exclusive_queue_of_another_connection(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as the old process. The start continues, too, if there is no other consumer."""
    queue = Queue("held", exclusive=True, durable=False)
    old, _ = collector(queue, name="Old", on_invalid=Action.REJECT)
    new, bodies = collector(queue, name="New", on_invalid=Action.REJECT, declare="always")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(url, old))
        async with running(url, new, ready=False) as runner:
            await eventually(lambda: len(fields(caplog, IN_USE)) >= 4)
            reason, given_up = runner.health[0].reason, abort_reasons(runner.health)
            await stack.aclose()
            await eventually(lambda: runner.ready)

    assert given_up == []
    assert "'held'" in reason
    assert "another connection has declared it as exclusive" in reason
    assert bodies == []


@pytest.mark.parametrize("declare", ["missing", "always"])
async def test_fr13_a_queue_that_is_not_exclusive_is_different(
    url: str, client: Client, declare: str
) -> None:
    """RabbitMQ uses the same code for this, and waiting would not help."""
    await client.declare("shared")
    queue = Queue("shared", exclusive=True)
    consumer, _ = collector(queue, declare=declare, on_invalid=Action.REJECT)
    async with running(url, consumer, ready=False) as runner:
        reasons = await eventually(lambda: abort_reasons(runner.health))

    assert "queue 'shared' exists, and is not exclusive" in reasons[0]


async def test_fr13_a_standby_of_a_single_active_consumer_is_ready(
    url: str, client: Client
) -> None:
    """The broker accepts its consumer, and delivers to it when the active one has ended."""
    await client.declare("q", x_single_active_consumer=True)
    consumer, bodies = collector("q")
    async with AsyncExitStack() as stack:
        others = await stack.enter_async_context(other_client(url, "q"))
        async with running(url, consumer):
            await client.send("q", b"theirs")
            await eventually(lambda: others == [b"theirs"])
            await stack.aclose()
            await client.send("q", b"ours")
            await eventually(lambda: bodies == [b"ours"])


@pytest.mark.parametrize("kind", ["quorum", "stream"])
async def test_fr13_exclusive_consumers_of_other_queue_types_have_no_effect(
    url: str, client: Client, kind: QueueType
) -> None:
    """RabbitMQ uses the flag for classic queues only."""
    await client.declare("q", x_queue_type=kind)
    consumer, bodies = collector(Queue("q", kind), on_invalid=Action.REJECT)
    sent = {b"%d" % number for number in range(10)}
    async with (
        other_client(url, "q", prefetch=1, exclusive=True) as others,
        running(url, consumer),
    ):
        await client.send("q", *sent)
        await eventually(lambda: {*bodies, *others} == sent)
