"""D5. Retries whose queue cannot accept them when they are due: they wait until it can."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.application import running
from tests.client import connected
from tests.rabbit import PrivateRabbit, QueueState, missing
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Queue, RetryPolicy

AGAIN = 0.5
DELAY = 4.0


@pytest.fixture(scope="module")
def eager() -> Iterator[PrivateRabbit]:
    """A node that repeats a transfer after half a second, instead of three minutes."""
    assert missing() is None
    with PrivateRabbit() as node:
        node.eval(
            "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, "
            f"{round(AGAIN * 1000)})"
        )
        yield node


async def test_d5_a_retry_waits_for_a_queue_that_is_full(eager: PrivateRabbit) -> None:
    """A queue that refuses messages while it is full gets the retry later."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Event()
    seen: list[tuple[bytes, int]] = []

    class Narrow(AMQPConsumer):
        queues = [Queue("narrow", max_length=1, overflow="reject-publish")]
        concurrency = prefetch = 1
        retry = RetryPolicy(delays=(DELAY,), jitter=0)

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append((message.body, message.attempt))
            if message.body == b"first" and message.attempt == 1:
                raise KeyError("no")
            await gate.wait()

    async with running(eager.url(), Narrow), connected(eager.url()) as client:
        await client.send("narrow", b"first")
        await eventually(lambda: seen == [(b"first", 1)])
        await client.send("narrow", b"second")
        await eventually(lambda: len(seen) == 2)
        await client.send("narrow", b"third")
        due = loop.time() + DELAY + AGAIN
        await eventually(lambda: loop.time() > due)
        gate.set()
        await eventually(lambda: (b"first", 2) in seen, 20.0)

    assert sorted(seen) == [(b"first", 1), (b"first", 2), (b"second", 1), (b"third", 1)]


async def test_d5_a_retry_waits_for_a_deleted_queue(eager: PrivateRabbit) -> None:
    """The queue is deleted while a message waits for its retry, and is declared again."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    class Gone(AMQPConsumer):
        queues = ["gone"]
        retry = RetryPolicy(delays=(DELAY,), jitter=0)

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(message.attempt)
            if message.attempt == 1:
                raise KeyError("no")

    async with running(eager.url(), Gone) as runner, connected(eager.url()) as client:
        await client.send("gone", b"only")
        await eventually(lambda: seen == [1] and eager.queues()["gone"] == QueueState(0, 0, 1))
        await client.delete("gone")
        due = loop.time() + DELAY + AGAIN
        await eventually(lambda: loop.time() > due)
        await client.declare("gone")
        await eventually(lambda: seen == [1, 2], 20.0)
        await eventually(lambda: runner.ready)
