"""D and E. Messages: bodies and headers of every kind, dead letters, publishing."""

import asyncio
import logging
from datetime import UTC, datetime
from decimal import Decimal
from struct import pack
from typing import Annotated, Any, Literal

import pytest
from pamqp.commands import Basic
from pydantic import BaseModel, Field

from tests.application import Recorder, running
from tests.client import Client, RawProperties, connected
from tests.consumers import collector
from tests.ports import free_port
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.records import errors, everything
from tests.waiting import eventually
from tests.wire_format import (
    CORRELATION_ID,
    HEADERS,
    MESSAGE_ID,
    TYPE,
    array,
    long,
    properties,
    short,
    table,
)
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    Publisher,
    PublishTimeout,
    Reject,
    RetryPolicy,
    Unroutable,
)

SECRET = "s3cr3t"


class Card(BaseModel):
    """Pays by card."""

    kind: Literal["card"]
    number: int


class Cash(BaseModel):
    """Pays in cash."""

    kind: Literal["cash"]


class Order(BaseModel, extra="forbid"):
    """An order."""

    id: int
    note: str = ""
    amounts: dict[str, int] = {}
    payment: Annotated[Card | Cash, Field(discriminator="kind")] | None = None


def _order_consumer(**options: Any) -> type[AMQPConsumer]:
    async def handle(self: AMQPConsumer, order: Order) -> None:
        """A valid order."""

    return type("Orders", (AMQPConsumer,), {"queues": ["orders"], "handle": handle, **options})


# D1: bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        SECRET.encode(),
        b'{"id": "' + SECRET.encode(),
        b'{"id": "s3cr3t"}',
        b'{"id": 1, "note": "\xff s3cr3t"}',
        '{"id": 1, "note": "s3cr3t"}'.encode("utf-16"),
        b'["s3cr3t"]',
        b'{"id": 1, "payment": {"kind": "s3cr3t"}}',
        b'{"id": 1, "s3cr3t": 1}',
        b'{"id": 1, "amounts": {"s3cr3t": "many"}}',
        b"[" * 100_000,
    ],
    ids=[
        "empty",
        "NUL",
        "not JSON",
        "cut off",
        "wrong type",
        "not UTF-8",
        "UTF-16",
        "wrong shape",
        "wrong tag",
        "unknown key",
        "wrong value",
        "deep",
    ],
)
async def test_d1_an_invalid_body_is_dead_lettered_at_once(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
) -> None:
    """No retry; the dead letter has body and evidence, and the body is not in the log."""
    caplog.set_level(logging.DEBUG, "workerkit")
    recorder = Recorder()
    sent = Basic.Properties(
        message_id="m-1", correlation_id="c-1", priority=3, headers={"trace": "t-1"}
    )
    async with running(url, _order_consumer(), recorder=recorder):
        await client.send("orders", body, properties=sent)
        await client.send("orders", b'{"id": 1}')
        await eventually(lambda: len(recorder.settled) == 2)
        letter = await client.take("orders.dlq")
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        ready = rabbit.queues(vhost)["orders"].ready

    assert sorted(recorder.actions) == ["ack", "dead_letter"]
    assert ready == 0
    assert letter.body == body
    assert letter.properties.message_id == "m-1"
    assert letter.properties.correlation_id == "c-1"
    assert letter.properties.priority == 3
    assert letter.original_headers == {"trace": "t-1"}
    assert SECRET not in repr(letter.headers)
    assert SECRET not in everything(caplog)


async def test_d1_a_dead_letter_has_the_evidence(url: str, client: Client) -> None:
    """Its headers have reason, consumer, origin, attempt, times and host."""
    async with running(url, _order_consumer()):
        before = datetime.now(UTC)
        await client.send("orders", b'{"id": "x"}')
        evidence = (await client.take("orders.dlq")).evidence

    assert set(evidence) == {
        "reason",
        "error",
        "traceback",
        "consumer",
        "queue",
        "exchange",
        "routing-key",
        "attempt",
        "first-failed-at",
        "failed-at",
        "host",
        "version",
    }
    assert evidence["reason"].startswith("id: Input should be a valid integer")
    assert evidence["error"] == "InvalidBody"
    assert evidence["consumer"] == "Orders"
    assert evidence["queue"] == evidence["routing-key"] == "orders"
    assert evidence["exchange"] == ""
    assert evidence["attempt"] == 1
    failed_at = datetime.fromisoformat(evidence["failed-at"])
    assert abs((failed_at - before).total_seconds()) < 10.0
    assert evidence["first-failed-at"] == evidence["failed-at"]


async def test_d1_text_that_is_not_utf_8_is_dead_lettered(url: str, client: Client) -> None:
    """A `handle` that takes `str` is called with text only."""
    handled: list[str] = []

    class Text(AMQPConsumer):
        queues = ["texts"]

        async def handle(self, body: str) -> None:
            handled.append(body)

    async with running(url, Text):
        await client.send("texts", b"\xff\xfe", "grün".encode())
        letter = await client.take("texts.dlq")
        await eventually(lambda: handled == ["grün"])

    assert letter.body == b"\xff\xfe"
    assert "UTF-8" in letter.evidence["reason"]


async def test_d1_an_invalid_body_goes_to_the_queues_own_dead_letter_exchange(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """With `on_invalid = REJECT` the broker dead-letters it; no `.dlq` is declared."""
    await client.declare("dead")
    await client.declare("orders", x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    recorder = Recorder()
    async with running(url, _order_consumer(on_invalid=Action.REJECT), recorder=recorder):
        await client.send("orders", b"not JSON")
        letter = await client.take("dead")
        queues = set(rabbit.queues(vhost))

    assert recorder.actions == ["reject"]
    assert letter.body == b"not JSON"
    assert letter.headers["x-death"][0]["reason"] == "rejected"
    assert queues == {"orders", "dead"}


async def test_d1_a_thousand_invalid_bodies_are_dead_lettered_once(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Each is decoded once, and the valid ones between them are handled."""
    recorder = Recorder()
    async with running(url, _order_consumer(), recorder=recorder):
        await client.send("orders", *[b"bad", b'{"id": 1}'] * 500)
        await eventually(lambda: len(recorder.settled) == 1_000)
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)
        queues = rabbit.queues(vhost)

    assert recorder.actions.count("dead_letter") == recorder.actions.count("ack") == 500
    assert (queues["orders"].ready, queues["orders.dlq"].ready) == (0, 500)


# D1: headers and properties


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"V", None),
        (b"t\x01", True),
        (b"b\x85", -123),
        (b"B\xff", 255),
        (b"s" + pack(">h", -300), -300),
        (b"u" + pack(">H", 65_000), 65_000),
        (b"I" + pack(">i", -70_000), -70_000),
        (b"i" + pack(">I", 4_000_000_000), 4_000_000_000),
        (b"l" + pack(">q", -(2**60)), -(2**60)),
        (b"f" + pack(">f", 1.5), 1.5),
        (b"d" + pack(">d", 0.1), 0.1),
        (b"d" + pack(">d", 1e300), 1e300),
        (b"D\x02" + pack(">i", -12_345), Decimal("-123.45")),
        (b"D\xff" + pack(">i", 1), Decimal("1E-255")),
        (b"T" + pack(">Q", 1_700_000_000), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (b"x" + pack(">I", 3) + b"\xff\0\x01", bytearray(b"\xff\0\x01")),
        (long("grün".encode()), "grün"),
        (long(b"\xff\xfe"), b"\xff\xfe"),
        (array(b"V", b"t\0", array(long(b"x"))), [None, False, ["x"]]),
        (b"F" + table((b"a", b"F" + table((b"b", b"V")))), {"a": {"b": None}}),
    ],
    ids=lambda value: None if isinstance(value, bytes) else repr(value),
)
async def test_d1_headers_of_every_type_survive(
    url: str, client: Client, value: bytes, expected: Any
) -> None:
    """The dead letter has values of all types of AMQP, unchanged."""
    recorder = Recorder()
    sent = RawProperties(properties(HEADERS, table((b"h", value))))
    async with running(url, _order_consumer(), recorder=recorder):
        await client.send("orders", b"bad", properties=sent)
        letter = await client.take("orders.dlq")
        await eventually(lambda: recorder.settled)  # when it is confirmed
        await client.send("orders", b'{"id": 1}')
        await eventually(lambda: recorder.actions == ["dead_letter", "ack"])

    assert letter.original_headers == {"h": expected}


_HOSTILE = {
    "correlation id": properties(CORRELATION_ID, short(b"\xff" * 255)),
    "message id": properties(MESSAGE_ID, short(b"\xff\xfe" * 100)),
    "type": properties(TYPE, short(b"\x80" * 255)),
    "name": properties(HEADERS, table((b"\xff" * 128, b"V"))),
    "long name": properties(HEADERS, table((b"h" * 128, b"V"))),
    "timestamp": properties(HEADERS, table((b"h", b"T" + b"\xff" * 8))),
    "array": properties(HEADERS, table((b"h", array(b"V" * 5_000)))),
    "twice": properties(HEADERS, table((b"h", b"V"), (b"h", b"t\x01"))),
    "attempt": properties(HEADERS, table((b"x-workerkit-attempt", long(b"many")))),
    "negative attempt": properties(HEADERS, table((b"x-workerkit-attempt", b"b\xff"))),
    "first failure": properties(HEADERS, table((b"x-workerkit-first-failed-at", array(b"V")))),
    "time of failure": properties(
        HEADERS, table((b"x-workerkit-first-failed-at", b"T" + b"\xff" * 8))
    ),
    "long time of failure": properties(
        HEADERS, table((b"x-workerkit-first-failed-at", long(b"9" * 60_000)))
    ),
    "delivery count": properties(HEADERS, table((b"x-delivery-count", b"t\x01"))),
}


@pytest.mark.parametrize("raw", _HOSTILE.values(), ids=list(_HOSTILE))
async def test_d1_hostile_properties_affect_no_other_message(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, raw: bytes
) -> None:
    """The message is dead-lettered unchanged, and the next one is handled."""
    recorder = Recorder()
    # Other clients could not decode these dead letters.
    undertaker, buried = collector("orders.dlq", name="Undertaker", on_invalid=Action.REJECT)
    async with running(url, _order_consumer(), undertaker, recorder=recorder):
        await client.send("orders", b"bad", properties=RawProperties(raw))
        await eventually(lambda: buried == [b"bad"])
        await client.send("orders", b'{"id": 1}')
        await eventually(lambda: len(recorder.settled) == 3)
        queues = rabbit.queues(vhost)

    orders = sorted(each.action for each in recorder.settled if each.consumer == "Orders")
    dead = next(each.delivery for each in recorder.settled if each.consumer == "Undertaker")
    assert isinstance(dead, AMQPMessage)
    assert orders == ["ack", "dead_letter"]
    assert (queues["orders"].ready, queues["orders.dlq"].ready) == (0, 0)
    assert dead.headers["x-workerkit-queue"] == "orders"
    assert dead.headers["x-workerkit-attempt"] == 1


_PAST = properties(
    HEADERS,
    table(
        (b"x-workerkit-first-failed-at", b"T" + b"\xff" * 8),
        (b"x-workerkit-attempt", b"T" + b"\xff" * 8),
    ),
)


async def test_d1_headers_of_workerkit_from_a_sender(url: str, client: Client) -> None:
    """A retry replaces headers of workerkit that the sender has set."""
    seen: list[int] = []

    class Failing(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy(delays=(0, 0.1))

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(message.attempt)
            if len(seen) < 3:
                raise ValueError("not yet")

    recorder = Recorder()
    async with running(url, Failing, recorder=recorder):
        await client.send("orders", b"bad", properties=RawProperties(_PAST))
        await eventually(lambda: recorder.actions[-1:] == ["ack"])

    assert seen == [1, 2, 3]


async def test_d1_handlers_read_hostile_headers_without_an_error(url: str, client: Client) -> None:
    """Reading a property of a message never raises."""
    seen: list[tuple[Any, ...]] = []

    class Reader(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append((message.headers, message.message_id, message.correlation_id))
            seen.append((message.type, message.priority, message.timestamp, message.attempt))
            seen.append((repr(message), message.exchange, message.routing_key))

    recorder = Recorder()
    flags = HEADERS | CORRELATION_ID | MESSAGE_ID | TYPE
    raw = properties(
        flags, table((b"\xff", b"T" + b"\xff" * 8)), short(b"\xff"), short(b"\xfe"), short(b"\x80")
    )
    async with running(url, Reader, recorder=recorder):
        await client.send("orders", b"", properties=RawProperties(raw))
        await eventually(lambda: recorder.settled)

    assert recorder.actions == ["ack"]
    assert len(seen) == 3


async def test_d1_properties_that_would_lose_the_copy_are_omitted(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The expiration would drop the dead letter; the user id would close the channel."""
    rabbit.add_user(f"sender-{vhost}", "x", vhost)
    recorder = Recorder()
    sent = Basic.Properties(user_id="guest", expiration="60000", delivery_mode=1)
    consumer = _order_consumer()
    own = rabbit.url(vhost, f"sender-{vhost}", "x")
    async with running(own, consumer, recorder=recorder):
        await client.send("orders", b"bad", properties=sent)
        letter = await client.take("orders.dlq")

    assert letter.properties.expiration is None
    assert letter.properties.user_id is None
    assert letter.properties.delivery_mode == 2
    assert recorder.actions == ["dead_letter"]


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_d1_a_dead_letter_is_not_sent_to_cc_and_bcc(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, header: str
) -> None:
    """The destinations in `CC` and `BCC` do not get the dead letter."""
    recorder = Recorder()
    sent = Basic.Properties(headers={header: ["orders", "audit"]})
    await client.declare("audit")
    async with running(url, _order_consumer(), recorder=recorder):
        await client.send("orders", b"bad", properties=sent)
        await eventually(lambda: recorder.settled)
        until = asyncio.get_running_loop().time() + 0.5
        await eventually(
            lambda: asyncio.get_running_loop().time() > until or len(recorder.settled) > 50
        )
        queues = rabbit.queues(vhost)

    assert recorder.actions == ["dead_letter"]
    assert queues["orders.dlq"].ready == 1
    assert queues["audit"].ready == 1


async def test_d7_headers_without_room_for_the_evidence(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A message whose headers nearly fill a frame is dead-lettered as well."""
    recorder = Recorder()
    sent = Basic.Properties(headers={"large": "x" * 125_000})

    class Failing(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes) -> None:
            raise KeyError("e" * 1_000_000)

    async with running(url, Failing, recorder=recorder):
        await client.send("orders", b"bad", properties=sent)
        letter = await client.take("orders.dlq")

    assert letter.body == b"bad"
    assert letter.evidence["error"] == "KeyError"


# Reasons


async def test_d1_a_reject_keeps_its_reason(url: str, client: Client) -> None:
    """`raise Reject("why")` dead-letters with the reason "why" and no traceback."""

    class Rejecting(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            raise Reject("the shop is closed")

    async with running(url, Rejecting):
        await client.send("orders", b"a")
        letter = await client.take("orders.dlq")

    assert letter.evidence["reason"] == "the shop is closed"
    assert "traceback" not in letter.evidence


async def test_d1_a_reject_is_dead_lettered_even_if_invalid_bodies_are_not(
    url: str, client: Client
) -> None:
    """With `on_invalid = REJECT` a handler can still dead-letter with a reason."""

    class Rejecting(AMQPConsumer):
        queues = ["orders"]
        on_invalid = Action.REJECT

        async def handle(self, body: bytes) -> None:
            raise Reject("the shop is closed")

    recorder = Recorder()
    async with running(url, Rejecting, recorder=recorder):
        await client.send("orders", b"a")
        await eventually(lambda: recorder.settled)

    assert recorder.actions == ["dead_letter"]


async def test_d7_an_exception_text_of_a_megabyte_is_truncated_in_the_headers(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The headers have its beginning and end and fit into a frame; the log has all of it."""

    class Verbose(AMQPConsumer):
        queues = ["orders"]
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes) -> None:
            raise RuntimeError("begin " + "ü" * 500_000 + " end")

    async with running(url, Verbose):
        await client.send("orders", b"a", b"b")
        evidence = (await client.take("orders.dlq")).evidence
        await client.take("orders.dlq")

    assert evidence["error"] == "RuntimeError"
    assert evidence["reason"].startswith("begin üü")
    assert evidence["reason"].endswith("üü end")
    assert len(evidence["reason"].encode()) < 3_000
    assert "in handle" in evidence["traceback"]
    assert len(evidence["traceback"].encode()) < 20_000


class _Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error",
    [_Silent(), KeyError("\ud800"), RuntimeError(b"\xff")],
    ids=["raises", "surrogate", "bytes"],
)
async def test_d7_exceptions_whose_text_cannot_be_read(
    url: str, client: Client, error: Exception
) -> None:
    """An exception whose text cannot be read does not stop the consumer."""
    recorder = Recorder()

    class Failing(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        on_exception = Action.DEAD_LETTER

        async def handle(self, body: bytes) -> None:
            if body == b"bad":
                raise error

    async with running(url, Failing, recorder=recorder, shutdown_grace=0.5):
        await client.send("orders", b"bad", b"fine")
        await eventually(lambda: recorder.actions == ["dead_letter", "ack"])
        letter = await client.take("orders.dlq")

    assert letter.evidence["error"] == type(error).__qualname__


# E: publishing


async def test_e1_an_unroutable_message_is_a_separate_error(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a queue or without the exchange it is `Unroutable`; the next publish works."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        with pytest.raises(Unroutable, match="nobody"):
            await publisher.publish(b"a", "nobody")
        with pytest.raises(Unroutable, match="nowhere"):
            await publisher.publish(b"a", "orders", exchange="nowhere")
        await publisher.publish(b"a", "nobody", mandatory=False)
        await publisher.publish(b"b", "orders")

    assert (await client.take("orders")).body == b"b"
    assert errors(caplog) == []


async def test_e1_of_concurrent_publishes_only_unroutable_ones_fail(
    url: str, client: Client
) -> None:
    """Publishes with the same id to several queues: only the one without a queue fails."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        keys = ["orders", "nobody"] * 50
        results = await asyncio.gather(
            *(publisher.publish(b"x", key, message_id="same") for key in keys),
            return_exceptions=True,
        )

    assert [isinstance(each, Unroutable) for each in results] == [False, True] * 50


async def test_e1_an_exchange_that_was_deleted_is_missing_too(url: str, client: Client) -> None:
    """The publisher has used it before: nothing was published, and the next publish works."""
    await client.declare("orders")
    await client.declare_exchange("shop", "orders")
    async with publishing(url) as publisher:
        await publisher.publish(b"a", "orders", exchange="shop")
        await client.delete_exchange("shop")
        with pytest.raises(Unroutable, match="shop"):
            await publisher.publish(b"b", "orders", exchange="shop")
        await publisher.publish(b"c", "orders")

    assert (await client.take("orders")).body == b"a"
    assert (await client.take("orders")).body == b"c"


async def test_e1_without_a_broker_a_publish_fails_at_its_deadline() -> None:
    """Nothing was sent, and the error has the reason why there is no connection."""
    loop = asyncio.get_running_loop()
    async with publishing(f"amqp://127.0.0.1:{free_port()}/") as publisher:
        began = loop.time()
        with pytest.raises(PublishTimeout, match=r"not sent within 0\.3 s"):
            await publisher.publish(b"a", "orders", timeout=0.3)

    assert 0.3 <= loop.time() - began < 5.0


async def test_e1_a_message_is_persistent_and_has_an_id(url: str, client: Client) -> None:
    """A model is sent as JSON; `publish` returns its id, which the caller may set."""
    await client.declare("orders")
    async with publishing(url) as publisher:
        made = await publisher.publish(
            Order(id=7), "orders", headers={"trace": "t"}, correlation_id="c", priority=2
        )
        given = await publisher.publish("grün", "orders", message_id="mine", expiration=60.0)
    first, second = await client.take("orders"), await client.take("orders")

    assert Order.model_validate_json(first.body) == Order(id=7)
    assert first.properties.message_id == made
    assert first.properties.delivery_mode == 2
    assert first.properties.content_type == "application/json"
    assert first.properties.correlation_id == "c"
    assert first.properties.priority == 2
    assert first.headers == {"trace": "t"}
    assert given == second.properties.message_id == "mine"
    assert second.body.decode() == "grün"
    assert second.properties.expiration == "60000"


async def test_c2_a_publish_to_a_missing_exchange_does_not_affect_consuming(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """It is an error in the handler; channel and connection of the consumer stay open."""
    recorder = Recorder()
    caught: list[str] = []

    async with publishing(url) as publisher:

        class Forwarding(AMQPConsumer):
            queues = ["orders"]
            concurrency = 1

            async def handle(self, body: bytes) -> None:
                try:
                    await publisher.publish(body, "x", exchange="nowhere")
                except Unroutable as error:
                    caught.append(str(error))

        async with running(url, Forwarding, recorder=recorder):
            before = rabbit.consumers(vhost)
            await client.send("orders", b"a", b"b")
            await eventually(lambda: recorder.actions == ["ack", "ack"])
            after = rabbit.consumers(vhost)

    assert len(caught) == 2
    assert after == before
    assert [each.delivery.raw for each in recorder.settled] == [b"a", b"b"]


async def test_e1_the_container_injects_the_publisher(url: str, client: Client) -> None:
    """A parameter named `publisher` gets it, and its messages arrive."""
    await client.declare("copies")

    class Copying(AMQPConsumer):
        queues = ["orders"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, body: bytes) -> None:
            await self.publisher.publish(body, "copies")

    async with running(url, Copying):
        await client.send("orders", b"a")
        letter = await client.take("copies")

    assert letter.body == b"a"


# The connections of one process


async def test_e1_several_virtual_hosts_and_connections_in_one_process(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Consumers select their connection and their virtual host."""
    other = f"{vhost}/other"
    rabbit.add_vhost(other)
    try:
        here, here_bodies = collector("q", name="Here")
        there, there_bodies = collector("q", name="There", vhost=other)
        named, named_bodies = collector("named", name="Named", connection="Secondary")
        secondary = {"secondary": {"url": rabbit.url(other)}}
        async with running(url, here, there, named, amqp=secondary):
            async with connected(rabbit.url(other)) as client_there:
                await client.send("q", b"here")
                await client_there.send("q", b"there")
                await client_there.send("named", b"named")
            await eventually(lambda: here_bodies and there_bodies and named_bodies)
    finally:
        rabbit.delete_vhost(other)

    assert (here_bodies, there_bodies, named_bodies) == ([b"here"], [b"there"], [b"named"])
