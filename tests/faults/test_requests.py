"""R1 to R8. Requests and replies on RabbitMQ: lost connections, processes, queues and replies."""

import asyncio
import base64
import logging
import signal
import struct
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import aiormq
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client
from tests.command import running as processes
from tests.command import write_package
from tests.proxy import Proxy
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import (
    AMQPConsumer,
    AMQPMessage,
    PublishError,
    PublishOutcomeUnknown,
    PublishRefused,
    PublishTimeout,
    Reject,
    ReplyLost,
    RequestError,
    RequestFailed,
    RequestTimeout,
    Runner,
    Settled,
    Unroutable,
)
from workerkit.observe import Published

NOT_SENT = "reply cannot be sent: the request is settled without it"
PREFIX = "amq.rabbitmq.reply-to."


class Prices(AMQPConsumer, abstract=True):
    """Answers requests for prices."""

    queues = ["prices"]


class Echo(Prices):
    concurrency = 50

    async def handle(self, body: bytes) -> bytes:
        return body


class Held(Prices):
    """Answers when the test allows it."""

    concurrency = 50
    allowed: asyncio.Event
    running = 0

    def __init__(self) -> None:
        type(self).running = 0
        type(self).allowed = asyncio.Event()

    async def handle(self, body: bytes) -> bytes:
        type(self).running += 1
        await self.allowed.wait()
        return body


class Confirmed:
    """An observer that counts what the broker has confirmed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, record: Settled) -> None:
        """Ignore deliveries."""

    def published(self, record: Published) -> None:
        """Count a publish."""
        self.count += record.error is None


def asked(**more: Any) -> Basic.Properties:
    """Return the properties of a request of another client."""
    return Basic.Properties(**{"reply_to": "answers", "correlation_id": "c", **more})


async def test_r4_requests_wait_at_the_same_time(url: str) -> None:
    """Twenty handlers run before the first one replies; each reply has its request."""
    async with running(url, Held), publishing(url) as publisher:
        bodies = [b"%d" % number for number in range(20)]
        requests = [asyncio.create_task(publisher.request(each, "prices")) for each in bodies]
        await eventually(lambda: Held.running == 20)
        Held.allowed.set()

        assert await asyncio.gather(*requests) == bodies


async def test_r6_problems_and_retries_through_the_broker(url: str) -> None:
    """A direct reply to a request that was retried, and to one that was dead-lettered."""

    class Refuses(Prices):
        async def handle(self, body: bytes) -> bytes:
            raise Reject("sold out")

    async with running(url, Refuses), publishing(url) as publisher:
        with pytest.raises(RequestFailed) as raised:
            await publisher.request(b"x", "prices")

    assert (raised.value.status, raised.value.detail) == (422, "sold out")


async def test_r3_the_queue_for_the_reply_is_deleted(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """One WARNING; the request is acknowledged, and not handled again."""
    recorder = Recorder()
    async with running(url, Echo, recorder=recorder):
        await client.declare("answers")
        await client.send("prices", b"1", properties=asked())
        assert (await client.take("answers")).properties.correlation_id == "c"
        await client.delete("answers")
        await client.send("prices", b"2", properties=asked())
        await eventually(lambda: recorder.actions == ["ack", "ack"])

    [record] = fields(caplog, NOT_SENT)
    assert (record["levelname"], record["reply_to"]) == ("WARNING", "answers")
    assert errors(caplog) == []


async def test_r3_the_queue_for_the_reply_is_full(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """One ERROR; the request is acknowledged."""
    recorder = Recorder()
    await client.declare("answers", x_max_length=0, x_overflow="reject-publish")
    async with running(url, Echo, recorder=recorder):
        await client.send("prices", b"1", properties=asked())
        await eventually(lambda: recorder.actions == ["ack"])

    assert [each["levelname"] for each in fields(caplog, NOT_SENT)] == ["ERROR"]


def process_id(node: bytes, atom: bytes = b"v\x00") -> str:
    """Return an encoded process of Erlang, as in the address of a direct reply."""
    encoded = b"\x83X" + atom + bytes((len(node),)) + node + struct.pack(">III", 7, 0, 3)
    return base64.b64encode(encoded).decode()


async def test_r3_forged_addresses_close_no_connection(
    rabbit: PrivateRabbit, url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ 3.10 and 4.0 close a connection on which a reply is sent to some of these."""
    recorder = Recorder()
    forged = [
        *("x.y", "g1h3.abc", "g2EF.x", f"{process_id(b'a@b')[:-8]}.x", "é.x", "", "x", "..", "\n"),
        f"{process_id(b'other@host')}.abc",
    ]
    await client.declare("answers")
    async with running(url, Echo, recorder=recorder):
        for rest in forged:
            await client.send("prices", b"x", properties=asked(reply_to=PREFIX + rest))
        for name in ("gone", "r" * 255, "line\nbreak"):
            await client.send("prices", b"x", properties=asked(reply_to=name))
        await eventually(lambda: len(recorder.actions) == len(forged) + 3)
        await client.send("prices", b"last", properties=asked())
        assert (await client.take("answers")).body == b"last"

    assert set(recorder.actions) == {"ack"}
    assert fields(caplog, "connection lost") == []
    assert errors(caplog) == []


async def test_r3_no_permission_to_reply(rabbit: PrivateRabbit, vhost: str, client: Client) -> None:
    """It is found at the start, and named; without replies the consumer is ready."""
    await client.declare("prices")
    rabbit.add_user(name := f"limited-{vhost}", "x", vhost, ".*", "^(?!amq.default).*", ".*")
    url = rabbit.url(vhost, name, "x")
    options: dict[str, Any] = {"on_invalid": "reject"}
    async with running(url, type("Limited", (Echo,), options), ready=False) as runner:

        def reason() -> str:
            assert isinstance(runner, Runner)
            return runner.health[0].reason

        found = await eventually(reason)
    async with running(url, type("Silent", (Echo,), {**options, "replies": "off"})):
        pass

    assert "replies cannot be published: " in found
    assert "grant write on 'amq.default'; or set replies = 'off'" in found


async def test_r2_the_connection_is_lost_after_the_handler_returned(
    rabbit: PrivateRabbit, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply is kept, and sent when the request is redelivered, without a second call."""
    monkeypatch.setattr("workerkit.amqp.answers.REPLY_DEADLINE", 0.2)
    recorder, calls = Recorder(), []
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(url) as publisher,
    ):

        class Interrupted(Prices):
            async def handle(self, body: bytes) -> bytes:
                calls.append(body)
                proxy.refuse()
                proxy.drop()
                return b"re: " + body

        async with running(proxy.url(url), Interrupted, recorder=recorder):
            request = asyncio.create_task(publisher.request(b"x", "prices"))
            await eventually(lambda: recorder.actions == ["lost"])
            await proxy.accept()
            reply = await request
            await eventually(lambda: recorder.actions == ["lost", "ack"])

    assert (reply, calls) == (b"re: x", [b"x"])


async def test_r2_the_confirm_of_a_reply_is_lost(rabbit: PrivateRabbit, url: str) -> None:
    """The reply is sent again; the caller ignores the second one, and the handler runs once."""
    recorder, calls = Recorder(), []
    async with (
        Proxy("127.0.0.1", rabbit.port, amqp=True) as proxy,
        publishing(url) as publisher,
    ):

        class Unconfirmed(Prices):
            async def handle(self, body: bytes) -> bytes:
                calls.append(body)
                if len(calls) == 2:
                    proxy.swallow((60, 80))
                return body

        async with running(proxy.url(url), Unconfirmed, recorder=recorder):
            assert await publisher.request(b"1", "prices") == b"1"
            assert await publisher.request(b"2", "prices") == b"2"
            await eventually(lambda: proxy.swallowed == [(60, 80)])
            held = list(recorder.actions)
            proxy.drop()
            await eventually(lambda: len(recorder.actions) >= 2)
            assert await publisher.request(b"3", "prices") == b"3"

    assert held == ["ack"]
    assert calls == [b"1", b"2", b"3"]


CONSUMERS = """
    import os
    from pathlib import Path

    from dependency_injector import providers

    from workerkit import AMQPConsumer, WorkerContainer
    from workerkit.observe import log_settled


    def kill_once(place):
        if Path("kill").read_text() == place and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), 9)


    class Prices(AMQPConsumer):
        queues = ["prices"]

        async def handle(self, body: str) -> str:
            with open("calls", "a") as file:
                file.write(body)
            kill_once("before the reply")
            return "re: " + body


    class Container(WorkerContainer):
        # It is called before the acknowledgement is written to the socket.
        observers = providers.Object([log_settled, lambda _: kill_once("after the reply")])
"""


@pytest.mark.parametrize("place", ["before the reply", "after the reply"])
async def test_r1_the_callee_is_killed(
    url: str, client: Client, tmp_path: Path, place: str
) -> None:
    """Another process answers the same request; there are two replies if the first one did."""
    write_package(tmp_path, consumers=CONSUMERS, container="from app.consumers import Container")
    (tmp_path / "kill").write_text(place)
    variables: dict[str, Any] = {"WORKERKIT_AMQP__DEFAULT__URL": url}
    await client.declare("answers")
    async with processes("app", cwd=tmp_path, **variables) as first:
        await first.says("consuming")
        await client.send("prices", b"x", properties=asked())
        await eventually((tmp_path / "killed").exists)
        async with processes("app", cwd=tmp_path, **variables) as second:
            answers = [await client.take("answers", 60.0)]
            if place == "after the reply":
                answers.append(await client.take("answers", 60.0))
            second.send(signal.SIGTERM)
            assert await second.ended() == 0

    assert {(each.body, each.properties.correlation_id) for each in answers} == {(b"re: x", "c")}
    assert (tmp_path / "calls").read_text() == "xx"


async def test_r1_a_second_reply_is_ignored(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a process was killed between its reply and the acknowledgement."""
    caplog.set_level(logging.DEBUG, "workerkit.amqp.requests")
    await client.declare("prices")
    async with publishing(url) as publisher:
        request = asyncio.create_task(publisher.request(b"x", "prices"))
        asked_by = (await client.take("prices")).properties
        assert asked_by.reply_to is not None
        properties = Basic.Properties(correlation_id=asked_by.correlation_id)
        for body in (b"first", b"second"):
            await client.send(asked_by.reply_to, body, properties=properties)

        assert await request == b"first"
        await eventually(lambda: fields(caplog, "reply ignored: no request waits for it"))


async def test_r4_the_connection_is_lost_while_requests_wait(
    rabbit: PrivateRabbit, url: str
) -> None:
    """All fail at once, with an error that says so; the next request reconnects."""
    confirms = Confirmed()
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
        running(url, Held),
    ):
        publisher.observers = [confirms]
        requests = [asyncio.create_task(publisher.request(b"x", "prices")) for _ in range(20)]
        await eventually(lambda: (Held.running, confirms.count) == (20, 20))
        proxy.drop()
        failed = await asyncio.gather(*requests, return_exceptions=True)
        Held.allowed.set()

        assert {type(each) for each in failed} == {ReplyLost}
        assert "no reply, the connection was lost: " in str(failed[0])
        assert await publisher.request(b"y", "prices") == b"y"


async def test_r4_a_request_that_the_broker_refuses_fails_alone(url: str) -> None:
    """Other requests wait on their own channel, and are answered."""
    async with running(url, Held), publishing(url) as publisher:
        waiting = asyncio.create_task(publisher.request(b"x", "prices"))
        await eventually(lambda: Held.running == 1)
        for more, error in [
            ({"exchange": "no-such-exchange"}, Unroutable),
            ({"user_id": "somebody"}, PublishRefused),
            ({"connection": "other"}, Exception),
        ]:
            with pytest.raises(error):
                await publisher.request(b"y", "prices", **more)  # type: ignore[call-overload]
        with pytest.raises(Unroutable):
            await publisher.request(b"y", "no-such-queue")
        large = asyncio.create_task(publisher.request(b"z" * 300_000, "prices"))
        await eventually(lambda: Held.running == 2)
        Held.allowed.set()

        assert await waiting == b"x"
        assert len(await large) == 300_000


async def test_r5_a_request_is_not_answered_in_time(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The error names it; the queue drops the request at the same time."""
    await client.declare("prices")
    async with publishing(url) as publisher:
        with pytest.raises(RequestTimeout, match=r"'prices': no reply within 0\.3 s"):
            await publisher.request(b"x", "prices", timeout=0.3)
        await eventually(lambda: rabbit.queues(vhost)["prices"].ready == 0)


async def test_r5_a_request_is_not_sent_in_time(rabbit: PrivateRabbit, url: str) -> None:
    """While the broker cannot be reached, the errors are those of a publish."""
    async with (
        Proxy("127.0.0.1", rabbit.port) as proxy,
        publishing(proxy.url(url)) as publisher,
    ):
        proxy.refuse()
        with pytest.raises(PublishTimeout):
            await publisher.request(b"x", "prices", timeout=0.3)


async def test_r5_a_cancelled_request_is_forgotten(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Its late reply is ignored, at DEBUG, and others are answered."""
    caplog.set_level(logging.DEBUG, "workerkit.amqp.requests")
    confirms = Confirmed()
    async with running(url, Held), publishing(url) as publisher:
        publisher.observers = [confirms]
        cancelled = asyncio.create_task(publisher.request(b"x", "prices"))
        # Before the confirm, it would close the channel of a first publish, and its reply be lost.
        await eventually(lambda: (Held.running, confirms.count) == (1, 1))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        Held.allowed.set()
        await eventually(lambda: fields(caplog, "reply ignored: no request waits for it"))

        assert await publisher.request(b"y", "prices") == b"y"


async def test_r5_close_fails_the_requests_that_wait(url: str) -> None:
    """None waits for ever."""
    async with running(url, Held):
        async with publishing(url) as publisher:
            request = asyncio.create_task(publisher.request(b"x", "prices"))
            await eventually(lambda: Held.running == 1)
        with pytest.raises((ReplyLost, PublishOutcomeUnknown)):
            await request
        Held.allowed.set()


async def test_r8_a_thousand_requests_over_connections_that_are_lost(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """Each gets its own reply or an error, and never the reply to another one."""
    async with (
        Proxy("127.0.0.1", rabbit.port) as callers,
        Proxy("127.0.0.1", rabbit.port) as callees,
        publishing(callers.url(url)) as publisher,
        running(callees.url(url), Echo, AfterEcho),
    ):
        ended: Counter[str] = Counter()
        limit = asyncio.Semaphore(100)

        async def ask(number: int) -> None:
            async with limit:
                try:
                    found = await publisher.request(b"%d" % number, "prices", timeout=20.0)
                    ended["answered" if found == b"%d" % number else "wrong"] += 1
                except (RequestError, PublishError) as error:
                    ended[type(error).__name__] += 1

        async def disturb() -> None:
            for number, proxy in enumerate([callees, callers] * 2, 1):
                await eventually(partial(reached, number * 150))
                proxy.drop()

        def reached(count: int) -> bool:
            return ended.total() >= count

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*map(ask, range(1000)))
        await disturbing

    assert ended.total() == 1000
    assert ended["wrong"] == 0
    assert ended["answered"] > 500, ended


class AfterEcho(AMQPConsumer):
    """Another consumer on the same connection, which never replies."""

    queues = ["silent"]

    async def handle(self, body: bytes, message: AMQPMessage) -> None: ...


async def test_r8_another_client_with_direct_reply_to(url: str, client: Client) -> None:
    """A client that consumes `amq.rabbitmq.reply-to` gets its replies there."""
    answers: list[tuple[bytes, str | None]] = []

    async def answered(message: DeliveredMessage) -> None:
        properties = message.header.properties
        answers.append((bytes(message.body), properties.correlation_id))

    connection = await aiormq.connect(url)
    async with running(url, Echo):
        channel = await connection.channel(publisher_confirms=False)
        await channel.basic_consume("amq.rabbitmq.reply-to", answered, no_ack=True)
        for number in range(3):
            await channel.basic_publish(
                b"%d" % number,
                routing_key="prices",
                properties=asked(reply_to="amq.rabbitmq.reply-to", correlation_id=f"c{number}"),
            )
        await eventually(lambda: len(answers) == 3)
        await connection.close()

    assert sorted(answers) == [(b"0", "c0"), (b"1", "c1"), (b"2", "c2")]
