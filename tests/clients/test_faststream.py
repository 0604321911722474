"""FastStream on the embedded broker."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aio_pika.exceptions import PublishError
from aiormq.exceptions import ChannelNotFoundEntity
from faststream.exceptions import RejectMessage
from faststream.middlewares import AckPolicy
from faststream.rabbit import (
    Channel,
    ExchangeType,
    QueueType,
    RabbitBroker,
    RabbitExchange,
    RabbitMessage,
    RabbitQueue,
)

from tests.clients.broker_process import BrokerProcess
from tests.waiting import eventually


@pytest.fixture
async def broker(url: str) -> AsyncIterator[RabbitBroker]:
    """A broker of FastStream, which is not started: its subscribers come first."""
    broker = RabbitBroker(f"{url}?heartbeat=10")
    yield broker
    await broker.stop()


async def test_subscribers_get_what_their_exchanges_route(broker: RabbitBroker, name: str) -> None:
    """Topic, fanout and headers exchanges, which FastStream declares with their bindings."""
    got: set[tuple[str, str]] = set()
    topic = RabbitExchange(f"{name}.topic", ExchangeType.TOPIC, durable=True)
    fanout = RabbitExchange(f"{name}.fanout", ExchangeType.FANOUT)
    headers = RabbitExchange(f"{name}.headers", ExchangeType.HEADERS)

    @broker.subscriber(RabbitQueue(f"{name}.topic", routing_key="order.*"), topic)
    async def by_topic(body: str) -> None:
        got.add(("topic", body))

    @broker.subscriber(RabbitQueue(f"{name}.1", auto_delete=True), fanout)
    async def first(body: str) -> None:
        got.add(("first", body))

    @broker.subscriber(RabbitQueue(f"{name}.2", exclusive=True), fanout)
    async def second(body: str) -> None:
        got.add(("second", body))

    match = {"kind": "order", "x-match": "any"}

    @broker.subscriber(RabbitQueue(f"{name}.headers", bind_arguments=match), headers)
    async def by_headers(body: str) -> None:
        got.add(("headers", body))

    await broker.start()
    await broker.publish("a", exchange=topic, routing_key="order.placed", persist=True)
    await broker.publish("b", exchange=fanout)
    await broker.publish("c", exchange=headers, headers={"kind": "order"})

    expected = {("topic", "a"), ("first", "b"), ("second", "b"), ("headers", "c")}
    await eventually(lambda: got == expected)


async def test_a_request_gets_its_reply(broker: RabbitBroker, name: str) -> None:
    """By direct reply-to, 20 at the same time, and in a chain of publishers."""

    @broker.subscriber(f"{name}.double")
    async def double(number: int) -> int:
        return 2 * number

    @broker.subscriber(f"{name}.in")
    @broker.publisher(f"{name}.double", reply_to=f"{name}.out")
    async def forward(number: int) -> int:
        return number + 1

    out: list[int] = []

    @broker.subscriber(f"{name}.out")
    async def collect(number: int) -> None:
        out.append(number)

    await broker.start()
    requests = (broker.request(number, f"{name}.double") for number in range(20))
    replies = await asyncio.gather(*requests)
    await broker.publish(1, f"{name}.in")

    assert [await reply.decode() for reply in replies] == [2 * number for number in range(20)]
    await eventually(lambda: out == [4])


async def test_messages_are_settled_by_their_policy(broker: RabbitBroker, name: str) -> None:
    """Requeued after an error, rejected to the dead letters, or acknowledged; prefetch one."""
    attempts: list[tuple[str, bool]] = []
    dead: list[str] = []
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}.dead"}
    work = RabbitQueue(f"{name}.work", QueueType.QUORUM, durable=True, arguments=arguments)

    @broker.subscriber(work, ack_policy=AckPolicy.NACK_ON_ERROR, channel=Channel(prefetch_count=1))
    async def handle(body: str, message: RabbitMessage) -> None:
        attempts.append((body, bool(message.raw_message.redelivered)))
        if body == "requeued" and not message.raw_message.redelivered:
            raise RuntimeError(body)
        if body == "rejected":
            raise RejectMessage

    @broker.subscriber(f"{name}.dead")
    async def collect(body: str, message: RabbitMessage) -> None:
        (death,) = message.headers["x-death"]
        dead.append(f"{body}: {death['reason']}")

    await broker.start()
    for body in ("requeued", "rejected", "fine"):
        await broker.publish(body, work)

    await eventually(lambda: len(attempts) == 4 and len(dead) == 1)
    assert {*attempts} >= {("requeued", False), ("requeued", True), ("fine", False)}
    assert dead == ["rejected: rejected"]


async def test_unroutable_messages_are_returned(url: str, name: str) -> None:
    """Publishes are mandatory, and confirmed."""
    async with RabbitBroker(url, default_channel=Channel(on_return_raises=True)) as broker:
        with pytest.raises(PublishError, match="NO_ROUTE"):
            await broker.publish("lost", name)


async def test_a_subscriber_recovers_after_the_broker_closed_the_connection(
    own_broker: BrokerProcess,
) -> None:
    """aio-pika declares queues, bindings and consumers again."""
    got: list[str] = []
    broker = RabbitBroker(own_broker.url, reconnect_interval=0.2)
    topic = RabbitExchange("topic", ExchangeType.TOPIC)

    @broker.subscriber(RabbitQueue("work", routing_key="order.*"), topic)
    async def handle(body: str) -> None:
        got.append(body)

    await broker.start()
    await asyncio.to_thread(own_broker.restart)
    returning = Channel(on_return_raises=True)
    async with RabbitBroker(own_broker.url, default_channel=returning) as producer:

        async def routed() -> bool:
            try:
                await producer.publish("again", exchange=topic, routing_key="order.placed")
            except (ChannelNotFoundEntity, PublishError):  # Not declared yet.
                return False
            return True

        await eventually(routed)
    await eventually(lambda: got == ["again"])
    await broker.stop()
