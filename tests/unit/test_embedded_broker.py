"""The embedded broker by way of aio-pika, and what tests can do to it."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import aiormq
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import (
    AMQPConnectionError,
    ChannelClosed,
    ChannelPreconditionFailed,
    DeliveryError,
    ProbableAuthenticationError,
    PublishError,
    QueueEmpty,
)
from aio_pika.patterns import RPC
from aiormq.exceptions import InvalidFrameError

from tests.application import Recorder, running
from tests.consumers import collector
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit.embedded import EmbeddedBroker
from workerkit.errors import ConfigurationError


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """A broker for one test; it leaves nothing behind."""
    async with EmbeddedBroker() as broker:
        yield broker
    # A client may end a few turns later.
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@pytest.fixture
async def channel(broker: EmbeddedBroker) -> AsyncIterator[AbstractChannel]:
    """A confirming channel of aio-pika."""
    async with await aio_pika.connect(broker.url) as connection, connection.channel() as channel:
        yield channel


def message(body: bytes = b"x", **properties: Any) -> aio_pika.Message:
    """Return a message to publish."""
    return aio_pika.Message(body, **properties)


# aio-pika


async def test_declare_bind_publish_get(channel: AbstractChannel) -> None:
    """A message is received with its properties and its bytes."""
    exchange = await channel.declare_exchange("e", "topic")
    queue = await channel.declare_queue("q")
    await queue.bind(exchange, "a.#")
    await exchange.publish(message(b"body", headers={"h": [1, 2.5]}, priority=3), "a.b")

    got = await queue.get()

    assert (got.body, got.headers, got.priority) == (b"body", {"h": [1, 2.5]}, 3)
    assert (got.exchange, got.routing_key, got.redelivered) == ("e", "a.b", False)
    await got.ack()
    with pytest.raises(QueueEmpty):
        await queue.get()


async def test_an_iterator_and_a_requeue(channel: AbstractChannel) -> None:
    """A rejected message is redelivered, with the flag."""
    queue = await channel.declare_queue("q")
    await channel.default_exchange.publish(message(), "q")
    seen = []
    async with queue.iterator() as iterator:
        async for got in iterator:
            seen.append(got.redelivered)
            await (got.ack() if got.redelivered else got.reject(requeue=True))
            if got.redelivered:
                break

    assert seen == [False, True]


async def test_rpc(channel: AbstractChannel) -> None:
    """The RPC pattern of aio-pika works."""

    async def double(*, number: int) -> int:
        return number * 2

    rpc = await RPC.create(channel)
    await rpc.register("double", double, auto_delete=True)

    assert await rpc.call("double", {"number": 21}) == 42
    await rpc.close()


async def test_transactions(broker: EmbeddedBroker) -> None:
    """Messages of a rolled back transaction are not published."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        await channel.declare_queue("q")
        for body in (b"kept", b"lost"):
            transaction = channel.transaction()
            await transaction.select()
            await channel.default_exchange.publish(message(body), "q")
            await (transaction.commit() if body == b"kept" else transaction.rollback())

        assert [each.body for each in broker.queue("q").messages] == [b"kept"]


async def test_returns_and_refusals(channel: AbstractChannel) -> None:
    """An unroutable message is returned; a full queue sends a negative confirm."""
    await channel.declare_queue(
        "full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
    )
    with pytest.raises(DeliveryError):
        await channel.default_exchange.publish(message(), "full")
    await channel.close()

    async with channel._connection.channel(on_return_raises=True) as strict:  # type: ignore[attr-defined]
        with pytest.raises(PublishError):
            await strict.default_exchange.publish(message(), "nowhere")


async def test_a_declaration_that_differs_closes_the_channel_only(
    broker: EmbeddedBroker, channel: AbstractChannel
) -> None:
    """The text is RabbitMQ's, and other channels of the connection stay open."""
    await channel.declare_queue("q")
    with pytest.raises(ChannelPreconditionFailed, match="inequivalent arg 'durable' for queue"):
        await channel.declare_queue("q", durable=True)

    assert broker.connections == 1


async def test_a_robust_connection_recovers(broker: EmbeddedBroker) -> None:
    """A robust connection of aio-pika restores topology and consumers."""
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def keep(incoming: AbstractIncomingMessage) -> None:
        async with incoming.process():
            got.put_nowait(incoming.body)

    async with await aio_pika.connect_robust(broker.url, reconnect_interval=0.05) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("q", auto_delete=False)
        await queue.consume(keep)
        broker.drop_connections(abrupt=True)
        await eventually(lambda: "q" in broker.queues() and broker.queue("q").consumers == 1)
        async with await aio_pika.connect(broker.url) as other:
            publisher = await other.channel()
            await publisher.default_exchange.publish(message(b"after"), "q")

        assert await asyncio.wait_for(got.get(), 5) == b"after"


async def test_logins(broker: EmbeddedBroker) -> None:
    """Users, passwords and virtual hosts are checked."""
    broker.add_user("joe", "a/b@c")
    broker.add_vhost("a/b")
    async with await aio_pika.connect(broker.url_of("a/b", user="joe", password="a/b@c")):
        pass
    with pytest.raises(ProbableAuthenticationError):
        await aio_pika.connect(broker.url_of("/", password="wrong"))
    with pytest.raises(InvalidFrameError):  # As with RabbitMQ: aiormq expects no refusal there.
        await aio_pika.connect(broker.url_of("none"))


# Hooks


async def test_dead_letters_by_the_clock(broker: EmbeddedBroker, channel: AbstractChannel) -> None:
    """Advancing the clock by an hour expires messages through two queues."""
    forward: dict[str, Any] = {"x-dead-letter-exchange": "", "x-message-ttl": 1_800_000}
    await channel.declare_queue("end")
    await channel.declare_queue("b", arguments=forward | {"x-dead-letter-routing-key": "end"})
    await channel.declare_queue("a", arguments=forward | {"x-dead-letter-routing-key": "b"})
    await channel.default_exchange.publish(message(b"x"), "a")

    broker.advance(3600)

    (dead,) = broker.queue("end").messages
    assert [death["queue"] for death in dead.headers["x-death"]] == ["b", "a"]


async def test_a_reply_that_is_lost_or_late(
    broker: EmbeddedBroker, channel: AbstractChannel
) -> None:
    """Only the next reply of that name is lost; a late one comes with the clock."""
    broker.delay_next("queue.declare-ok", 60.0)
    declaring = asyncio.ensure_future(channel.declare_queue("late"))
    await eventually(lambda: "late" in broker.queues())
    assert not declaring.done()
    broker.advance(60)
    await declaring

    broker.swallow_next("queue.declare-ok")
    with pytest.raises(TimeoutError):
        await channel.declare_queue("lost", timeout=0.1)
    with pytest.raises(ValueError, match="is not a method of AMQP, such as"):
        broker.swallow_next("queue.declared")


async def test_closing_a_channel(broker: EmbeddedBroker, channel: AbstractChannel) -> None:
    """A test can close the channels of a queue's consumers, with a reason of its choice."""
    queue = await channel.declare_queue("q")
    await queue.consume(_ignore)
    assert broker.close_channel("other") == 0

    assert broker.close_channel("q", code="NOT_FOUND", text="gone") == 1
    with pytest.raises((ChannelClosed, RuntimeError)):
        await channel.declare_queue("p")
    with pytest.raises(ValueError, match="'NO_SUCH' is not one of"):
        broker.close_channel(code="NO_SUCH")


async def _ignore(incoming: AbstractIncomingMessage) -> None:
    """Handle nothing."""


async def test_refusing_connections(broker: EmbeddedBroker) -> None:
    """New connections are refused, open ones stay, and the port stays the same."""
    async with await aio_pika.connect(broker.url) as connection:
        broker.refuse_connections(True)
        with pytest.raises(AMQPConnectionError):
            await aio_pika.connect(broker.url)
        await (await connection.channel()).declare_queue("q")
        broker.refuse_connections(False)
        async with await aio_pika.connect(broker.url):
            assert broker.connections == 2


async def test_freezing(broker: EmbeddedBroker, channel: AbstractChannel) -> None:
    """There are no replies until the broker thaws; then all are sent."""
    broker.freeze()
    declaring = asyncio.ensure_future(channel.declare_queue("q"))
    await asyncio.sleep(0.05)
    assert broker.queues() == []
    assert not declaring.done()

    broker.thaw()
    await asyncio.wait_for(declaring, 5)


async def test_a_memory_alarm_blocks_publishers(broker: EmbeddedBroker) -> None:
    """Raised by a test: a publish waits for its end."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("q")
        broker.memory_alarm(True)
        publish = asyncio.ensure_future(channel.default_exchange.publish(message(), "q"))
        await asyncio.sleep(0.05)
        assert broker.queue("q").ready == 0

        broker.memory_alarm(False)
        await asyncio.wait_for(publish, 5)


async def test_memory_has_a_ceiling() -> None:
    """A queue without consumers blocks its publishers; when it is emptied, they continue."""
    async with (
        EmbeddedBroker(max_memory=100_000) as broker,
        await aio_pika.connect(broker.url) as connection,
    ):
        channel = await connection.channel()
        await channel.declare_queue("q")
        flooding = asyncio.gather(
            *(channel.default_exchange.publish(message(bytes(10_000)), "q") for _ in range(30))
        )
        await eventually(lambda: broker.queue("q").ready >= 9)
        await asyncio.sleep(0.05)
        assert broker.queue("q").ready < 12

        await eventually(lambda: [broker.purge("q"), flooding.done()][1])
        await flooding


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ({}, "4.3."),
        ({"behaves_as": "3.10"}, "3.10."),
        ({"behaves_as": "4.0"}, "4.0."),
        ({"behaves_as": "4.3"}, "4.3."),
    ],
)
async def test_fr24_the_mode_is_the_version_that_clients_read(
    options: dict[str, Any], version: str
) -> None:
    """`connection.start` states the imitated version, and the name of the embedded broker."""
    async with EmbeddedBroker(**options) as broker, await aiormq.connect(broker.url) as connection:
        stated = connection.server_properties

        assert broker.behaves_as == options.get("behaves_as", "4.3")
    assert str(stated["version"]).startswith(version)
    assert "embedded" in str(stated["product"])


@pytest.mark.parametrize("version", ["4", "4.1", "3.13", "", "4.3.6"])
def test_fr24_an_unknown_version_is_refused(version: str) -> None:
    """The error names the version and the supported ones."""
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedBroker(behaves_as=version)

    assert repr(version) in str(caught.value)
    for known in ("3.10", "4.0", "4.3"):
        assert f'"{known}"' in str(caught.value)


def test_fr24_an_unknown_queue_type_is_refused() -> None:
    """The default type of a virtual host is one that the broker has."""
    with pytest.raises(ConfigurationError, match=r"'stream'.*'classic' and 'quorum'"):
        EmbeddedBroker().add_vhost("shop", default_queue_type="stream")


async def test_fr24_a_vhost_keeps_its_default_type_when_the_broker_stops() -> None:
    """`stop` deletes queues, but not virtual hosts."""
    broker = EmbeddedBroker()
    broker.add_vhost("shop", default_queue_type="quorum")
    for _ in range(2):
        async with broker, await aio_pika.connect(broker.url_of("shop")) as connection:
            channel = await connection.channel()
            await channel.declare_queue("q", durable=True, arguments={"x-queue-type": "quorum"})
            await channel.declare_queue("q", durable=True)


async def test_a_client_that_does_not_read_gets_no_more(broker: EmbeddedBroker) -> None:
    """A slow consumer does not fill the memory: its deliveries wait in the queue."""
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("q")
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port, limit=1)
        await _consume_without_reading(reader, writer)
        await eventually(lambda: broker.queue("q").consumers == 1)
        for _ in range(40):
            await channel.default_exchange.publish(message(bytes(500_000)), "q")

        assert broker.queue("q").ready > 10
        writer.transport.abort()
        await eventually(lambda: broker.queue("q").ready == 40)
        await queue.delete(if_empty=False)


async def _consume_without_reading(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    from pamqp import commands, frame

    writer.write(b"AMQP\x00\x00\x09\x01")
    opening: list[tuple[int, Any]] = [
        (0, commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US")),
        (0, commands.Connection.TuneOk(2047, 131072, 0)),
        (0, commands.Connection.Open("/")),
        (1, commands.Channel.Open()),
        (1, commands.Basic.Consume(queue="q", consumer_tag="slow")),
    ]
    for number, method in opening:
        writer.write(frame.marshal(method, number))
    await reader.read(1)


# Life


def test_in_a_thread() -> None:
    """Synchronous tests use the same methods; nothing is left when the block ends."""
    before = set(threading.enumerate())
    with EmbeddedBroker.in_thread() as broker:
        broker.add_vhost("v")
        with socket.create_connection(("127.0.0.1", broker.port)) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            assert client.recv(1) == b"\x01"
            assert broker.connections == 1
        assert broker.queues("v") == []
        with pytest.raises(KeyError):
            broker.queue("none")

    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.port))


async def test_it_starts_and_stops_quickly(caplog: pytest.LogCaptureFixture) -> None:
    """It starts and stops quickly, twice on the same port, and logs its purpose."""
    broker = EmbeddedBroker()
    took = []
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            began = time.perf_counter()
            await broker.start()
            took.append(time.perf_counter() - began)
            await broker.stop()

    assert min(took) < 0.5
    assert "for demos and tests only" in caplog.text


async def test_a_busy_port_and_a_public_host() -> None:
    """Both are errors that name the remedy."""
    async with EmbeddedBroker() as broker:
        with pytest.raises(ConfigurationError, match="choose another port, or 0 for any"):
            await EmbeddedBroker(broker.port).start()
    with pytest.raises(ConfigurationError, match="listens on loopback only"):
        EmbeddedBroker(host="0.0.0.0")


# workerkit itself


async def test_an_application_runs_on_it(broker: EmbeddedBroker) -> None:
    """Consumers of workerkit get messages from before and after a lost connection."""
    consumer, bodies = collector("q")
    recorder = Recorder()
    async with (
        running(broker.url, consumer, recorder=recorder) as runner,
        publishing(broker.url) as publisher,
    ):
        await publisher.publish(b"one", "q")
        await eventually(lambda: bodies == [b"one"])
        broker.drop_connections()
        await eventually(lambda: runner.ready and broker.queue("q").consumers == 1, 30.0)
        await publisher.publish(b"two", "q")
        await eventually(lambda: b"two" in bodies)

    assert broker.queue("q").ready == 0
    assert set(recorder.actions) <= {"ack", "lost"}
