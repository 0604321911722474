"""FR18: handlers that take longer than the broker waits, and consumers that the broker cancels."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import connected
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import fields
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Queue

OVERDUE = "handler exceeds the broker's consumer_timeout: its message is redelivered"
CANCELLED = "consumer cancelled by the broker"
TIMEOUT = 1.0


@pytest.fixture(scope="module")
def impatient() -> Iterator[PrivateRabbit]:
    """A node that waits a second for an acknowledgement; the settings of the workers agree."""
    with PrivateRabbit() as node:
        node.eval(
            f"application:set_env(rabbit, consumer_timeout, {round(1000 * TIMEOUT)}),"
            " application:set_env(rabbit, channel_tick_interval, 100)"
        )
        yield node


@pytest.mark.parametrize("batch", [False, True])
async def test_fr18_no_message_is_handled_twice_at_the_same_time(
    impatient: PrivateRabbit, caplog: pytest.LogCaptureFixture, batch: bool
) -> None:
    """A redelivered message waits for the end of the first call, on both types of queues."""
    kind = "batch" if batch else "single"
    names = [f"{kind} {number}" for number in range(2)]
    at_once: Counter[str] = Counter()
    most: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    recorder = Recorder()

    async def call(queue: str) -> None:
        calls[queue] += 1
        at_once[queue] += 1
        most[queue] = max(most[queue], at_once[queue])
        try:
            await eventually(
                lambda: any(repr(queue) in each["delivery"] for each in fields(caplog, OVERDUE))
            )
        finally:
            at_once[queue] -= 1

    async def handle(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        await call(message.queue)

    async def handle_batch(self: AMQPConsumer, messages: list[AMQPMessage[bytes]]) -> None:
        await asyncio.gather(*(call(each.queue) for each in messages))

    options: dict[str, Any] = {
        "queues": [Queue(name, "quorum") for name in names],
        "handle": handle_batch if batch else handle,
    } | ({"batch_interval": 0.05} if batch else {})
    slow = type("Slow", (AMQPConsumer,), options)
    async with (
        running(impatient.url(), slow, recorder=recorder, consumer_timeout=TIMEOUT),
        connected(impatient.url()) as client,
    ):
        for name in names:
            await client.send(name, b"slow")
        await eventually(lambda: recorder.actions.count("ack") == 2, 20.0)
        for name in names:
            await eventually(lambda: impatient.queues()[name] == QueueState(0, 0, 1))  # noqa: B023

    assert most == calls == Counter(dict.fromkeys(names, 1))
    assert recorder.actions.count("lost") == 2
    assert impatient.queues()[f"{names[0]}.dlq"].ready == 0


async def test_fr18_each_time_is_counted_and_health_has_the_reason(
    impatient: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported as a timeout, and not as a deleted queue, if the broker's clock is ahead."""
    gate = asyncio.Event()
    calls = 0
    reasons: set[str] = set()

    class Endless(AMQPConsumer):
        queues = [Queue("endless", "quorum")]

        async def handle(self, body: bytes) -> None:
            nonlocal calls
            calls += 1
            await gate.wait()

    async with (
        running(impatient.url(), Endless, consumer_timeout=TIMEOUT) as runner,
        connected(impatient.url()) as client,
    ):

        def dead() -> bool:
            reasons.add(runner.health[0].reason)
            return impatient.queues()["endless.dlq"].ready == 1

        await client.send("endless", b"a")
        try:
            await eventually(dead, 40.0)
        finally:
            gate.set()
        letter = await client.take("endless.dlq")

    assert calls == 1
    assert letter.evidence["error"] == "HandlerTimeout"
    assert [each["times"] for each in fields(caplog, OVERDUE)] == [1, 2, 3]
    assert not [each for each in reasons if "deleted" in each]
    if impatient.version >= (4, 3):
        logged = {each["reason"] for each in fields(caplog, CANCELLED)}
        assert "a handler took as long as the broker's consumer_timeout" in logged


async def test_fr18_a_queue_that_is_deleted_is_missing(
    impatient: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker gives no reason for the cancellation; the queue is found to be missing."""

    class Orders(AMQPConsumer):
        queues = [Queue("deleted", "quorum")]

        async def handle(self, body: bytes) -> None: ...

    async with (
        running(impatient.url(), Orders) as runner,
        connected(impatient.url()) as client,
    ):
        await client.delete("deleted")
        await eventually(lambda: runner.health[0].reason == "queue 'deleted' is missing")

    [record] = fields(caplog, CANCELLED)
    assert record["reason"].startswith("the broker gave no reason")
