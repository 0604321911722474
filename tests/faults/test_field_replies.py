"""FR10. Replies to `amq.rabbitmq.reply-to`, and delayed messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiormq
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client
from tests.proxy import Proxy
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Publisher, Unroutable

PSEUDO_QUEUE = "amq.rabbitmq.reply-to"


class Requester:
    """A client that sends requests, and receives the replies on the same channel."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.answers: list[bytes] = []

    async def ask(self, queue: str, body: bytes) -> None:
        """Send a request; the reply is added to `answers`."""
        await self._channel.basic_publish(
            body,
            routing_key=queue,
            properties=Basic.Properties(reply_to=PSEUDO_QUEUE, correlation_id=body.decode()),
        )

    async def answered(self, message: DeliveredMessage) -> None:
        """Store a reply."""
        self.answers.append(bytes(message.body))

    async def leave(self) -> None:
        """Close the channel: replies cannot be delivered."""
        await self._channel.close()


@asynccontextmanager
async def requester(url: str) -> AsyncIterator[Requester]:
    """A client with direct reply-to, on a separate connection."""
    connection = await aiormq.connect(url)
    try:
        # Requests and replies use the same channel, which must not have confirms.
        channel = await connection.channel(publisher_confirms=False)
        asking = Requester(channel)
        await channel.basic_consume(PSEUDO_QUEUE, asking.answered, no_ack=True)
        yield asking
    finally:
        await connection.close()


class Answer(AMQPConsumer, abstract=True):
    """Replies to requests."""

    queues = ["questions"]

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher


async def test_fr10_a_direct_reply_is_delivered_once_and_its_handler_succeeds(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """One call, one reply, no dead letter, also if `mandatory` is requested."""
    await client.declare("questions")
    calls: list[bytes] = []

    class Echo(Answer):
        async def handle(self, body: bytes, message: AMQPMessage) -> None:
            calls.append(body)
            assert message.reply_to is not None
            await self.publisher.publish(b"re: " + body, message.reply_to)
            await self.publisher.publish(b"also: " + body, message.reply_to, mandatory=True)

    recorder = Recorder()
    async with requester(url) as asking, running(url, Echo, recorder=recorder):
        await asking.ask("questions", b"one")
        await eventually(lambda: recorder.actions == ["ack"])
        await asking.ask("questions", b"two")
        await eventually(lambda: len(recorder.actions) == 2)
        await eventually(lambda: len(asking.answers) == 4)

    assert calls == [b"one", b"two"]
    assert asking.answers == [b"re: one", b"also: one", b"re: two", b"also: two"]
    assert recorder.actions == ["ack", "ack"]
    assert rabbit.queues(vhost)["questions.dlq"].ready == 0


async def test_fr10_a_reply_to_a_disconnected_client_is_lost_without_an_error(
    url: str, client: Client
) -> None:
    """The broker confirms it on every version: no client waits for this reply any more."""
    await client.declare("questions")
    async with publishing(url) as publisher:
        async with requester(url) as asking:
            await asking.ask("questions", b"one")
            reply_to = (await client.take("questions")).properties.reply_to
            assert reply_to is not None
            await asking.leave()
            after_the_channel = await publisher.publish(b"late", reply_to)
        after_the_connection = await publisher.publish(b"later", reply_to)

    assert asking.answers == []
    assert after_the_channel
    assert after_the_connection


async def test_fr10_only_direct_replies_are_not_mandatory(url: str, client: Client) -> None:
    """An exchange or a queue with a similar name is not a direct reply."""
    await client.declare_exchange("shop")
    async with publishing(url) as publisher:
        for exchange, key in [
            ("shop", f"{PSEUDO_QUEUE}.x"),
            ("", PSEUDO_QUEUE),
            ("", "amq.rabbitmq.reply"),
            ("", ""),
        ]:
            with pytest.raises(Unroutable):
                await publisher.publish(b"x", key, exchange=exchange)


async def test_fr10_a_delayed_message_is_not_mandatory(url: str, client: Client) -> None:
    """To an exchange with `x-delay`: the plugin returns what it delays. Others are mandatory."""
    await client.declare_exchange("later")
    async with publishing(url) as publisher:
        delayed = await publisher.publish(
            b"x", "nobody", exchange="later", headers={"x-delay": 5_000}
        )
        with pytest.raises(Unroutable):
            await publisher.publish(b"x", "nobody", exchange="later", headers={"delay": 5_000})
        with pytest.raises(Unroutable):
            # The default exchange delays nothing.
            await publisher.publish(b"x", "nobody", headers={"x-delay": 5_000})

    assert delayed


async def test_fr10_many_direct_replies_at_the_same_time(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """Each request gets one reply, also from a broker that confirms slowly."""
    await client.declare("questions")

    class Echo(Answer):
        async def handle(self, body: bytes, message: AMQPMessage) -> None:
            await self.publisher.publish(body, message.reply_to or "")

    recorder = Recorder()
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        requester(url) as asking,
        running(proxy.url(url), Echo, recorder=recorder),
    ):
        await asyncio.gather(*(asking.ask("questions", b"%d" % each) for each in range(50)))
        await eventually(lambda: len(recorder.actions) == 50 and len(asking.answers) == 50)

    assert sorted(asking.answers) == sorted(b"%d" % each for each in range(50))
    assert set(recorder.actions) == {"ack"}
