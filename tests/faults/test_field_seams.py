"""Combinations of several failures in the field."""

import asyncio
import gzip
import time
from collections import Counter
from typing import Any

import pytest
from pamqp.commands import Basic
from pydantic import SecretStr

from tests.application import Recorder, running
from tests.client import Client
from tests.consumers import collector
from tests.faults.test_field_unreachable import WITHOUT, name_of, send_anew
from tests.rabbit import PrivateRabbit, QueueState
from tests.records import errors, fields
from tests.tampering_proxy import Tampering
from tests.waiting import eventually
from workerkit import Action, AMQPConsumer, AMQPMessage, Binding, Publisher, Queue, RetryPolicy
from workerkit.amqp.acks import Acks
from workerkit.amqp.binding import Bindings
from workerkit.amqp.declare import Created
from workerkit.amqp.incoming import Oversized
from workerkit.amqp.session import connect
from workerkit.config.connections import AMQPSettings
from workerkit.delivery import Outcome
from workerkit.errors import InvalidBody
from workerkit.observe import Settled
from workerkit.testing.records import Record

BASIC_ACK = b"\x00\x3c\x00\x50"
CONNECTION_CLOSE_OK = b"\x00\x0a\x00\x33"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fr1_settled_messages_of_a_cancelled_batch_are_not_requeued(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    kind: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch is acknowledged in part, and the rest is retried: a stop requeues only the rest."""
    started = asyncio.Event()

    class Batcher(AMQPConsumer):
        queues = [Queue("orders", kind)]
        batch_size = 2
        retry = RetryPolicy(delays=(0,))

        async def handle(self, messages: list[AMQPMessage[bytes]]) -> None:
            if messages[0].attempt == 2:
                started.set()
                await asyncio.Event().wait()
            for message in messages:
                if message.body == b"bad":
                    message.retry()

    recorder = Recorder()
    await client.declare("orders", x_queue_type=kind)
    await client.send("orders", b"good", b"bad")
    async with running(url, Batcher, recorder=recorder, shutdown_grace=0.1):
        await started.wait()
    assert errors(caplog) == []
    assert recorder.actions == ["ack", "retry"]
    await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(1, 0, 0))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("retry", [None, RetryPolicy(delays=(0.2,))], ids=["buried", "retried"])
async def test_fr7_a_copied_message_without_ack_is_not_handled_again(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, kind: Any, retry: Any
) -> None:
    """The handler blocks for longer than the heartbeat allows, and raises.

    The copy is confirmed, but the ack is lost. Earlier, each redelivery of the original made one
    more copy.
    """
    runs: Counter[int] = Counter()

    class Blocking(AMQPConsumer):
        queues = [Queue("orders", kind)]
        on_exception = Action.DEAD_LETTER

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            runs[message.attempt] += 1
            _block(5.0)
            raise KeyError("no")

    Blocking.retry = retry
    amqp = {"default": {"url": url, "heartbeat": 1}}
    async with running(url, Blocking, amqp=amqp):
        await client.send("orders", b"a")
        await eventually(lambda: rabbit.queues(vhost)["orders.dlq"].ready, 60.0)
        await eventually(lambda: _left(rabbit, vhost) == 0, 60.0)
        dead = rabbit.queues(vhost)["orders.dlq"].ready

    assert set(runs) == ({1, 2} if retry else {1})
    # One for each call whose copy may have been lost with its connection.
    assert dead <= sum(runs.values())


def _block(seconds: float) -> None:
    """Block the event loop."""
    time.sleep(seconds)


def _left(rabbit: PrivateRabbit, vhost: str) -> int:
    """Return the messages in all queues except that for dead letters."""
    states = rabbit.queues(vhost)
    return sum(each.ready + each.unacked for name, each in states.items() if name != "orders.dlq")


async def test_fr9_one_task_retries_a_refused_binding(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue without its dead-letter queue is set up every two seconds: each set-up added one."""
    await client.declare("orders")
    bindings = Bindings("Orders")
    queue = Queue("orders", bindings=[Binding("missing")])
    session = await connect(AMQPSettings(url=SecretStr(url)), None, "test")
    for _ in range(5):
        await bindings.create(session, queue, Created())
    await asyncio.sleep(0)
    trying = [each for each in asyncio.all_tasks() if "Bindings._retry" in repr(each.get_coro())]
    await session.close()
    await asyncio.wait(trying, timeout=10.0)

    assert len(trying) == 1
    assert trying[0].done()


async def test_fr21_a_body_that_is_too_large_when_decompressed(url: str, client: Client) -> None:
    """The limit for messages is also the limit for decompressed bodies."""
    recorder = Recorder()
    bodies: list[int] = []

    class Sizes(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, body: bytes) -> None:
            bodies.append(len(body))

    amqp = {"default": {"url": url, "max_message_size": 10_000}}
    zipped = Basic.Properties(content_encoding="gzip", message_id="zipped")
    async with running(url, Sizes, recorder=recorder, amqp=amqp):
        for size in (10_000, 10_001):
            await client.send("orders", gzip.compress(bytes(size)), properties=zipped)
        await eventually(lambda: len(recorder.settled) == 2)

    assert bodies == [10_000]
    [reason] = [str(each.outcome.error) for each in recorder.settled if each.outcome.error]
    assert "more than 10000 bytes when decoded" in reason


def test_fr21_a_test_reads_the_record_of_a_message_too_large() -> None:
    """The record of the testing tools has no body, and its observer does not fail."""
    acks = Acks(1, lambda data: True, lambda flush: None)
    large = Oversized(
        9, "LIMIT", queue="q", tag=1, envelope=b"\0\0\0", properties=b"\0\0", acks=acks
    )
    error = InvalidBody("too large")
    outcome = Outcome(Action.REJECT, error)

    record = Record.of(Settled("C", "q", large, outcome, Action.REJECT, 0.0, False))

    assert (record.action, record.body, record.error) == ("reject", None, error)


async def test_fr3_unanswered_background_requests_drop_no_connection(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Queues for retries and dead letters are checked one by one while the consumer consumes."""
    monkeypatch.setattr("workerkit.amqp.replies.RPC_DEADLINE", 1.0)
    queue = Queue("q", retry_type="classic")
    consumer, bodies = collector(queue, retry=RetryPolicy(delays=(1, 2, 3)))
    names = ["q.retry.1s", "q.retry.2s", "q.retry.3s", "q.dlq"]
    loop = asyncio.get_running_loop()
    async with running(url, consumer) as runner:
        for name in names:
            rabbit.eval(f"sys:suspend({_process(vhost, name)})")
        try:
            rabbit.close_all_connections("once more")
            await eventually(lambda: fields(caplog, WITHOUT))
            await eventually(lambda: runner.ready)
            began = loop.time()
            await eventually(lambda: loop.time() - began > 6.0)
        finally:
            for name in names:
                rabbit.eval(f"sys:resume({_process(vhost, name)})")
        await send_anew(rabbit, vhost, b"a")
        await eventually(lambda: bodies == [b"a"])

    assert not fields(caplog, "connection dropped")


def _process(vhost: str, queue: str) -> str:
    """An expression for the process of a classic queue."""
    found = f"element(2, {{ok, Queue}} = rabbit_amqqueue:lookup({name_of(vhost, queue)}))"
    return f"amqqueue:get_pid({found})"


async def test_fr1_a_stop_is_clean_if_no_copy_is_confirmed(
    rabbit: PrivateRabbit, url: str, client: Client
) -> None:
    """The broker replies to everything except publishes and the close of a connection."""
    started = asyncio.Event()

    class Endless(AMQPConsumer):
        queues = [Queue("orders", "quorum")]

        async def handle(self, body: bytes) -> None:
            started.set()
            await asyncio.Event().wait()

    def without_confirms(frame: bytes) -> bytes:
        return b"" if frame[7:11] in (BASIC_ACK, CONNECTION_CLOSE_OK) else frame

    await client.declare("orders", x_queue_type="quorum")
    async with (
        Tampering(rabbit.port) as proxy,
        # It raises what would make a process exit with 1.
        running(proxy.url(url), Endless, shutdown_grace=0.1),
    ):
        await client.send("orders", b"a")
        await started.wait()
        proxy.change = without_confirms
    letter = await client.take("orders")

    assert letter.body == b"a"


async def test_fr1_a_stop_waits_for_copies_although_no_handler_is_running(
    url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are requeued within the grace period, and the broker counts no failure."""
    gate, failed = asyncio.Event(), asyncio.Event()
    send = Publisher.send

    async def gated(*args: Any, **more: Any) -> str:
        await gate.wait()
        return await send(*args, **more)

    class Failing(AMQPConsumer):
        queues = [Queue("orders", "quorum")]

        async def handle(self, body: bytes) -> None:
            failed.set()
            raise ValueError("no")

    await client.declare("orders", x_queue_type="quorum")
    async with running(url, Failing):
        monkeypatch.setattr(Publisher, "send", gated)
        await client.send("orders", b"a")
        await failed.wait()
        asyncio.get_running_loop().call_later(1.0, gate.set)
    letter = await client.take("orders")

    assert letter.body == b"a"
    assert not letter.headers.get("x-delivery-count")
