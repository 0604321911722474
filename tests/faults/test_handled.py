"""B2. Handlers that succeed after their connection was lost are not called again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client, RawProperties
from tests.proxy import Proxy
from tests.rabbit import PrivateRabbit, QueueState
from tests.waiting import eventually
from tests.wire_format import CORRELATION_ID, HEADERS, MESSAGE_ID, properties, short, table
from workerkit import Action, AMQPConsumer, AMQPMessage, Queue, RetryPolicy, Runner

Then = Callable[[AMQPMessage[bytes]], object]


class Held:
    """A consumer whose handlers wait at a gate.

    Attributes:
        runs: How often each body was handled.
    """

    def __init__(self, then: Then = lambda message: None) -> None:
        self.runs: Counter[bytes] = Counter()
        self.attempts: list[int] = []
        self.gate = asyncio.Event()
        self.then = then

    async def handle(self, message: AMQPMessage[bytes]) -> None:
        """Wait, then call `then`."""
        self.runs[message.body] += 1
        self.attempts.append(message.attempt)
        await self.gate.wait()
        self.then(message)

    def consumer(self, *queues: str | Queue, **options: Any) -> type[AMQPConsumer]:
        """Return the class for it."""

        async def handle(consumer: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
            await self.handle(message)

        attributes = {"queues": list(queues or ["orders"]), "handle": handle, **options}
        return type("Orders", (AMQPConsumer,), attributes)


@asynccontextmanager
async def losing(
    rabbit: PrivateRabbit, url: str, consumer: type[AMQPConsumer], recorder: Recorder
) -> AsyncIterator[tuple[Proxy, Runner]]:
    """Run *consumer* inside the block, behind a proxy."""
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        running(proxy.url(url), consumer, recorder=recorder) as runner,
    ):
        yield proxy, runner


async def lose(proxy: Proxy, runner: Runner) -> None:
    """Reset and refuse all connections, and return when the worker has detected it."""
    proxy.refuse()
    proxy.drop()
    await eventually(lambda: not runner.ready)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("then", ["returns", "accepts, then raises"])
async def test_b2_a_success_after_the_loss_is_acknowledged_when_redelivered(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, kind: Any, then: str
) -> None:
    """The handler is called once, no failure is counted, and the queue is empty."""

    def accept(message: AMQPMessage[bytes]) -> None:
        message.accept()
        raise KeyError("afterwards")

    held = Held(accept) if then != "returns" else Held()
    consumer = held.consumer(Queue("orders", kind), retry=RetryPolicy(delays=(0.2,)))
    recorder = Recorder()
    async with losing(rabbit, url, consumer, recorder) as (proxy, runner):
        await client.send("orders", b"a")
        await eventually(lambda: held.runs[b"a"])
        await lose(proxy, runner)
        held.gate.set()
        await eventually(lambda: recorder.actions == ["lost"])
        await proxy.accept()
        await eventually(lambda: recorder.actions == ["lost", "ack"])
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))
        dead = rabbit.queues(vhost)["orders.dlq"].ready

    assert held.runs == {b"a": 1}
    assert dead == 0


async def test_b2_messages_that_look_the_same_are_counted(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Two of three were handled: the handler is called once more."""
    held = Held()
    consumer = held.consumer(concurrency=2, prefetch=3)
    recorder = Recorder()
    async with losing(rabbit, url, consumer, recorder) as (proxy, runner):
        sent = Basic.Properties(message_id="same")
        await client.send("orders", b"a", b"a", b"a", properties=sent)
        await eventually(lambda: held.runs[b"a"] == 2)
        await lose(proxy, runner)
        held.gate.set()
        await eventually(lambda: recorder.actions == ["lost", "lost"])
        await proxy.accept()
        await eventually(lambda: len(recorder.settled) == 5)
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))

    assert held.runs == {b"a": 3}
    assert recorder.actions[2:] == ["ack"] * 3


async def test_b2_a_failure_after_the_loss_runs_again_and_is_not_counted(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """Its attempt is the same as before, so it gets all attempts of the policy."""

    def fail(message: AMQPMessage[bytes]) -> None:
        raise KeyError("no")

    held = Held(fail)
    recorder = Recorder()
    consumer = held.consumer(retry=RetryPolicy(delays=(0.2, 0.2)))
    async with losing(rabbit, url, consumer, recorder) as (proxy, runner):
        await client.send("orders", b"a")
        await eventually(lambda: held.runs[b"a"])
        await lose(proxy, runner)
        held.gate.set()
        await eventually(lambda: recorder.actions == ["lost"])
        await proxy.accept()
        letter = await client.take("orders.dlq")

    assert held.attempts == [1, 1, 2, 3]
    assert letter.evidence["attempt"] == 3
    assert recorder.actions == ["lost", "retry", "retry", "dead_letter"]


async def test_b2_a_new_message_is_not_mistaken_for_a_handled_one(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """An equal message that is published later is handled, again if it fails.

    The handled one may be redelivered to another process; then this process still remembers it.
    """
    held = Held()
    recorder = Recorder()
    async with losing(rabbit, url, held.consumer(), recorder) as (proxy, runner):
        # Without an id, which aiormq would add.
        nameless = RawProperties(properties(0))
        await client.send("orders", b"tick", properties=nameless)
        await eventually(lambda: held.runs[b"tick"])
        await lose(proxy, runner)
        held.gate.set()
        await eventually(lambda: recorder.actions == ["lost"])
        elsewhere = await client.take("orders")
        failed: list[int] = []

        def fail_once(message: AMQPMessage[bytes]) -> None:
            if not failed:
                failed.append(1)
                raise KeyError("not yet")

        held.then = fail_once
        await client.send("orders", b"tick", properties=nameless)
        await proxy.accept()
        await eventually(lambda: len(recorder.settled) == 3)

    assert elsewhere.body == b"tick"
    assert recorder.actions == ["lost", "requeue", "ack"]
    assert held.runs[b"tick"] == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            properties(MESSAGE_ID, short(b"x" * 100 + b"1")),
            properties(MESSAGE_ID, short(b"x" * 100 + b"2")),
        ),
        (properties(CORRELATION_ID, short(b"1")), properties(CORRELATION_ID, short(b"2"))),
        (
            properties(HEADERS, table((b"tenant", b"b\x01"))),
            properties(HEADERS, table((b"tenant", b"b\x02"))),
        ),
    ],
    ids=["long ids", "requests", "headers"],
)
async def test_b2_messages_that_differ_are_not_mistaken_for_each_other(
    rabbit: PrivateRabbit, url: str, client: Client, one: bytes, other: bytes
) -> None:
    """One was handled; the other one has the same body and is handled, too."""
    seen: list[str] = []

    def told(message: AMQPMessage[bytes]) -> str:
        return f"{message.message_id} {message.correlation_id} {message.headers.get('tenant')}"

    held = Held(lambda message: seen.append(told(message)))
    recorder = Recorder()
    consumer = held.consumer(concurrency=1, prefetch=2)
    async with losing(rabbit, url, consumer, recorder) as (proxy, runner):
        await client.send("orders", b"", properties=RawProperties(one))
        await client.send("orders", b"", properties=RawProperties(other))
        await eventually(lambda: held.runs[b""])
        await lose(proxy, runner)
        held.gate.set()
        await eventually(lambda: recorder.actions == ["lost"])
        await client.take("orders")
        await proxy.accept()
        await eventually(lambda: len(recorder.settled) == 2)

    assert recorder.actions == ["lost", "ack"]
    assert len(set(seen)) == 2


@pytest.mark.parametrize("failing", [False, True])
async def test_b2_a_batch_that_ends_after_the_loss(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, failing: bool
) -> None:
    """A handled message is acknowledged when it is redelivered, while others are handled."""
    gate = asyncio.Event()
    batches: list[list[bytes]] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        batch_size = 3
        batch_interval = 1.0
        retry = RetryPolicy(delays=(0, 0.2))

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            batches.append([each.body for each in messages])
            if len(batches) > 1:
                return
            await gate.wait()
            for message in messages:
                if failing and message.body == b"b":
                    message.retry()

    recorder = Recorder()
    await client.declare("orders")
    await client.send("orders", b"a", b"b", b"c")
    async with losing(rabbit, url, Orders, recorder) as (proxy, runner):
        await eventually(lambda: batches)
        await lose(proxy, runner)
        gate.set()
        await eventually(lambda: recorder.actions == ["lost"] * 3)
        await client.send("orders", b"d")
        await proxy.accept()
        await eventually(lambda: len(recorder.settled) == 7)
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))

    assert sorted(batches[0]) == [b"a", b"b", b"c"]
    again = [body for batch in batches[1:] for body in batch]
    assert sorted(again) == ([b"b", b"d"] if failing else [b"d"])
    assert {each.action for each in recorder.settled[3:]} == {Action.ACK}


async def test_b2_a_success_at_the_moment_of_the_loss_is_remembered(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Acks that were collected but not sent are treated like all others."""
    dropped: list[Proxy] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            runs[message.body] += 1
            if not dropped:
                dropped.append(proxy)
                # As if the socket were found closed after the ack was taken, before it was sent.
                loop = asyncio.get_running_loop()
                loop.call_soon(message.acks.fence)
                proxy.drop()

    runs: Counter[bytes] = Counter()
    recorder = Recorder()
    async with losing(rabbit, url, Orders, recorder) as (proxy, _):
        await client.send("orders", b"a")
        await eventually(lambda: len(recorder.settled) >= 2)
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))

    assert runs == {b"a": 1}
