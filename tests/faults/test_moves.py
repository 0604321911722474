"""A4, A5, D5, D8. Retry and dead-letter queues that are missing, and what copies keep."""

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client, RawProperties, connected
from tests.consumers import collector
from tests.faults.test_permissions import named, user
from tests.rabbit import PrivateRabbit, QueueState, missing
from tests.records import errors, fields
from tests.waiting import eventually
from tests.wire_format import HEADERS, array, long, properties, table
from workerkit import Action, AMQPConsumer, AMQPMessage, Queue, Retry, RetryPolicy

STAYS = "message could not be copied and stays in its queue"
RETRIES = {"x_message_ttl": 200, "x_dead_letter_exchange": ""}


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbit]:
    """A separate node, which may run out of memory."""
    assert missing() is None
    with PrivateRabbit() as node:
        yield node


def failing(
    calls: list[bytes], until: int, queue: str | Queue = "orders", **options: Any
) -> type[AMQPConsumer]:
    """Return a consumer that fails until an attempt."""

    async def handle(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        calls.append(message.body)
        if message.body == b"bad" and message.attempt < until:
            raise KeyError("no")

    attributes = {"queues": [queue], "handle": handle, **options}
    return type("Orders", (AMQPConsumer,), attributes)


# D5


@pytest.mark.parametrize("fault", ["deleted", "full"])
@pytest.mark.parametrize("move", ["retry", "dead letter"])
async def test_d5_a_message_that_cannot_be_copied_stays(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    move: str,
) -> None:
    """It is requeued after a pause, with an ERROR each time, and copied once that is possible."""
    loop = asyncio.get_running_loop()
    calls: list[bytes] = []
    target = "orders.retry.200ms" if move == "retry" else "orders.dlq"
    arguments: dict[str, Any] = {}
    if move == "retry":
        arguments = {**RETRIES, "x_dead_letter_routing_key": "orders"}
    full = {"x_max_length": 0, "x_overflow": "reject-publish"}
    options: dict[str, Any] = {"declare": "never", "retry": RetryPolicy((0.2,), jitter=0)}
    if move == "dead letter":
        options = {"declare": "never", "on_exception": Action.DEAD_LETTER}
    recorder = Recorder()
    await client.declare("orders", "orders.dlq")
    await client.declare("orders.retry.200ms", **RETRIES, x_dead_letter_routing_key="orders")
    await client.delete(target)
    await client.declare(target, **arguments, **(full if fault == "full" else {}))
    async with running(url, failing(calls, 2, **options), recorder=recorder):
        if fault == "deleted":
            await client.delete(target)
        began = loop.time()
        await client.send("orders", b"bad", b"fine")
        await eventually(lambda: calls.count(b"bad") >= 2)
        await eventually(lambda: b"fine" in calls)
        seconds = loop.time() - began
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 1)
        await eventually(lambda: len(fields(caplog, STAYS)) >= 2)
        if fault == "full":
            await client.delete(target)
        await client.declare(target, **arguments)
        if move == "retry":
            await eventually(lambda: recorder.actions[-1:] == ["ack"] and calls[-1] == b"bad")
        else:
            assert (await client.take("orders.dlq")).body == b"bad"
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))
        dead = rabbit.queues(vhost)["orders.dlq"].ready

    assert calls.count(b"bad") <= 5
    assert seconds >= 0.9
    assert len(fields(caplog, STAYS)) >= 2
    assert errors(caplog) == [STAYS] * len(errors(caplog))
    assert dead == 0


@pytest.mark.parametrize("policy", [None, RetryPolicy((0.2,))], ids=["dead letter", "retry"])
async def test_d5_a_delivery_limit_does_not_lose_a_message_that_cannot_be_copied(
    url: str,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    policy: RetryPolicy | None,
) -> None:
    """A quorum queue drops messages that are requeued too often: the message is not requeued."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 0.2)
    loop = asyncio.get_running_loop()
    calls: list[bytes] = []
    limited = Queue("orders", "quorum", delivery_limit=2)
    orders = failing(calls, 9, limited, on_exception=Action.DEAD_LETTER, retry=policy)
    async with running(url, orders):
        await client.delete("orders.dlq")
        if policy is not None:
            await client.delete("orders.retry.200ms")
        await client.send("orders", b"bad")
        # Pauses of 0.2, 0.4 and 0.8 s; the third requeue would drop it.
        until = loop.time() + 4.0
        await eventually(lambda: len(fields(caplog, STAYS)) > 4 or loop.time() > until)
        await client.declare("orders.dlq")
        letter = await client.take("orders.dlq")

    assert letter.body == b"bad"


async def test_d5_a_successful_copy_resets_the_pauses(
    url: str, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second outage of the dead-letter queue starts with the shortest pause again."""
    monkeypatch.setattr("workerkit.amqp.requeue._FIRST_PAUSE", 0.2)
    loop = asyncio.get_running_loop()
    calls: list[bytes] = []
    async with running(url, failing(calls, 9, on_exception=Action.DEAD_LETTER)):
        await client.delete("orders.dlq")
        await client.send("orders", b"bad")
        # Pauses of 0.2, 0.4, 0.8 and 1.6 s: the next one would be 3.2 s.
        await eventually(lambda: len(fields(caplog, STAYS)) == 4)
        await client.declare("orders.dlq")
        await client.take("orders.dlq")
        await client.delete("orders.dlq")
        calls.clear()
        began = loop.time()
        await client.send("orders", b"bad")
        await eventually(lambda: len(calls) >= 2)
        seconds = loop.time() - began
        await client.declare("orders.dlq")
        await client.take("orders.dlq")

    assert seconds < 3.2


async def test_d5_failed_messages_wait_during_a_memory_alarm(node: PrivateRabbit) -> None:
    """While the broker blocks publishers, failed messages wait and others are handled."""
    gate = asyncio.Event()
    recorder = Recorder()

    class Orders(AMQPConsumer):
        queues = ["orders"]
        concurrency = 4
        retry = RetryPolicy((0.2,))

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            if message.body == b"first":
                raise Retry(after=0.2) if message.attempt == 1 else KeyError("no")
            await gate.wait()
            if message.body == b"bad" and message.attempt == 1:
                raise KeyError("no")

    async with connected(node.url()) as client, running(node.url(), Orders, recorder=recorder):
        # RabbitMQ reports the alarm only to connections that have published.
        await client.send("orders", b"first")
        await client.take("orders.dlq")
        # A moment after the dead letter: when it is confirmed.
        await eventually(lambda: recorder.actions[-1:] == ["dead_letter"])
        recorder.settled.clear()
        await client.send("orders", b"bad", b"fine")
        await eventually(lambda: node.queues()["orders"].unacked == 2)
        node.memory_alarm(on=True)
        gate.set()
        await eventually(lambda: b"fine" in [each.delivery.raw for each in recorder.settled])
        node.memory_alarm(on=False)
        await eventually(lambda: sorted(recorder.actions) == ["ack", "ack", "retry"], 20.0)
        await eventually(lambda: node.queues()["orders"] == QueueState(0, 0, 1))
        dead = node.queues()["orders.dlq"].ready

    assert dead == 0


async def test_d5_a_retry_queue_that_may_not_be_declared(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """`Retry` without a policy needs undeclared queues: the message is requeued after pauses."""
    calls: list[float] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        declare = "never"

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            calls.append(asyncio.get_running_loop().time())
            if message.attempt == 1:
                raise Retry(after=1)

    await client.declare("orders", "orders.dlq")
    async with running(url, Orders):
        await client.send("orders", b"a")
        await eventually(lambda: len(fields(caplog, STAYS)) >= 2)
        await client.declare(
            "orders.retry.1s",
            x_message_ttl=1000,
            x_dead_letter_exchange="",
            x_dead_letter_routing_key="orders",
        )
        # It was copied in the end, and handled in its second attempt.
        await eventually(lambda: len(calls) == len(fields(caplog, STAYS)) + 2)

    assert calls[1] - calls[0] >= 0.9


# D8

_EVERY_TYPE = table(
    (b"void", b"V"),
    (b"yes", b"t\x01"),
    (b"int8", b"b\xff"),
    (b"uint8", b"B\xff"),
    (b"int16", b"s\xff\xfe"),
    (b"uint16", b"u\xff\xfe"),
    (b"int32", b"I\xff\xff\xff\xfd"),
    (b"uint32", b"i\xff\xff\xff\xfd"),
    (b"int64", b"l\xff\xff\xff\xff\xff\xff\xff\xfc"),
    (b"float", b"f\x3f\x80\x00\x00"),
    (b"double", b"d\x3f\xf0\x00\x00\x00\x00\x00\x00"),
    (b"decimal", b"D\x02\x00\x00\x04\xd2"),
    (b"text", long("grün".encode())),
    (b"bytes", b"x\x00\x00\x00\x03\x00\xff\xfe"),
    (b"time", b"T\x00\x00\x00\x00\x65\x00\x00\x00"),
    (b"list", array(b"V", b"t\x00", long(b"in it"))),
    (b"table", b"F" + table((b"deep", b"F" + table((b"er", b"t\x01"))))),
    (b"traceparent", long(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
)


def entries(raw: bytes) -> dict[bytes, bytes]:
    """Return the encoded entries of a table, by their names."""
    found = {}
    position = 4
    while position < len(raw):
        end = position + 1 + raw[position]
        name, start = raw[position + 1 : end], end
        end = _end(raw, start)
        found[name] = raw[start:end]
        position = end
    return found


def _end(raw: bytes, start: int) -> int:
    sizes = {b"V": 0, b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"f": 4}
    sizes |= {b"l": 8, b"d": 8, b"T": 8, b"D": 5}
    kind = raw[start : start + 1]
    if kind in sizes:
        return start + 1 + sizes[kind]
    return start + 5 + int.from_bytes(raw[start + 1 : start + 5], "big")


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_d8_headers_of_every_type_are_unchanged(url: str, client: Client, kind: Any) -> None:
    """Byte for byte, after a retry and in the dead letter."""
    seen: list[bytes] = []

    class Orders(AMQPConsumer):
        queues = [Queue("orders", kind)]
        retry = RetryPolicy((0.2,))

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(message.properties.table or b"")
            raise KeyError("no")

    class Undertaker(AMQPConsumer):
        queues = ["orders.dlq"]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(message.properties.table or b"")

    async with running(url, Orders, Undertaker):
        sent = RawProperties(properties(HEADERS, _EVERY_TYPE))
        await client.send("orders", b"a", properties=sent)
        await eventually(lambda: len(seen) == 3)

    first, second, dead = map(entries, seen)
    names = entries(_EVERY_TYPE).keys()
    assert {name: first[name] for name in names} == {name: second[name] for name in names}
    assert {name: first[name] for name in names} == {name: dead[name] for name in names}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_d8_properties_are_unchanged(url: str, client: Client, kind: Any) -> None:
    """All except expiration and user id; exchange and routing key are the original ones."""
    seen: list[tuple[Any, ...]] = []
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    class Orders(AMQPConsumer):
        queues = [Queue("orders", kind)]
        retry = RetryPolicy((0.2,))

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(
                (
                    *(message.exchange, message.routing_key, message.message_id, message.type),
                    *(message.correlation_id, message.reply_to, message.priority),
                    *(message.timestamp, message.content_type, message.headers["cost"]),
                )
            )
            raise KeyError("no")

    sent = Basic.Properties(
        content_type="text/x",
        content_encoding="gzip",
        headers={"cost": Decimal("1.5")},
        delivery_mode=1,
        priority=3,
        correlation_id="c",
        reply_to="r",
        expiration="50000",
        message_id="m",
        timestamp=when,
        message_type="t",
        user_id="guest",
        app_id="a",
    )
    async with running(url, Orders):
        await client.declare_exchange("shop", "orders")
        await client.bind("orders", "shop", "order.placed")
        await client.publish("shop", "order.placed", b"a", sent)
        letter = await client.take("orders.dlq")

    kept = "content_type content_encoding priority correlation_id reply_to message_id timestamp"
    expected = ("shop", "order.placed", "m", "t", "c", "r", 3, when, "text/x", Decimal("1.5"))
    assert seen == [expected, expected]
    for name in (*kept.split(), "message_type", "app_id"):
        assert getattr(letter.properties, name) == getattr(sent, name), name
    assert (letter.properties.expiration, letter.properties.user_id) == (None, None)
    assert (letter.evidence["exchange"], letter.evidence["routing-key"]) == ("shop", "order.placed")


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_d8_a_retry_is_not_sent_to_cc_and_bcc(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, header: str
) -> None:
    """The destinations in `CC` and `BCC` get the message once."""
    calls: list[bytes] = []
    await client.declare("audit")
    async with running(url, failing(calls, 3, retry=RetryPolicy((0.2, 0.2)))):
        sent = Basic.Properties(headers={header: ["audit"]})
        await client.send("orders", b"bad", properties=sent)
        await eventually(lambda: len(calls) == 3)
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))
        audit = rabbit.queues(vhost)["audit"]

    assert audit.ready == 1


async def test_d8_a_message_that_expired_before_is_retried(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """A message that expired in the same queue before gets all attempts of the policy.

    RabbitMQ drops a message that expires into a queue in which it expired before.
    """
    attempts: list[int] = []

    class Orders(AMQPConsumer):
        queues = ["orders"]
        retry = RetryPolicy((0.2, 0.2, 0.2))

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            attempts.append(message.attempt)
            raise KeyError("no")

    await client.declare(
        "orders",
        x_message_ttl=60_000,
        x_dead_letter_exchange="",
        x_dead_letter_routing_key="parked",
    )
    await client.declare("parked")
    await client.send("orders", b"a", properties=Basic.Properties(expiration="1"))
    expired = await client.take("parked")
    # Another client publishes it again, unchanged.
    again = Basic.Properties(headers=expired.headers)
    await client.send("orders", b"a", properties=again)
    async with running(url, Orders):
        letter = await client.take("orders.dlq")

    assert expired.headers["x-death"][0]["queue"] == "orders"
    assert letter.body == b"a"
    assert attempts == [1, 2, 3, 4]


# A4, A5


async def test_a4_a_retry_queue_with_other_arguments_is_not_changed(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """An error at the start names queue and argument; the other consumer runs."""
    calls: list[bytes] = []
    fine, bodies = collector("fine", name="Fine")
    await client.declare("orders.retry.200ms", x_message_ttl=999)
    async with running(url, failing(calls, 1, retry=RetryPolicy((0.2,))), fine, ready=False) as app:
        await eventually(lambda: named(app.health, "Fine").state == "ready")
        await client.send("fine", b"b")
        await eventually(lambda: bodies == [b"b"])
        reason = await eventually(lambda: named(app.health, "Orders").reason)

    assert "'orders.retry.200ms'" in reason
    assert "x-message-ttl" in reason or "x-dead-letter" in reason
    assert calls == []
    assert "orders.retry.200ms" in rabbit.queues(vhost)


@pytest.mark.parametrize(
    ("permissions", "grant"),
    [
        ({"configure": "^(orders|orders.dlq|fine.*)$"}, r"\bconfigure\b.* on 'orders.retry.200ms'"),
        ({"read": "^(orders|fine.*)$"}, r"\bread on 'orders.retry.200ms'"),
        ({"write": "^(orders|fine.*)$"}, r"\bwrite on 'amq.default'"),
    ],
)
async def test_a5_no_permission_for_retries(
    rabbit: PrivateRabbit, vhost: str, client: Client, permissions: dict[str, str], grant: str
) -> None:
    """It is reported before the first message fails, with the missing permission."""
    calls: list[bytes] = []
    fine, bodies = collector("fine", name="Fine", on_invalid=Action.REJECT)
    limited = user(rabbit, vhost, **permissions)
    orders = failing(calls, 1, retry=RetryPolicy((0.2,)))
    await client.declare("orders", "orders.dlq", "fine")
    await client.send("orders", b"a")
    async with running(limited, orders, fine, ready=False) as app:
        await client.send("fine", b"b")
        await eventually(lambda: bodies == [b"b"])
        reason = await eventually(lambda: named(app.health, "Orders").reason)

    assert "'orders.retry.200ms'" in reason
    assert re.search(f"grant .*{grant}", reason)
    assert "retry = None" in reason
    assert calls == []
