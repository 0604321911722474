"""FR1 and FR17: quorum queues whose delivery limit the class does not know lose nothing."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import running
from tests.client import Client
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Queue, RetryPolicy

ORDERS = "orders"
DROPS = "quorum queue without dead_letter_exchange: RabbitMQ 4 may drop messages"


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses before a message is requeued."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("workerkit.amqp.requeue._LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("workerkit.amqp.requeue._SHORTEST_HOLD", 0.01)


def limit_by_policy(rabbit: PrivateRabbit, vhost: str, limit: int) -> None:
    """Give every queue of a virtual host that is declared from now on a delivery limit."""
    rabbit.eval(
        f'rabbit_policy:set(<<"{vhost}">>, <<"limit">>, <<"^orders$">>,'
        f' [{{<<"delivery-limit">>, {limit}}}], 0, <<"queues">>, <<"tests">>)'
    )


async def declared(
    rabbit: PrivateRabbit, vhost: str, client: Client, how: str, limit: int
) -> str | Queue:
    """Declare the queue in a way that hides its limit; return the declaration of the class."""
    if how == "policy":
        limit_by_policy(rabbit, vhost, limit)
        return Queue(ORDERS, "quorum")
    if how == "policy and a plain name":
        limit_by_policy(rabbit, vhost, limit)
        await client.declare(ORDERS, x_queue_type="quorum")
        return ORDERS
    await client.declare(ORDERS, x_queue_type="quorum", x_delivery_limit=limit, x_max_length=9999)
    return ORDERS


def consumer(
    queue: str | Queue, handle: Any, declare: str = "missing", **options: Any
) -> type[AMQPConsumer]:
    attributes = {"queues": [queue], "declare": declare, "handle": handle, **options}
    return type("Orders", (AMQPConsumer,), attributes)


async def bodies(rabbit: PrivateRabbit, vhost: str, client: Client, queue: str) -> list[bytes]:
    """Take and return all ready messages of a queue."""
    found = rabbit.queues(vhost).get(queue)
    return [(await client.take(queue)).body for _ in range(found.ready if found else 0)]


def settled(rabbit: PrivateRabbit, vhost: str, dead: int) -> bool:
    """Return whether only dead letters are left."""
    queues = rabbit.queues(vhost)
    assert queues[ORDERS].ready + queues[ORDERS].unacked == 0, queues
    assert queues["orders.dlq"].ready == dead, queues
    return True


HOW = ["policy", "policy and a plain name", "declared elsewhere"]


@pytest.mark.parametrize("limit", range(6))
@pytest.mark.parametrize("how", HOW)
async def test_fr1_a_handler_that_always_raises_loses_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, how: str, limit: int
) -> None:
    """With any limit, and from any source, every message ends as a dead letter."""
    declare = "never" if how == "declared elsewhere" else "missing"
    queue = await declared(rabbit, vhost, client, how, limit)
    if declare == "never":
        await client.declare("orders.dlq")
    sent = [b"%d" % number for number in range(8)]

    async def handle(self: AMQPConsumer, body: bytes) -> None:
        raise KeyError("never")

    async with running(url, consumer(queue, handle, declare)):
        await client.send(ORDERS, *sent)
        await eventually(lambda: settled(rabbit, vhost, len(sent)), 60.0)
    dead = await bodies(rabbit, vhost, client, "orders.dlq")

    assert sorted(dead) == sorted(sent)


@pytest.mark.parametrize("limit", range(1, 4))
@pytest.mark.parametrize("batch", [False, True])
async def test_fr1_stops_and_starts_lose_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, limit: int, batch: bool
) -> None:
    """Prefetched messages are requeued at each stop, and failed ones are handled in the end.

    With a limit of 0 the broker drops even what is on its way when the consumer is cancelled, which
    no client can prevent.
    """
    queue = await declared(rabbit, vhost, client, "policy", limit)
    sent = [b"%d" % number for number in range(30)]
    calls: Counter[bytes] = Counter()
    handled: Counter[bytes] = Counter()
    blocked = asyncio.Event()
    seen: list[int] = []

    async def one(body: bytes) -> None:
        calls[body] += 1
        if calls[body] <= int(body) % 4:
            raise KeyError("not yet")
        handled[body] += 1

    async def handle(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        await one(message.body)
        await blocked.wait()

    async def handle_batch(self: AMQPConsumer, messages: list[bytes]) -> None:
        for body in messages:
            calls[body] += 1
        if any(calls[body] <= int(body) % 4 for body in messages):
            raise KeyError("not yet")
        handled.update(messages)

    options: dict[str, Any] = {"batch_size": 4, "batch_interval": 0.05} if batch else {}
    orders = consumer(queue, handle_batch if batch else handle, concurrency=2, **options)
    for number in range(4):
        seen.append(sum(calls.values()))
        async with running(url, orders, shutdown_grace=0.2):
            if not number:
                await client.send(ORDERS, *sent)
            await eventually(lambda: sum(calls.values()) > seen[-1] or len(handled) == len(sent))
    blocked.set()
    async with running(url, orders):
        # The broker's counts may be old; the list of handled messages is not.
        await eventually(lambda: sorted(handled) == sorted(sent), 60.0)
        await eventually(lambda: settled(rabbit, vhost, 0), 60.0)


@pytest.mark.parametrize("limit", [0, 2])
async def test_fr1_a_handler_that_ends_the_call_itself_loses_nothing(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, limit: int
) -> None:
    """`reject(requeue=True)` and `retry` do not use the counter either."""
    queue = await declared(rabbit, vhost, client, "policy", limit)
    calls: Counter[bytes] = Counter()

    async def handle(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        calls[message.body] += 1
        if calls[message.body] > 5:
            return
        if message.body == b"retry":
            message.retry(0.01)
        else:
            message.reject(requeue=True)

    async with running(url, consumer(queue, handle, retry=RetryPolicy(delays=(0.2,) * 9))):
        await client.send(ORDERS, b"retry", b"reject")
        await eventually(lambda: calls == {b"retry": 6, b"reject": 6}, 60.0)
        await eventually(lambda: settled(rabbit, vhost, 0))


async def test_fr1_a_copy_keeps_what_was_sent(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The copy keeps exchange, headers and attempt; the handler sees that it is redelivered."""
    queue = await declared(rabbit, vhost, client, "policy", 9)
    seen: list[AMQPMessage[bytes]] = []

    async def handle(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        seen.append(message)
        if len(seen) < 4:
            raise KeyError("not yet")

    sent = Basic.Properties(
        headers={"a": 1, "CC": ["elsewhere"]}, message_id="m", priority=3, expiration="3600000"
    )
    async with running(url, consumer(queue, handle)):
        await client.declare("elsewhere")
        await client.declare_exchange("shop", ORDERS)
        await client.publish("shop", ORDERS, b"x", sent)
        await eventually(lambda: settled(rabbit, vhost, 0))
    elsewhere = rabbit.queues(vhost)["elsewhere"].ready

    assert [each.redelivered for each in seen] == [False, True, True, True]
    assert {each.exchange for each in seen} == {"shop"}
    assert {each.message_id for each in seen} == {"m"}
    assert {each.headers["a"] for each in seen} == {1}
    assert {each.attempt for each in seen} == {1}
    assert {each.properties.expiration for each in seen} == {"3600000"}
    assert elsewhere == 0
    copies = [each.returns for each in seen]
    assert copies == ([0, 1, 2, 3] if rabbit.version < (4, 3) else [0, 0, 0, 0])
    assert [each.acquired_count for each in seen] == (
        [0, 0, 0, 0] if rabbit.version < (4, 3) else [0, 1, 2, 3]
    )


async def test_fr1_a_queue_that_is_full_gets_its_message_back_later(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A copy that the queue refuses is tried again, and the message stays unsettled."""
    await client.declare(
        ORDERS,
        x_queue_type="quorum",
        x_delivery_limit=1,
        x_max_length=1,
        x_overflow="reject-publish",
    )
    calls: Counter[bytes] = Counter()
    gate = asyncio.Event()

    async def handle(self: AMQPConsumer, body: bytes) -> None:
        calls[body] += 1
        await gate.wait()
        if calls[body] < 4:
            raise KeyError("not yet")

    async with running(url, consumer(ORDERS, handle, concurrency=1, prefetch=1)):
        await client.send(ORDERS, b"a")
        await eventually(lambda: calls[b"a"])
        await client.send(ORDERS, b"b")
        gate.set()
        await eventually(lambda: settled(rabbit, vhost, 0), 60.0)

    assert calls == {b"a": 4, b"b": 4}
