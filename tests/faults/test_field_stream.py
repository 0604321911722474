"""FR7, FR8, FR23: the bytes of the broker are invalid, stop in the middle, or are lost."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from pamqp.commands import Basic

from tests.application import Recorder, running
from tests.client import Client, connected
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import fields
from tests.tampering_proxy import BODY, HEADER, METHOD, Tampering, delivery_tag, head, with_tag
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, PublishOutcomeUnknown, Queue, Runner
from workerkit.tasks import Backoff

HEARTBEAT = 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts."""
    monkeypatch.setattr("workerkit.amqp.connection.Backoff", partial(Backoff, first=0.1, cap=0.3))


class Orders:
    """A consumer that counts its messages.

    Attributes:
        runs: How often each body was handled.
    """

    def __init__(self, then: Callable[[AMQPMessage[bytes]], object] = lambda _: None) -> None:
        self.runs: Counter[bytes] = Counter()
        self.then = then

    def consumer(self, queue: str | Queue = "orders", **options: Any) -> type[AMQPConsumer]:
        """Return the class for it."""

        async def handle(consumer: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
            self.runs[message.body] += 1
            self.then(message)

        return type("Orders", (AMQPConsumer,), {"queues": [queue], "handle": handle, **options})


@asynccontextmanager
async def tampered(
    rabbit: PrivateRabbit,
    url: str,
    consumer: type[AMQPConsumer],
    recorder: Recorder | None = None,
) -> AsyncIterator[tuple[Tampering, Runner]]:
    """Run *consumer* inside the block, on a connection that is tampered with."""
    async with Tampering(rabbit.port) as proxy:
        amqp = {"default": {"url": proxy.url(url), "heartbeat": HEARTBEAT}}
        async with running(proxy.url(url), consumer, recorder=recorder, amqp=amqp) as runner:
            yield proxy, runner


async def emptied(rabbit: PrivateRabbit, vhost: str) -> None:
    """Wait until everything is acknowledged."""
    await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return why the consumers' connection was lost, each time."""
    lost = fields(caplog, "connection lost")
    return [record["reason"] for record in lost if record["role"] == "consumers"]


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (head(71, 18_000, 1_000_000), "an unknown frame type 71"),
        (head(BODY, 0, 128 * 2**20), "134217728 bytes: the limit is"),
        (head(METHOD, 0, 130_000), "at least 130008 bytes"),
        (head(HEADER, 0, 1_000_000), "at least 1000008 bytes"),
        (head(BODY, 1, 100_000), "on channel 1 that belongs to no message"),
        (head(METHOD, 1, 0)[:3], "a frame of type 1 with"),
        (head(METHOD, 0, 4) + b"\0\x0a\0\x3d\0", "a frame without its end"),
    ],
    ids=["type", "size", "method", "header", "no place", "three bytes", "end"],
)
async def test_fr8_invalid_bytes_in_the_stream_lose_the_connection(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    noise: bytes,
    reason: str,
) -> None:
    """For any bytes, and although heartbeats arrive: one record has the reason, all is handled."""
    orders = Orders()
    async with tampered(rabbit, url, orders.consumer()) as (proxy, _):
        await client.send("orders", b"before")
        await eventually(lambda: orders.runs[b"before"])
        proxy.inject(noise)
        await client.send("orders", b"after")
        await eventually(lambda: orders.runs[b"after"])
        await emptied(rabbit, vhost)
        told = reasons(caplog)

    assert len(told) == 1
    assert told[0].startswith("not AMQP 0-9-1: ")
    assert reason in told[0]
    assert orders.runs == {b"before": 1, b"after": 1}


async def test_fr8_an_unfinished_message_loses_the_connection(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Method and header have arrived. The body does not arrive, but heartbeats do."""
    orders = Orders()

    def without_body(frame: bytes) -> bytes:
        if frame[0] != BODY:
            return frame
        proxy.change = lambda frame: frame
        return b""

    async with tampered(rabbit, url, orders.consumer()) as (proxy, _):
        proxy.change = without_body
        await client.send("orders", b"a")
        await eventually(lambda: orders.runs[b"a"])
        await emptied(rabbit, vhost)
        told = reasons(caplog)

    assert len(told) == 1
    assert re.search(r"a message on channel \d+ with 0 bytes received made no progress", told[0])


async def test_fr8_a_slow_connection_is_not_dropped(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A message may take longer than 2.5 heartbeats, as long as bytes arrive."""
    body = b"x" * 300_000
    orders = Orders()
    async with tampered(rabbit, url, orders.consumer()) as (proxy, _):
        proxy.rate = 60_000.0
        await client.send("orders", body)
        began = time.monotonic()
        await eventually(lambda: orders.runs[body], 60.0)
        took = time.monotonic() - began
        proxy.rate = None
        await emptied(rabbit, vhost)
        told = reasons(caplog)

    assert took > 2.5 * HEARTBEAT
    assert told == []
    assert orders.runs == {body: 1}


async def test_fr8_a_broker_without_a_limit_gets_one(
    broker: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """Its frame_max is 0; a large message still arrives in frames of 128 KiB at most."""
    broker.eval("application:set_env(rabbit, frame_max, 0).")
    body = b"x" * 1_000_000
    sizes: list[int] = []
    orders = Orders()

    def noted(frame: bytes) -> bytes:
        sizes.append(len(frame))
        return frame

    url = broker.url()
    async with connected(url) as client, tampered(broker, url, orders.consumer()) as (proxy, _):
        proxy.change = noted
        await client.send("orders", body)
        await eventually(lambda: orders.runs[body])

    assert max(sizes) == 131_072
    assert reasons(caplog) == []


@pytest.mark.parametrize("what", ["repeated", "backwards", "zero", "skipped", "another consumer's"])
async def test_fr23_an_impossible_delivery_is_a_malformed_stream(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """No message is acknowledged that was not handled, and none is lost."""
    bodies = [b"%d" % number for number in range(40)]
    orders = Orders()

    def wrong(frame: bytes) -> bytes:
        tag = delivery_tag(frame)
        if tag != 7:
            return frame
        proxy.change = lambda frame: frame
        if what == "another consumer's":
            return frame[:12] + b"?" + frame[13:]
        return with_tag(frame, {"repeated": 6, "backwards": 3, "zero": 0, "skipped": 9}[what])

    async with tampered(rabbit, url, orders.consumer()) as (proxy, _):
        proxy.change = wrong
        await client.send("orders", *bodies)
        await eventually(lambda: set(orders.runs) == set(bodies))
        await emptied(rabbit, vhost)
        told = reasons(caplog)

    assert len(told) == 1
    assert "not AMQP 0-9-1: a delivery" in told[0]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fr7_a_handler_that_blocks_for_too_long_runs_once(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, kind: Any
) -> None:
    """The broker has closed the socket, and the ack is lost: it is sent after the redelivery."""
    orders = Orders(lambda _: time.sleep(5 * HEARTBEAT))
    amqp = {"default": {"url": url, "heartbeat": HEARTBEAT}}
    headers: dict[str, Any] = {"tenant": "a", "count": 3}
    async with running(url, orders.consumer(Queue("orders", kind)), amqp=amqp):
        await client.send("orders", b"a", properties=Basic.Properties(headers=headers))
        await eventually(lambda: orders.runs[b"a"])
        await emptied(rabbit, vhost)

    assert orders.runs == {b"a": 1}


async def test_fr7_acks_that_a_reset_lost_are_sent_later(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Nothing shows that they arrived, and they did not: no message is handled twice."""
    bodies = [b"%d" % number for number in range(100)]
    runs: Counter[bytes] = Counter()
    gate = asyncio.Event()

    class Held(AMQPConsumer):
        queues = ["orders"]
        concurrency = 100

        async def handle(self, body: bytes) -> None:
            runs[body] += 1
            await gate.wait()

    recorder = Recorder()
    async with tampered(rabbit, url, Held, recorder) as (proxy, _):
        await client.send("orders", *bodies)
        await eventually(lambda: set(runs) == set(bodies))
        # From now on nothing comes through, in either direction.
        proxy.deaf, proxy.change = True, lambda frame: b""
        gate.set()
        await eventually(lambda: recorder.actions == ["ack"] * 100)
        proxy.deaf, proxy.change = False, lambda frame: frame
        proxy.drop()
        await emptied(rabbit, vhost)

    assert set(runs.values()) == {1}


async def test_fr7_acknowledged_messages_are_not_remembered(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """The same message, sent again and redelivered, is handled: the first ack had arrived."""
    orders = Orders()
    heard: list[bytes] = []

    def noted(frame: bytes) -> bytes:
        heard.append(frame)
        return frame

    same = Basic.Properties(message_id="same")

    async with tampered(rabbit, url, orders.consumer()) as (proxy, runner):
        proxy.change = noted
        await client.send("orders", b"a", properties=same)
        await eventually(lambda: orders.runs[b"a"])
        await emptied(rabbit, vhost)
        # Two seconds of heartbeats, of two connections.
        seen = len(heard)
        await eventually(lambda: len(heard) > seen + 16)
        proxy.drop()
        await eventually(lambda: proxy.accepted > 1 and runner.ready)
        raised: list[bytes] = []

        def fail_once(message: AMQPMessage[bytes]) -> None:
            if not raised:
                raised.append(message.body)
                raise KeyError("no")

        orders.then = fail_once
        await client.send("orders", b"a", properties=same)
        await eventually(lambda: orders.runs[b"a"] == 3)
        await emptied(rabbit, vhost)


@pytest.mark.parametrize("tag", [1, 9])
async def test_fr23_an_impossible_confirm_is_a_malformed_stream(
    rabbit: PrivateRabbit,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    tag: int,
) -> None:
    """A repeated confirm, or one for no publish: the outcome is unknown."""
    await client.declare("orders")

    def wrong(frame: bytes) -> bytes:
        if frame[7:11] != b"\0\x3c\0\x50":
            return frame
        proxy.change = lambda frame: frame
        return frame[:11] + tag.to_bytes(8) + frame[19:]

    async with Tampering(rabbit.port) as proxy, publishing(proxy.url(url)) as publisher:
        await publisher.publish(b"a", "orders")
        proxy.change = wrong
        with pytest.raises(PublishOutcomeUnknown, match=f"a confirm for tag {tag}, which"):
            await publisher.publish(b"b", "orders")
        await publisher.publish(b"c", "orders")
        bodies = [(await client.take("orders")).body for _ in range(3)]

    assert bodies == [b"a", b"b", b"c"]
