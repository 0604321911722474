"""FR21. Messages above the configured size: never in memory, never lost silently."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import errors, everything, fields
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, Queue, Runner

LIMIT = 10_000
SMALL, FULL, LARGE = b"small", b"f" * LIMIT, b"secret" * LIMIT
TOO_LARGE = "message is too large to be read"


class Sizes:
    """A consumer that counts its messages.

    Attributes:
        runs: How often each body was handled.
    """

    def __init__(self) -> None:
        self.runs: Counter[bytes] = Counter()

    def consumer(self, queue: Queue, **options: Any) -> type[AMQPConsumer]:
        """Return the class for it."""

        async def handle(consumer: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
            self.runs[message.body] += 1

        return type("Sizes", (AMQPConsumer,), {"queues": [queue], "handle": handle, **options})


@asynccontextmanager
async def limited(
    url: str, consumer: type[AMQPConsumer], recorder: Recorder | None = None
) -> AsyncIterator[Runner]:
    """Run *consumer* inside the block, on a connection with a limit."""
    amqp = {"default": {"url": url, "max_message_size": LIMIT}}
    async with running(url, consumer, recorder=recorder, amqp=amqp) as runner:
        yield runner


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fr21_a_message_too_large_goes_to_the_dead_letter_exchange(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    kind: Any,
) -> None:
    """It is complete there, as the broker moved it; a message of exactly the limit is handled."""
    sizes = Sizes()
    queue = Queue(
        "orders", kind, dead_letter_exchange="", dead_letter_routing_key="too large", arguments={}
    )
    await client.declare("too large")
    async with limited(url, sizes.consumer(queue)) as runner:
        await client.send("orders", LARGE, SMALL, FULL)
        letter = await client.take("too large")
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))
        ready = runner.ready

    assert letter.body == LARGE
    assert sizes.runs == {SMALL: 1, FULL: 1}
    assert ready
    [record] = fields(caplog, TOO_LARGE)
    assert record["levelname"] == "ERROR"
    assert (record["size"], record["limited_by"]) == (
        len(LARGE),
        "AMQP__DEFAULT__MAX_MESSAGE_SIZE",
    )
    assert "secret" not in everything(caplog)


async def test_fr21_a_message_too_large_is_held_without_a_dead_letter_exchange(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The consumer reports it and is not ready; other messages are handled; nothing is lost."""
    sizes = Sizes()
    sent = Basic.Properties(message_id="the large one")
    async with limited(url, sizes.consumer(Queue("orders"))) as runner:
        await client.send("orders", LARGE, properties=sent)
        await client.send("orders", SMALL)
        await eventually(lambda: sizes.runs[SMALL] and not runner.ready)
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 1, 1))
        [health] = runner.health
        reason = health.reason
    left = await client.take("orders")

    assert left.body == LARGE
    assert reason == (
        "queue 'orders' has a message of 60000 bytes, more than AMQP__DEFAULT__MAX_MESSAGE_SIZE "
        "allows, and no dead_letter_exchange to reject it to"
    )
    assert errors(caplog) == [TOO_LARGE]
    [record] = fields(caplog, TOO_LARGE)
    assert record["delivery"] == "message the large one of 'orders', 60000 bytes, not kept"


@pytest.mark.parametrize("action", [Action.ACK, Action.REJECT])
async def test_fr21_on_invalid_can_drop_it(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, action: Action
) -> None:
    """`on_invalid` decides, as for every invalid body."""
    sizes = Sizes()
    recorder = Recorder()
    consumer = sizes.consumer(Queue("orders"), on_invalid=action)
    async with limited(url, consumer, recorder) as runner:
        await client.send("orders", LARGE, SMALL)
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))
        ready = runner.ready

    assert ready
    assert sizes.runs == {SMALL: 1}
    assert sorted(recorder.actions) == sorted([action.value, "ack"])
    [record] = [each for each in recorder.settled if each.outcome.error]
    assert str(record.outcome.error) == (
        "the body has 60000 bytes, more than AMQP__DEFAULT__MAX_MESSAGE_SIZE allows"
    )


async def test_fr21_a_batch_does_not_contain_it(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The others of its batch are handled."""
    batches: list[list[bytes]] = []

    class Orders(AMQPConsumer):
        queues = [Queue("orders", dead_letter_exchange="", dead_letter_routing_key="large")]
        batch_size = 3

        async def handle(self, bodies: list[bytes]) -> None:
            batches.append(bodies)

    await client.declare("large")
    async with limited(url, Orders):
        await client.send("orders", b"a", LARGE, b"b")
        letter = await client.take("large")
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))

    assert letter.body == LARGE
    assert sorted(body for batch in batches for body in batch) == [b"a", b"b"]


async def test_fr21_a_stream_continues_after_it(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the stream, and the next messages are handled."""
    sizes = Sizes()
    consumer = sizes.consumer(Queue("orders", "stream", stream_offset="first"), prefetch=10)
    async with limited(url, consumer) as runner:
        await client.send("orders", LARGE, SMALL)
        await eventually(lambda: sizes.runs[SMALL])
        await eventually(lambda: fields(caplog, TOO_LARGE))
        ready = runner.ready

    assert ready
    [record] = fields(caplog, TOO_LARGE)
    assert record["done"] == "skipped; it stays in the stream"
