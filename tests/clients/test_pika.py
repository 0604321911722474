"""pika, the client of RabbitMQ's tutorials, on the embedded broker."""

import logging
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    UnroutableError,
)

from tests.clients.broker_process import BrokerProcess

REPLY_TO = "amq.rabbitmq.reply-to"
SOON = 30.0  # For what happens within milliseconds; a bound on a busy machine.


@pytest.fixture
def channel(url: str) -> Iterator[BlockingChannel]:
    """A channel with confirms."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def ready(channel: BlockingChannel, queue: str) -> int:
    """Return the number of messages that wait in a queue."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def received(channel: BlockingChannel, queue: str, number: int) -> list[tuple[int, bool, bytes]]:
    """Consume this many messages; return tag, whether it is redelivered, and body of each."""
    found = []
    for method, _, body in channel.consume(queue, inactivity_timeout=SOON):
        assert method is not None, f"no message in {SOON} s"
        found.append((method.delivery_tag, method.redelivered, body))
        if len(found) == number:
            break
    return found


def test_a_message_keeps_its_properties(channel: BlockingChannel, name: str) -> None:
    """Properties and headers of all types arrive as they were published."""
    channel.exchange_declare(name, "topic", durable=True)
    channel.queue_declare(name, durable=True)
    channel.queue_bind(name, name, "order.#")
    headers = {"text": "é", "number": 2**40, "flag": True, "none": None, "deep": {"list": [1, "b"]}}
    sent = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        delivery_mode=2,
        priority=3,
        correlation_id="correlation",
        reply_to="replies",
        expiration="60000",
        message_id="id",
        timestamp=1_700_000_000,
        type="order.placed",
        user_id="guest",
        app_id="shop",
    )
    channel.basic_publish(name, "order.placed", b"{}", sent, mandatory=True)

    method, properties, body = channel.basic_get(name, auto_ack=True)

    assert (method.exchange, method.routing_key, body) == (name, "order.placed", b"{}")
    assert vars(properties) == vars(sent)


def test_large_bodies_are_split_into_frames(channel: BlockingChannel, name: str) -> None:
    """A body larger than a frame arrives whole, and an empty one too."""
    channel.queue_declare(name, exclusive=True)
    for body in (b"x" * 1_000_000, b""):
        channel.basic_publish("", name, body)

    bodies = [body for _, _, body in received(channel, name, 2)]

    assert bodies == [b"x" * 1_000_000, b""]


def test_heartbeats_are_negotiated(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The broker sends heartbeats at the interval that the client asked for."""
    caplog.set_level(logging.DEBUG, "pika.heartbeat")
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 1
    with pika.BlockingConnection(parameters) as connection:
        while "Received heartbeat frame" not in caplog.text:  # The test's timeout bounds it.
            connection.process_data_events(time_limit=0.1)

        assert connection.is_open


def test_unroutable_messages_are_returned(channel: BlockingChannel, url: str, name: str) -> None:
    """With confirms as an exception, without as a callback."""
    with pytest.raises(UnroutableError) as caught:
        channel.basic_publish("", name, b"lost", mandatory=True)
    assert [each.method.reply_code for each in caught.value.messages] == [312]

    returned: list[tuple[int, bytes]] = []
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        plain = connection.channel()
        plain.add_on_return_callback(
            lambda _, method, __, body: returned.append((method.reply_code, body))
        )
        plain.basic_publish("amq.topic", name, b"lost", mandatory=True)
        while not returned:
            connection.process_data_events(time_limit=0.1)

    assert returned == [(312, b"lost")]


def test_a_full_queue_refuses_a_message(channel: BlockingChannel, name: str) -> None:
    """The broker confirms with a nack."""
    refuse = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(name, exclusive=True, arguments=refuse)
    channel.basic_publish("", name, b"first")

    with pytest.raises(NackError):
        channel.basic_publish("", name, b"second")


def test_deliveries_are_settled(channel: BlockingChannel, name: str) -> None:
    """Ack, nack with requeue, reject with and without it, and several at once."""
    channel.queue_declare(name, exclusive=True)
    for body in (b"a", b"b", b"c", b"d"):
        channel.basic_publish("", name, body)
    (a, *_), (b, *_), (c, *_), (d, *_) = received(channel, name, 4)

    channel.basic_ack(a)
    channel.basic_reject(b, requeue=True)
    channel.basic_nack(c, requeue=True)
    channel.basic_reject(d, requeue=False)
    again = received(channel, name, 2)

    assert [(redelivered, body) for _, redelivered, body in again] == [(True, b"b"), (True, b"c")]
    channel.basic_ack(0, multiple=True)
    channel.cancel()
    assert ready(channel, name) == 0


def test_prefetch_bounds_unacknowledged_messages(channel: BlockingChannel, name: str) -> None:
    """The third message waits in the queue until one of two is acknowledged."""
    channel.queue_declare(name, exclusive=True)
    channel.basic_qos(prefetch_count=2)
    for body in (b"a", b"b", b"c"):
        channel.basic_publish("", name, body)
    first, _ = received(channel, name, 2)

    assert ready(channel, name) == 1
    channel.basic_ack(first[0])
    assert received(channel, name, 1)[0][2] == b"c"


def test_expired_messages_are_dead_lettered(channel: BlockingChannel, name: str) -> None:
    """With the history in `x-death`, and the routing key that the queue sets."""
    dead = f"{name}.dead"
    channel.queue_declare(dead, durable=True)
    arguments = {
        "x-message-ttl": 20,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    channel.queue_declare(name, durable=True, arguments=arguments)
    channel.basic_publish("", name, b"late")

    method, properties, body = next(iter(channel.consume(dead, inactivity_timeout=SOON)))

    assert (method.routing_key, body) == (dead, b"late")
    (death,) = properties.headers["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == (name, "expired", 1)
    assert properties.headers["x-first-death-reason"] == "expired"


def test_transactions(url: str, name: str) -> None:
    """A rollback discards publishes, a commit makes them visible."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_declare(name, exclusive=True)
        channel.tx_select()
        channel.basic_publish("", name, b"discarded")
        channel.tx_rollback()
        channel.basic_publish("", name, b"kept")
        before = ready(channel, name)
        channel.tx_commit()

        assert (before, ready(channel, name)) == (0, 1)
        assert channel.basic_get(name)[2] == b"kept"


def test_direct_reply_to(channel: BlockingChannel, url: str, name: str) -> None:
    """A reply arrives without a queue of its own."""
    channel.queue_declare(name)
    answers: list[bytes] = []
    channel.basic_consume(REPLY_TO, lambda *reply: answers.append(reply[3]), auto_ack=True)
    request = pika.BasicProperties(reply_to=REPLY_TO, correlation_id="1")
    channel.basic_publish("", name, b"request", request)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        server = connection.channel()
        _, properties, body = server.basic_get(name, auto_ack=True)
        server.basic_publish("", properties.reply_to, body.upper())

        while not answers:
            channel.connection.process_data_events(time_limit=0.1)

    assert answers == [b"REQUEST"]


def test_a_fault_closes_only_its_channel(channel: BlockingChannel, name: str) -> None:
    """The connection survives a declaration that differs."""
    channel.queue_declare(name, exclusive=True)
    other = channel.connection.channel()

    with pytest.raises(ChannelClosedByBroker) as caught:
        other.queue_declare(name, exclusive=True, arguments={"x-message-ttl": 1})

    assert caught.value.reply_code == 406
    assert ready(channel, name) == 0


def test_the_broker_cancels_the_consumer_of_a_deleted_queue(
    channel: BlockingChannel, name: str
) -> None:
    """The client negotiates it by a capability."""
    channel.queue_declare(name)
    cancelled: list[str] = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    tag = channel.basic_consume(name, lambda *_: None)
    channel.connection.channel().queue_delete(name)

    while not cancelled:
        channel.connection.process_data_events(time_limit=0.1)

    assert cancelled == [tag]


def test_a_client_reconnects_after_the_broker_closed_the_connection(
    own_broker: BrokerProcess,
) -> None:
    """It is told why, and goes on with the same parameters."""
    parameters = pika.URLParameters(own_broker.url)
    connection = pika.BlockingConnection(parameters)
    own_broker.restart()

    with pytest.raises(ConnectionClosedByBroker) as caught:
        connection.channel()

    assert caught.value.reply_code == 320
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.queue_declare("again")
        channel.basic_publish("", "again", b"again")
        assert channel.basic_get("again")[2] == b"again"
