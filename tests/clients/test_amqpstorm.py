"""AMQPStorm, a client with a thread for each connection, on the embedded broker."""

from collections.abc import Callable, Iterator

import pytest
from amqpstorm import AMQPChannelError, AMQPConnectionError, AMQPMessageError, Channel, Message
from amqpstorm import UriConnection as Connection

from tests.clients.broker_process import BrokerProcess
from tests.waiting import eventually

REPLY_TO = "amq.rabbitmq.reply-to"


def address(url: str) -> str:
    """Return the address as AMQPStorm reads it: it needs a virtual host, and `/` quoted."""
    return f"{url.rstrip('/')}/%2F?heartbeat=10"


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection to the shared broker."""
    with Connection(address(url)) as connection:
        yield connection


@pytest.fixture
def channel(connection: Connection) -> Iterator[Channel]:
    """A channel with confirms."""
    with connection.channel() as channel:
        channel.confirm_deliveries()
        yield channel


def ready(channel: Channel, queue: str) -> int:
    """Return the number of messages that wait in a queue."""
    return int(channel.queue.declare(queue, passive=True)["message_count"])


async def received(channel: Channel, queue: str, number: int) -> list[Message]:
    """Consume this many messages."""
    tag = channel.basic.consume(queue=queue)
    found: list[Message] = []

    def enough() -> bool:
        found.extend(channel.build_inbound_messages(break_on_empty=True, empty_timeout=0))
        return len(found) >= number

    await eventually(enough, what=f"{number} messages of {queue}")
    channel.basic.cancel(tag)
    return found


async def test_a_message_keeps_its_properties(channel: Channel, name: str) -> None:
    """Through an exchange bound to an exchange, with confirms."""
    channel.exchange.declare(name, "headers", durable=True)
    channel.exchange.declare(f"{name}.next", "fanout")
    channel.exchange.bind(destination=f"{name}.next", source=name, arguments={"kind": "order"})
    channel.queue.declare(name, durable=True)
    channel.queue.bind(name, f"{name}.next")
    properties = {
        "headers": {"kind": "order", "deep": {"list": [1, "b", None]}},
        "content_type": "text/plain",
        "correlation_id": "correlation",
        "delivery_mode": 2,
        "priority": 4,
        "message_type": "order.placed",
        "message_id": "id",
    }

    confirmed = channel.basic.publish("hello", "any", name, properties, mandatory=True)
    message = channel.basic.get(name)

    assert confirmed is True
    assert message is not None
    assert (message.body, message.method["exchange"]) == ("hello", name)
    assert {key: message.properties[key] for key in properties} == properties
    message.ack()


async def test_unroutable_messages_are_returned(channel: Channel, name: str) -> None:
    """With confirms as an exception."""
    with pytest.raises(AMQPMessageError) as caught:
        channel.basic.publish("lost", name, mandatory=True)

    assert caught.value.error_code == 312


async def test_a_full_queue_refuses_a_message(channel: Channel, name: str) -> None:
    """The broker confirms with a nack, for which the client returns False."""
    refuse = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue.declare(name, exclusive=True, arguments=refuse)

    assert [channel.basic.publish(body, name) for body in ("first", "second")] == [True, False]


async def test_deliveries_are_settled(channel: Channel, name: str) -> None:
    """Ack, nack with requeue, and reject with and without it."""
    channel.queue.declare(name, exclusive=True)
    for body in ("a", "b", "c", "d"):
        channel.basic.publish(body, name)
    a, b, c, d = await received(channel, name, 4)

    a.ack()
    b.reject(requeue=True)
    c.nack(requeue=True)
    d.reject(requeue=False)
    again = await received(channel, name, 2)

    assert [(each.redelivered, each.body) for each in again] == [(True, "b"), (True, "c")]
    for each in again:
        each.ack()
    assert ready(channel, name) == 0


async def test_prefetch_bounds_unacknowledged_messages(channel: Channel, name: str) -> None:
    """Also the one for the whole channel."""
    channel.queue.declare(name, exclusive=True)
    channel.basic.qos(prefetch_count=2, global_=True)
    for body in ("a", "b", "c"):
        channel.basic.publish(body, name)

    first, second = await received(channel, name, 2)

    assert ready(channel, name) == 1
    first.ack()
    second.ack()
    assert [each.body for each in await received(channel, name, 1)] == ["c"]


async def test_rejected_messages_are_dead_lettered(channel: Channel, name: str) -> None:
    """And expired ones, by an expiration of the message."""
    dead = f"{name}.dead"
    channel.queue.declare(dead)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    channel.queue.declare(name, arguments=arguments)
    channel.basic.publish("rejected", name)
    (message,) = await received(channel, name, 1)
    message.reject(requeue=False)
    channel.basic.publish("expired", name, properties={"expiration": "20"})

    found = await received(channel, dead, 2)

    deaths = [(each.body, each.properties["headers"]["x-death"][0]["reason"]) for each in found]
    assert deaths == [("rejected", "rejected"), ("expired", "expired")]


async def test_transactions(connection: Connection, name: str) -> None:
    """A rollback discards publishes, a commit makes them visible."""
    with connection.channel() as channel:
        channel.queue.declare(name, exclusive=True)
        with channel.tx:
            channel.basic.publish("discarded", name)
            channel.tx.rollback()
        with channel.tx:
            channel.basic.publish("kept", name)
            before = ready(channel, name)

        message = channel.basic.get(name)
        assert message is not None
        assert (before, message.body, ready(channel, name)) == (0, "kept", 0)


async def test_direct_reply_to(channel: Channel, connection: Connection, name: str) -> None:
    """A reply arrives without a queue of its own."""
    channel.queue.declare(name)
    answers: list[str] = []
    channel.basic.consume(lambda reply: answers.append(reply.body), REPLY_TO, no_ack=True)
    request = {"reply_to": REPLY_TO, "correlation_id": "1"}
    channel.basic.publish("request", name, properties=request)
    with connection.channel() as server:
        message = server.basic.get(name, no_ack=True)
        assert message is not None
        server.basic.publish(message.body.upper(), message.properties["reply_to"])

        def answered() -> bool:
            channel.process_data_events()
            return bool(answers)

        await eventually(answered)
    assert answers == ["REQUEST"]


async def test_a_fault_closes_only_its_channel(connection: Connection, name: str) -> None:
    """The connection survives a queue that does not exist."""
    with connection.channel() as channel, pytest.raises(AMQPChannelError) as caught:
        channel.queue.declare(name, passive=True)

    assert caught.value.error_code == 404
    with connection.channel() as channel:
        channel.queue.declare(name, exclusive=True)


async def test_a_client_reconnects_after_the_broker_closed_the_connection(
    own_broker: BrokerProcess,
) -> None:
    """A consumer's loop fails with the broker's reason; opened again, the connection works."""
    connection = Connection(address(own_broker.url))
    own_broker.restart()

    await eventually(fails(connection), what="the client notices")
    with pytest.raises(AMQPConnectionError) as caught:
        connection.check_for_errors()

    assert caught.value.error_code == 320
    connection.open()
    with connection, connection.channel() as channel:
        channel.queue.declare("again")
        channel.basic.publish("again", "again")
        message = channel.basic.get("again")
        assert message is not None
        assert message.body == "again"


def fails(connection: Connection) -> Callable[[], bool]:
    """Return a condition that holds once the client knows that its connection is closed."""
    return lambda: bool(connection.exceptions)
