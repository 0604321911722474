"""Replies of consumers, end to end on the embedded broker: who gets which answer, and when."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

import aiormq
import pytest
from dependency_injector import providers
from pamqp.commands import Basic
from pydantic import BaseModel

from tests.application import Recorder, container_of, package_of, running
from tests.client import Client, Letter, RawProperties, connected
from tests.publishing import publishing
from tests.records import errors, everything, fields
from tests.waiting import eventually
from workerkit import (
    Action,
    AMQPConsumer,
    AMQPMessage,
    InvalidReply,
    Publisher,
    Reject,
    RequestExpired,
    RequestFailed,
    RequestTimeout,
    Retry,
    RetryPolicy,
    Runner,
)
from workerkit.testing import embedded_broker

VALUE_LOST = "value returned by handle is lost: the message has no reply_to"
NOT_SENT = "reply cannot be sent: the request is settled without it"


class Order(BaseModel):
    id: int


class Prices(AMQPConsumer, abstract=True):
    """Answers requests for prices."""

    queues = ["prices"]


class Echo(Prices):
    """Returns what it gets."""

    async def handle(self, order: Order) -> Order:
        return order


@asynccontextmanager
async def answering(*consumers: Any, **settings: Any) -> AsyncIterator[tuple[Publisher, Recorder]]:
    """Run consumers on a broker of their own, and provide a publisher that sends requests."""
    recorder = Recorder()
    async with (
        embedded_broker() as broker,
        running(broker.url, *consumers, recorder=recorder, **settings),
        publishing(broker.url) as publisher,
    ):
        yield publisher, recorder


@asynccontextmanager
async def foreign(*consumers: Any) -> AsyncIterator[tuple[Client, Recorder]]:
    """The same, for another client, which has the queue `answers`."""
    recorder = Recorder()
    async with (
        embedded_broker() as broker,
        connected(broker.url) as client,
        running(broker.url, *consumers, recorder=recorder),
    ):
        await client.declare("answers")
        yield client, recorder


def asked(**more: Any) -> Basic.Properties:
    """Return the properties of a request of another client."""
    return Basic.Properties(**{"reply_to": "answers", "correlation_id": "c-1", **more})


def problem_of(letter: Letter) -> dict[str, Any]:
    """Return the problem in a reply."""
    assert letter.properties.content_type == "application/problem+json"
    found: dict[str, Any] = json.loads(letter.body)
    return found


async def test_r8_a_value_is_the_reply() -> None:
    """The caller gets it with the type that it asks for, and the request is acknowledged."""
    async with answering(Echo) as (publisher, recorder):
        reply = await publisher.request(Order(id=7), "prices", returns=Order)
        raw = await publisher.request(Order(id=7), "prices")

        assert reply == Order(id=7)
        assert raw == b'{"id":7}'
        await eventually(lambda: recorder.actions == ["ack", "ack"])


async def test_r8_another_client_gets_the_reply_in_a_queue() -> None:
    """With its correlation id, as a persistent message without reply_to."""
    async with foreign(Echo) as (client, _):
        await client.send("prices", b'{"id": 1}', properties=asked())
        letter = await client.take("answers")

    assert letter.body == b'{"id":1}'
    sent = letter.properties
    assert (sent.correlation_id, sent.content_type) == ("c-1", "application/json")
    assert (sent.reply_to, sent.delivery_mode) == (None, 2)
    assert sent.message_id
    assert letter.headers == {}


async def test_the_message_id_is_used_where_there_is_no_correlation_id() -> None:
    """As Spring AMQP does."""
    async with foreign(Echo) as (client, _):
        properties = asked(correlation_id=None, message_id="m-1")
        await client.send("prices", b'{"id": 1}', properties=properties)

        assert (await client.take("answers")).properties.correlation_id == "m-1"


async def test_r2_the_reply_is_confirmed_before_the_request_is_acknowledged() -> None:
    """As long as the confirm has not arrived, the request stays unacknowledged."""
    recorder = Recorder()
    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("answers")

        class Delayed(Prices):
            async def handle(self, order: Order) -> Order:
                broker.delay_next("basic.ack", 5.0)
                return order

        async with running(broker.url, Delayed, recorder=recorder):
            await client.send("prices", b'{"id": 1}', properties=asked())
            await eventually(lambda: broker.queue("answers").ready == 1)
            unsettled = broker.queue("prices").unacked, recorder.actions
            broker.advance(5.0)
            await eventually(lambda: recorder.actions == ["ack"])

    assert unsettled == (1, [])


@pytest.mark.parametrize("annotated", [True, False])
async def test_none(annotated: bool) -> None:
    """It is JSON's null where `handle` is annotated with a value, and else no reply."""

    class Found(Prices):
        async def handle(self, order: Order) -> Order | None:
            return None

    class Unannotated(Prices):
        async def handle(self, order: Order):  # type: ignore[no-untyped-def]
            return None

    async with answering(Found if annotated else Unannotated) as (publisher, recorder):
        if annotated:
            assert await publisher.request(Order(id=1), "prices", returns=Order | None) is None
        else:
            with pytest.raises(RequestTimeout, match=r"no reply within 0\.2 s"):
                await publisher.request(Order(id=1), "prices", timeout=0.2)
        await eventually(lambda: recorder.actions == ["ack"])


async def test_a_value_without_an_annotation_is_a_reply() -> None:
    """Also of a handler that is not asynchronous."""

    class Unannotated(Prices):
        def handle(self, order: Order):  # type: ignore[no-untyped-def]
            return {"id": order.id}

    async with answering(Unannotated) as (publisher, _):
        assert await publisher.request(Order(id=3), "prices", returns=Order) == Order(id=3)


async def test_r7_a_value_without_reply_to_is_one_error(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG afterwards; the message is acknowledged, and the value is never logged."""
    caplog.set_level(logging.DEBUG, "workerkit")
    async with answering(Echo) as (publisher, recorder):
        for _ in range(3):
            await publisher.publish(Order(id=424242), "prices")
        await eventually(lambda: recorder.actions == ["ack"] * 3)

    found = fields(caplog, VALUE_LOST)
    assert [each["levelname"] for each in found] == ["ERROR", "DEBUG", "DEBUG"]
    assert found[0]["consumer"] == "Echo"
    assert found[0]["type"] == "Order"
    assert "424242" not in everything(caplog)


class Refuses(Prices):
    async def handle(self, order: Order) -> Order:
        raise Reject("sold out")


class Fails(Prices):
    on_exception = Action.DEAD_LETTER

    async def handle(self, order: Order) -> Order:
        raise KeyError("the password is hunter2")


class Drops(Prices):
    on_exception = Action.ACK

    async def handle(self, order: Order) -> Order:
        raise KeyError("the password is hunter2")


class Slow(Prices):
    timeout = 0.05
    on_exception = Action.REJECT

    async def handle(self, order: Order) -> Order:
        await asyncio.Event().wait()
        raise AssertionError


class GivesUp(Prices):
    retry = RetryPolicy(delays=())

    async def handle(self, order: Order) -> Order:
        raise Retry("the warehouse is closed")


class Strange(Prices):
    async def handle(self, order: Order) -> Order:
        refusal = Reject()
        refusal.reason = object()  # type: ignore[assignment]
        raise refusal


class Returns(Prices):
    async def handle(self, order: Order, message: AMQPMessage) -> Order | None:
        message.reject(requeue=False)
        return None


@pytest.mark.parametrize(
    ("consumer", "action", "status", "title", "detail"),
    [
        (Refuses, "dead_letter", 422, "Unprocessable Entity", "sold out"),
        (Fails, "dead_letter", 500, "Internal Server Error", ""),
        (Drops, "ack", 500, "Internal Server Error", ""),
        (Slow, "reject", 504, "Gateway Timeout", ""),
        (GivesUp, "dead_letter", 503, "Service Unavailable", "the warehouse is closed"),
        (Returns, "reject", 422, "Unprocessable Entity", ""),
        (Strange, "dead_letter", 422, "Unprocessable Entity", ""),
    ],
)
async def test_r6_a_final_failure_is_a_problem(
    consumer: Any, action: str, status: int, title: str, detail: str
) -> None:
    """Without any text of an exception that is not meant for the sender; settled as ever."""
    async with answering(consumer) as (publisher, recorder):
        with pytest.raises(RequestFailed) as raised:
            await publisher.request(Order(id=1), "prices", returns=Order)
        await eventually(lambda: recorder.actions == [action])

    failed = raised.value
    assert failed.problem["type"] == "about:blank"
    assert (failed.status, failed.title, failed.detail) == (status, title, detail)
    assert "hunter2" not in str(failed.problem)
    assert f"{status} {title}" in str(failed)


@pytest.mark.parametrize(
    ("body", "status", "place"), [(b'{"id": "x"}', 422, "id"), (b"no json", 400, None)]
)
async def test_r6_an_invalid_body_is_a_problem(body: bytes, status: int, place: str | None) -> None:
    """422 with the places, or 400 if it cannot be parsed; the body is never repeated."""
    async with foreign(Echo) as (client, recorder):
        await client.send("prices", body, properties=asked())
        found = problem_of(await client.take("answers"))
        await eventually(lambda: recorder.actions == ["dead_letter"])

    assert found["status"] == status
    assert [(each["in"], each["name"]) for each in found.get("errors", [])] == (
        [("body", place)] if place else []
    )
    assert body.decode() not in str(found)


@pytest.mark.parametrize("on_unknown", [None, Action.ACK, Action.REJECT])
async def test_r6_a_type_that_is_unknown_is_a_problem(on_unknown: Action | None) -> None:
    """Its sender waits for a reply, also if the class skips it."""

    class Typed(Prices):
        types = {"order": Order}

        async def handle(self, order: Order) -> Order:
            return order

    Typed.on_unknown = on_unknown
    async with answering(Typed) as (publisher, recorder):
        with pytest.raises(RequestFailed) as raised:
            await publisher.request(Order(id=1), "prices", type="other")
        await eventually(lambda: recorder.actions == [on_unknown or "dead_letter"])

    assert raised.value.status == 400
    assert "'other'" in raised.value.detail


async def test_r6_a_body_that_is_too_large_is_a_problem() -> None:
    """413, although the message has no body here."""
    recorder = Recorder()
    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("answers")
        amqp = {"default": {"url": broker.url, "max_message_size": 1000}}

        class Large(Prices):
            on_invalid = Action.REJECT

            async def handle(self, body: bytes) -> bytes:
                return body

        async with running(broker.url, Large, recorder=recorder, amqp=amqp):
            await client.send("prices", b"x" * 2000, properties=asked())
            assert problem_of(await client.take("answers"))["status"] == 413
            await eventually(lambda: recorder.actions == ["reject"])


async def test_r6_a_retry_is_answered_once_at_the_end() -> None:
    """With the value of the attempt that succeeds."""
    calls: list[int] = []

    class Third(Prices):
        retry = RetryPolicy(delays=(0, 0.05))

        async def handle(self, order: Order, message: AMQPMessage) -> Order:
            calls.append(message.attempt)
            if len(calls) < 3:
                raise ConnectionError
            return order

    async with answering(Third) as (publisher, recorder):
        assert await publisher.request(Order(id=5), "prices", returns=Order) == Order(id=5)
        await eventually(lambda: recorder.actions == ["retry", "retry", "ack"])
    assert calls == [1, 2, 3]


async def test_a_consumer_without_a_value_never_replies() -> None:
    """Not to a failure either: its sender may have set reply_to for other consumers."""

    class Silent(Prices):
        async def handle(self, order: Order) -> None:
            raise Reject("no")

    async with foreign(Silent) as (client, recorder):
        await client.send("prices", b'{"id": 1}', b"junk", properties=asked())
        await eventually(lambda: recorder.actions == ["dead_letter"] * 2)
        await client.send("answers", b"last")

        assert (await client.take("answers")).body == b"last"


async def test_r7_a_value_that_cannot_be_encoded_is_a_problem(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The work is done, so the request is acknowledged; the log has the reason."""

    class Opaque(Prices):
        async def handle(self, order: Order) -> dict[str, object]:
            return {"lock": asyncio.Lock()}

    async with answering(Opaque) as (publisher, recorder):
        with pytest.raises(RequestFailed) as raised:
            await publisher.request(Order(id=1), "prices")
        await eventually(lambda: recorder.actions == ["ack"])

    assert raised.value.status == 500
    [record] = fields(caplog, "reply cannot be encoded: the sender gets a failure")
    assert record["consumer"] == "Opaque"


@pytest.mark.parametrize(
    "address",
    [
        "gone",
        "r" * 255,
        "amq.rabbitmq.reply-to.",
        "amq.rabbitmq.reply-to.x.y",
        "amq.rabbitmq.reply-to.AAAA.BBBB",
        "line\nbreak\x1b[31m",
    ],
)
@pytest.mark.parametrize("behaves_as", ["3.10", "4.3"])
async def test_r3_a_hostile_address_does_no_harm(
    address: str, behaves_as: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is done: acknowledged, with at most one WARNING, and others are answered."""
    recorder = Recorder()
    async with (
        embedded_broker(behaves_as=behaves_as) as broker,
        connected(broker.url) as client,
        running(broker.url, Echo, recorder=recorder),
    ):
        await client.declare("answers")
        await client.send("prices", b'{"id": 1}', properties=asked(reply_to=address))
        await eventually(lambda: recorder.actions == ["ack"])
        await client.send("prices", b'{"id": 2}', properties=asked())

        assert (await client.take("answers")).body == b'{"id":2}'
    assert errors(caplog) == []
    assert [each["levelname"] for each in fields(caplog, NOT_SENT)] in ([], ["WARNING"])


async def test_an_address_and_an_id_of_any_bytes() -> None:
    """An address that is not UTF-8 is refused; an id is returned byte for byte."""
    junk = b"\xff\xfe\x00id"
    async with embedded_broker() as broker, running(broker.url, Echo, recorder=(rec := Recorder())):
        connection = await aiormq.connect(broker.url)
        channel = await connection.channel(publisher_confirms=True)

        def raw(reply_to: bytes) -> RawProperties:
            flags = (0x0400 | 0x0200).to_bytes(2, "big")  # correlation_id and reply_to
            texts = b"".join(bytes((len(each),)) + each for each in (junk, reply_to))
            return RawProperties(flags + texts)

        await channel.queue_declare("answers")
        for address in (b"\xff\xff", b"answers"):
            await channel.basic_publish(b'{"id":1}', routing_key="prices", properties=raw(address))
        await eventually(lambda: rec.actions == ["ack", "ack"])
        [message] = broker.queue("answers").messages
        await connection.close()

    assert message.body == b'{"id":1}'
    assert message.properties["correlation_id"].encode(errors="surrogateescape") == junk


async def test_a_reply_into_the_queue_of_the_request_ends() -> None:
    """A reply has no reply_to, so the consumer does not reply to it again."""
    async with foreign(Echo) as (client, recorder):
        await client.send("prices", b'{"id": 1}', properties=asked(reply_to="prices"))
        await eventually(lambda: recorder.actions == ["ack", "ack"])
        await client.send("prices", b'{"id": 2}', properties=asked())
        await client.take("answers")

        await eventually(lambda: len(recorder.settled) == 3)


@pytest.mark.parametrize(("replies", "direct"), [("direct", True), ("off", False)])
async def test_the_option_replies(
    replies: str, direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """`direct` sends nothing into a queue, `off` sends nothing at all."""
    consumer = type("Limited", (Echo,), {"replies": replies})
    recorder = Recorder()
    async with (
        embedded_broker() as broker,
        connected(broker.url) as client,
        running(broker.url, consumer, recorder=recorder),
        publishing(broker.url) as publisher,
    ):
        await client.declare("answers")
        await client.send("prices", b'{"id": 1}', properties=asked())
        await eventually(lambda: recorder.actions == ["ack"])
        if direct:
            assert await publisher.request(Order(id=2), "prices") == b'{"id":2}'
        else:
            with pytest.raises(RequestTimeout):
                await publisher.request(Order(id=2), "prices", timeout=0.2)

        assert broker.queue("answers").ready == 0
    assert len(fields(caplog, NOT_SENT)) == int(direct)


async def test_r5_an_expired_request_is_not_begun(caplog: pytest.LogCaptureFixture) -> None:
    """It is acknowledged and not answered, with one WARNING, and counted as expired."""
    calls: list[int] = []

    class Counts(Prices):
        async def handle(self, order: Order) -> Order:
            calls.append(order.id)
            return order

    past, future = int(time() * 1000) - 1, int(time() * 1000) + 60_000
    async with foreign(Counts) as (client, recorder):
        for number, deadline in enumerate([past, future, "soon", True, -1, 0, 2**60]):
            headers = {"x-workerkit-deadline": deadline}
            body = b'{"id": %d}' % number
            await client.send("prices", body, properties=asked(headers=headers))
        await eventually(lambda: len(recorder.settled) == 7)
        for _ in range(5):
            await client.take("answers")

    expired = [each for each in recorder.settled if each.outcome.error is not None]
    assert sorted(calls) == [1, 2, 3, 4, 6]
    assert [type(each.outcome.error) for each in expired] == [RequestExpired] * 2
    assert {each.action for each in expired} == {Action.ACK}
    records = fields(caplog, "request has expired: not handled")
    assert [each["levelname"] for each in records] == ["WARNING"] * 2
    assert errors(caplog) == []


async def test_r5_a_request_expires_between_two_attempts() -> None:
    """The next attempt is not made."""
    calls: list[int] = []

    class Twice(Prices):
        retry = RetryPolicy(delays=(0.3,))

        async def handle(self, order: Order) -> Order:
            calls.append(order.id)
            raise ConnectionError

    async with answering(Twice) as (publisher, recorder):
        with pytest.raises(RequestTimeout):
            await publisher.request(Order(id=1), "prices", timeout=0.2)
        await eventually(lambda: recorder.actions == ["retry", "ack"])

    assert calls == [1]


async def test_a_reply_of_another_type() -> None:
    """The error names the place, and never repeats the reply."""
    async with answering(Echo) as (publisher, _):
        with pytest.raises(
            InvalidReply, match="the reply is invalid: the body: Input should"
        ) as raised:
            await publisher.request(Order(id=424242), "prices", returns=list[int])

    assert "424242" not in str(raised.value)


async def test_an_error_of_the_publisher_ends_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    """One ERROR with its traceback; the request is settled, and the next one answered."""
    recorder, failing = Recorder(), [ValueError("a fault in the publisher")]

    class Faulty(Publisher):
        async def send(self, *args: Any, **more: Any) -> str:
            if failing and args[2].routing_key == "answers":
                raise failing.pop()
            return await super().send(*args, **more)

    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("answers")
        container = container_of(broker.url, recorder)
        container.publisher.override(providers.Object(Faulty()))
        async with Runner(container, packages=[package_of(Echo)]).running() as runner:
            await eventually(lambda: runner.ready)
            await client.send("prices", b'{"id": 1}', properties=asked())
            await eventually(lambda: recorder.actions == ["ack"])
            await client.send("prices", b'{"id": 2}', properties=asked())
            assert (await client.take("answers")).body == b'{"id":2}'

    [record] = fields(caplog, NOT_SENT)
    assert (record["levelname"], bool(record["exc_info"])) == ("ERROR", True)


async def test_a_request_in_a_handler() -> None:
    """A consumer may send requests to another one, or to itself."""

    class Countdown(AMQPConsumer):
        queues = ["countdown"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        async def handle(self, number: int) -> list[int]:
            if not number:
                return [0]
            below = await self.publisher.request(number - 1, "countdown", returns=list[int])
            return [number, *below]

    async with answering(Countdown) as (publisher, _):
        found = await publisher.request(3, "countdown", returns=list[int])

    assert found == [3, 2, 1, 0]


async def test_a_request_from_a_thread() -> None:
    """`request_threadsafe` is for handlers that are not asynchronous."""

    class Forward(AMQPConsumer):
        queues = ["forward"]

        def __init__(self, publisher: Publisher) -> None:
            self.publisher = publisher

        def handle(self, order: Order) -> Order:
            return self.publisher.request_threadsafe(order, "prices", returns=Order)

    async with answering(Echo, Forward) as (publisher, _):
        assert await publisher.request(Order(id=4), "forward", returns=Order) == Order(id=4)
        with pytest.raises(RuntimeError, match="await request instead"):
            publisher.request_threadsafe(Order(id=4), "prices", returns=Order)


async def test_r2_a_reply_waits_for_the_end_of_an_alarm() -> None:
    """And the request waits for the reply; the handler is not called again."""
    recorder, calls = Recorder(), []
    async with embedded_broker() as broker, connected(broker.url) as client:
        await client.declare("answers")

        class Alarmed(Prices):
            async def handle(self, order: Order) -> Order:
                calls.append(order.id)
                if order.id == 2:
                    broker.memory_alarm(True)
                return order

        async with running(broker.url, Alarmed, recorder=recorder):
            # The first reply opens the connection, which is blocked afterwards.
            await client.send("prices", b'{"id": 1}', properties=asked())
            await client.take("answers")
            await eventually(lambda: recorder.actions == ["ack"])
            await client.send("prices", b'{"id": 2}', properties=asked())
            await eventually(lambda: calls == [1, 2])
            unsettled = broker.queue("prices").unacked
            broker.memory_alarm(False)
            second = await client.take("answers")
            await eventually(lambda: recorder.actions == ["ack", "ack"])

    assert unsettled == 1
    assert (second.body, calls) == (b'{"id":2}', [1, 2])


def test_failures_that_nobody_gets_as_a_reply() -> None:
    """`workerkit check` warns about a consumer that replies, and requeues what fails."""

    class Retried(Echo):
        retry = RetryPolicy(delays=(1.0,))

    class Final(Echo):
        on_exception = Action.REJECT

    container = container_of("amqp://h")
    assembly = Runner(container, packages=[package_of(Echo, Retried, Final)]).assemble()

    (warning,) = assembly.warnings
    assert "Echo" in warning
    assert warning.endswith("set retry, or on_exception = 'dead_letter'")


def test_replies_that_are_off() -> None:
    """`workerkit check` warns about a value that nothing reads; not about a handler without one."""

    class Off(Echo):
        replies = "off"

    class Quiet(Prices):
        replies = "off"

        async def handle(self, order: Order) -> None: ...

    assembly = Runner(container_of("amqp://h"), packages=[package_of(Off, Quiet)]).assemble()

    (warning,) = assembly.warnings
    assert warning.endswith(": replies is 'off': nothing reads what handle returns")
    assert "Off" in warning
