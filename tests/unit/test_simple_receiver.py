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
from workerkit.transport import Context, Outcome


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
    """It is a failure as well if `receive` cancels the task that it runs in; stopping still works."""

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

            context.keep(poll(), "poll")

    runner, _ = application(Keeping())
    with pytest.raises(RunError, match="poll was cancelled from inside"):
        async with runner.running():
            await eventually(lambda: runner.crashed)
