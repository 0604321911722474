"""D2, H2, S5: a failed `asyncio.TaskGroup` is a failed call, and the worker continues.

Up to Python 3.12 such a group leaves a cancellation of the handler's own task behind, which looks
like that of a process that stops.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.rabbit import PrivateRabbit, QueueState
from tests.serving import serving
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import AMQPConsumer, HTTPView, PeriodicTask, RetryPolicy, SSEEvent
from workerkit.testing import sse_server


async def group(error: Exception) -> None:
    """Raise the exception of a group in which one task fails."""

    async def fail() -> None:
        await asyncio.sleep(0.001)
        raise error

    async with asyncio.TaskGroup() as children:
        children.create_task(fail())
        children.create_task(asyncio.sleep(60))


async def caught(error: Exception) -> None:
    """Do the same, and continue."""
    try:
        await group(error)
    except* ValueError:
        pass


async def by_itself(error: Exception) -> None:
    """Cancel the current task."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize("fail", [group, by_itself])
async def test_d2_a_group_that_fails_has_its_attempts(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client, fail: Callable[..., Any]
) -> None:
    """D2: it is retried and dead-lettered like any failure, and other messages are handled."""
    attempts: list[int] = []
    handled: list[bytes] = []

    class Fanout(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        retry = RetryPolicy(delays=(0, 0.1), jitter=0)

        async def handle(self, body: bytes) -> None:
            if body == b"bad":
                attempts.append(len(handled))
                await fail(ValueError("child"))
            handled.append(body)

    async with running(url, Fanout):
        await client.send("orders", b"bad", b"good")
        letter = await client.take("orders.dlq")
        await client.send("orders", b"fine")
        await eventually(lambda: handled == [b"good", b"fine"])
        await eventually(lambda: rabbit.queues(vhost)["orders"] == QueueState(0, 0, 1))

    assert len(attempts) == 3
    assert letter.body == b"bad"


async def test_d2_a_group_whose_failure_is_caught(url: str, client: Client) -> None:
    """Each message is handled, and the worker continues."""
    recorder = Recorder()

    class Tolerant(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1

        async def handle(self, body: bytes) -> None:
            await caught(ValueError("child"))
            task = asyncio.current_task()
            assert task is not None
            # The cancellation is removed before the next message.
            assert task.cancelling() <= 1

    async with running(url, Tolerant, recorder=recorder):
        await client.send("orders", *[b"a"] * 3)
        await eventually(lambda: recorder.actions == ["ack"] * 3)


async def test_d2_a_batch_whose_group_fails(url: str, client: Client) -> None:
    """The worker handles the next batch."""
    recorder = Recorder()

    class Batcher(AMQPConsumer):
        queues = ["orders"]
        batch_size = 2
        retry = RetryPolicy(delays=(0,))

        async def handle(self, bodies: list[bytes]) -> None:
            await group(ValueError("child"))

    async with running(url, Batcher, recorder=recorder):
        await client.send("orders", *[b"a"] * 4)
        for _ in range(4):
            await client.take("orders.dlq")

    assert sorted(recorder.actions) == ["dead_letter"] * 4 + ["retry"] * 4


async def test_s5_an_event_whose_group_fails() -> None:
    """S5: the event is retried, and the stream continues."""
    recorder = Recorder()

    async def fail(event: SSEEvent[str]) -> None:
        if event.body == "bad":
            await group(ValueError("child"))

    consumer, handled = collector(before=fail, retry=RetryPolicy(delays=(0,)))
    async with sse_server() as server:
        for body in ("bad", "good"):
            await server.send(body)
        async with consuming(server, consumer, recorder=recorder):
            await eventually(lambda: handled == ["good"])

    assert recorder.actions == ["retry", "reject", "ack"]


async def test_h2_a_view_whose_group_fails() -> None:
    """H2: 500, and the connection stays usable."""

    class Gathering(HTTPView):
        routes = ["/"]

        async def get(self, fine: bool = False) -> str:
            if not fine:
                await group(ValueError("child"))
            return "fine"

    async with serving(Gathering) as client:
        statuses = [(await client.get(f"/?fine={fine}")).status for fine in (0, 0, 1)]

    assert statuses == [500, 500, 200]


async def test_a_periodic_task_whose_group_fails(url: str) -> None:
    """It is a failure of each call."""
    recorder = Recorder()

    class Ticking(PeriodicTask):
        every = 0.05

        async def handle(self) -> None:
            await group(ValueError("child"))

    async with running(url, Ticking, recorder=recorder):
        await eventually(lambda: len(recorder.settled) >= 2)

    assert set(recorder.actions) == {"reject"}
    assert isinstance(recorder.settled[0].outcome.error, ExceptionGroup)
