"""Faults of `receive` and `settle`: none ends a consumer silently, or handles without a pause."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dependency_injector import providers

from tests.application import Recorder, container_of, package_of
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import (
    RunError,
    Runner,
    SimpleConsumer,
    SimpleDelivery,
    SimpleOptions,
    SimpleTransport,
)
from workerkit.health import State
from workerkit.transport import Backoff, Context, Outcome


class QueueConsumer(SimpleConsumer, abstract=True):
    """Handles the deliveries of a queue in memory."""


class QueueTransport(SimpleTransport):
    """Receives from a queue in memory."""

    kind = "queue"

    def __init__(self, *bodies: bytes) -> None:
        super().__init__()
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.received = 0
        self.settled: list[bytes] = []
        for body in bodies:
            self.queue.put_nowait(SimpleDelivery(body))

    async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
        """Take deliveries off the queue."""
        self.received += 1
        while True:
            yield await self.queue.get()

    async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
        """Note what is settled."""
        self.settled.append(delivery.raw)


def application(
    transport: SimpleTransport, attributes: dict[str, Any] | None = None, **settings: Any
) -> tuple[Runner, Recorder]:
    """A runner with one consumer of *transport*."""

    async def handle(self: SimpleConsumer, body: bytes) -> None: ...

    namespace = {"__module__": __name__, "concurrency": 1, "handle": handle, **(attributes or {})}
    consumer = type("Queued", (QueueConsumer,), namespace)
    recorder = Recorder()
    container = container_of("amqp://127.0.0.1:1/", recorder, **settings)
    extra = providers.Dict({QueueConsumer: providers.Object(transport)})
    container.extra_transports.override(extra)
    return Runner(container, packages=[package_of(consumer)]), recorder


async def test_a_cancellation_inside_receive_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and `receive` is called again."""

    class Cancelled(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
            if not self.received:
                self.received += 1
                raise asyncio.CancelledError("as a client library does")
            async for each in super().receive(options):
                yield each

    transport = Cancelled(b"1")
    runner, _ = application(transport)
    async with runner.running():
        await eventually(lambda: transport.settled)

    assert errors(caplog) == ["cannot receive"]
    [record] = fields(caplog, "cannot receive")
    assert "receive was cancelled from inside" in str(record["exc_info"])


async def test_a_task_that_receive_cancels_by_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """It is a failure as well if `receive` cancels the task that it runs in."""

    class Cancelling(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
            if not self.received:
                self.received += 1
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            async for each in super().receive(options):
                yield each

    transport = Cancelling(b"1")
    runner, _ = application(transport)
    async with runner.running():
        await eventually(lambda: transport.settled)

    assert errors(caplog) == ["cannot receive"]


async def test_a_cancellation_inside_settle_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The delivery is lost, and the worker handles the next one."""

    class Cancelled(QueueTransport):
        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            if delivery.raw == b"1":
                raise asyncio.CancelledError("as a client library does")
            await super().settle(delivery, outcome)

    transport = Cancelled(b"1", b"2")
    runner, recorder = application(transport)
    async with runner.running():
        await eventually(lambda: transport.settled)

    assert recorder.actions == ["lost", "ack"]
    assert errors(caplog) == ["cannot settle: the source has to redeliver"]


@pytest.mark.parametrize("where", ["receive", "settle"])
async def test_an_exit_stops_the_process_cleanly(where: str) -> None:
    """As an exit in a handler does: the process drains, and does not end by itself."""
    closed: list[bool] = []

    class Exiting(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
            if where == "receive":
                raise SystemExit(3)
            async for each in super().receive(options):
                yield each

        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            raise SystemExit(3)

        async def closed(self) -> None:
            closed.append(True)

    runner, _ = application(Exiting(b"1"))
    with pytest.raises(RunError, match=f"Queued: {where} raised SystemExit: 3"):
        async with runner.running():
            await eventually(lambda: runner.crashed)

    assert closed == [True]


async def test_a_kept_task_that_is_cancelled_by_mistake_stops_the_process() -> None:
    """One that was cancelled, though it was not meant to end, is a crash."""

    class Keeping(QueueTransport):
        async def open(self, context: Context) -> None:
            async def poll() -> None:
                raise asyncio.CancelledError

            self.poll = context.keep(poll(), "poll")

    runner, _ = application(Keeping())
    with pytest.raises(RunError, match="poll was cancelled from inside"):
        async with runner.running():
            await eventually(lambda: runner.crashed)


async def test_failures_to_settle_are_paced() -> None:
    """A source that redelivers at once gets a pause after each failure; a success ends that."""

    class Failing(QueueTransport):
        failing = True
        attempts = 0

        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            self.attempts += 1
            if self.failing:
                self.queue.put_nowait(SimpleDelivery(delivery.raw))
                raise OSError("the disk is full")
            await super().settle(delivery, outcome)

    transport = Failing(b"1")
    runner, _ = application(transport)
    async with runner.running():
        await eventually(lambda: transport.attempts == 2)
        for _ in range(100):
            await asyncio.sleep(0)
        attempts = transport.attempts
        transport.failing = False
        transport.skip_waits()
        await eventually(lambda: transport.settled)

    assert attempts == 2


async def test_stopping_ends_the_pause_after_a_failure_to_settle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process does not wait for it."""
    monkeypatch.setattr(Backoff, "next", lambda self: 60.0)

    class Failing(QueueTransport):
        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            raise OSError("the disk is full")

    runner, recorder = application(Failing(b"1"), shutdown_grace=60.0)
    async with asyncio.timeout(20), runner.running():
        await eventually(lambda: recorder.settled)

    assert recorder.actions == ["lost"]


async def test_a_receive_that_never_waits_does_not_block_the_loop() -> None:
    """After each None others get their turn, and the process can stop."""

    class Endless(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
            while True:
                self.received += 1
                assert self.received < 1_000_000, "nothing else runs"
                yield None

    transport = Endless()
    runner, _ = application(transport)
    async with runner.running():
        await eventually(lambda: runner.ready)

    assert transport.received < 1_000_000


async def test_nothing_is_received_while_stopping() -> None:
    """What `receive` yields after it swallowed the cancellation stays with the source."""
    gate = asyncio.Event()

    class Swallowing(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
            yield None
            while True:
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    self.received += 1
                yield SimpleDelivery(b"late")

    transport = Swallowing()
    runner, recorder = application(transport)
    async with runner.running():
        await eventually(lambda: runner.ready)
        health = runner.health[0]

    assert transport.received == 1
    assert recorder.settled == []
    assert health.state is State.STOPPING


@pytest.mark.parametrize(("stable_after", "attempts"), [(10.0, [1, 2]), (0.0, [1, 1])])
async def test_pauses_grow_until_a_connection_was_stable(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stable_after: float,
    attempts: list[int],
) -> None:
    """A connection that opens and breaks at once is no success."""
    monkeypatch.setattr("workerkit.simple_receiver.STABLE_AFTER", stable_after)

    class Breaking(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[SimpleDelivery | None]:
            yield None
            raise ConnectionError("the server went away")

    runner, _ = application(Breaking())
    async with runner.running():
        await eventually(lambda: len(fields(caplog, "cannot receive")) == 2)

    assert [each["attempt"] for each in fields(caplog, "cannot receive")] == attempts


async def test_what_is_no_delivery_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """The error names the transport, what it yielded, and what is right."""

    class Raw(QueueTransport):
        async def receive(self, options: SimpleOptions) -> AsyncIterator[Any]:
            if not self.received:
                self.received += 1
                yield b"raw"
            async for each in super().receive(options):
                yield each

    transport = Raw(b"1")
    runner, _ = application(transport)
    async with runner.running():
        await eventually(lambda: transport.settled)

    [record] = fields(caplog, "cannot receive")
    assert "Raw.receive yielded an object of bytes" in str(record["exc_info"])
    assert "a Delivery, such as SimpleDelivery, or None" in str(record["exc_info"])


async def test_a_delivery_that_is_yielded_again_begins_another_attempt() -> None:
    """Also if the transport forgot to call `again`: the first decision is not used twice."""
    seen: list[tuple[int, object]] = []

    class Forgetful(QueueTransport):
        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            if not self.settled:
                self.queue.put_nowait(delivery)
            await super().settle(delivery, outcome)

    async def handle(self: SimpleConsumer, delivery: SimpleDelivery) -> None:
        seen.append((delivery.attempt, delivery.fate))

    transport = Forgetful(b"1")
    runner, _ = application(transport, {"handle": handle})
    async with runner.running():
        await eventually(lambda: len(transport.settled) == 2)

    assert seen == [(1, None), (2, None)]


async def test_a_settle_that_hangs_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Once, after the timeout of the consumer; the worker waits for it."""
    gate = asyncio.Event()
    hanging = "settle takes longer than the timeout of the consumer"

    class Hanging(QueueTransport):
        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            await gate.wait()
            await super().settle(delivery, outcome)

    transport = Hanging(b"1")
    runner, recorder = application(transport, {"timeout": 0.05})
    async with runner.running():
        await eventually(lambda: fields(caplog, hanging))
        gate.set()
        await eventually(lambda: recorder.settled)

    [record] = fields(caplog, hanging)
    assert record["levelname"] == "WARNING"
    assert (record["consumer"], record["timeout"], record["action"]) == ("Queued", 0.05, "ack")
    assert recorder.actions == ["ack"]


async def test_a_success_in_the_same_batch_does_not_end_the_pause() -> None:
    """One delivery that cannot be settled is redelivered after a pause."""

    class Failing(QueueTransport):
        attempts = 0

        async def settle(self, delivery: SimpleDelivery, outcome: Outcome) -> None:
            if delivery.raw == b"bad":
                self.attempts += 1
                self.queue.put_nowait(SimpleDelivery(b"bad"))
                self.queue.put_nowait(SimpleDelivery(b"good"))
                raise OSError("the disk is full")
            await super().settle(delivery, outcome)

    async def handle(self: SimpleConsumer, bodies: list[bytes]) -> None: ...

    transport = Failing(b"bad", b"good")
    runner, _ = application(transport, {"handle": handle, "batch_size": 2, "batch_interval": 60})
    async with runner.running():
        await eventually(lambda: transport.settled)
        for _ in range(100):
            await asyncio.sleep(0)
        attempts = transport.attempts

    assert attempts == 1
