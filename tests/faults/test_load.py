"""G. Load and time: limits, independent consumers, bodies of every size."""

import asyncio
import logging
import random
import threading
import time

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.consumers import collector
from tests.publishing import publishing
from tests.rabbit import PrivateRabbit
from tests.records import errors
from tests.waiting import eventually
from workerkit import AMQPConsumer

SIZES = [0, 1, 131_063, 131_064, 131_065, 131_072, 262_128, 400_000, 15_000_000]
"""Around the frames of 128 KiB, whose payload is 131,064 bytes."""


def _bodies() -> list[bytes]:
    source = random.Random(7)
    return [source.randbytes(size) for size in SIZES]


async def test_g1_as_many_handlers_as_allowed_run_and_never_more(url: str, client: Client) -> None:
    """The limit is reached if there is enough to do, and never exceeded."""
    recorder = Recorder()
    full = asyncio.Event()
    running_now = most = 0

    class Counting(AMQPConsumer):
        queues = ["a", "b"]
        concurrency = 5

        async def handle(self, body: bytes) -> None:
            nonlocal running_now, most
            running_now += 1
            most = max(most, running_now)
            if running_now == 5:
                full.set()
            await full.wait()
            await asyncio.sleep(0)
            running_now -= 1

    async with running(url, Counting, recorder=recorder):
        await client.send("a", *[b"x"] * 30)
        await client.send("b", *[b"x"] * 30)
        await eventually(lambda: len(recorder.settled) == 60)

    assert most == 5
    assert recorder.actions == ["ack"] * 60


async def test_g1_as_many_threads_as_allowed_run_and_never_more(url: str, client: Client) -> None:
    """The same for handlers that are not async."""
    recorder = Recorder()
    lock = threading.Lock()
    full = threading.Event()
    names: set[str] = set()
    running_now = most = 0

    class Counting(AMQPConsumer):
        queues = ["a"]
        concurrency = 4

        def handle(self, body: bytes) -> None:
            nonlocal running_now, most
            with lock:
                running_now += 1
                most = max(most, running_now)
                names.add(threading.current_thread().name)
                if running_now == 4:
                    full.set()
            full.wait(10.0)
            with lock:
                running_now -= 1

    async with running(url, Counting, recorder=recorder):
        await client.send("a", *[b"x"] * 40)
        await eventually(lambda: len(recorder.settled) == 40)

    assert most == 4
    assert len(names) == 4
    assert recorder.actions == ["ack"] * 40


async def test_g3_a_slow_message_delays_no_other(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Acks of the fast ones reach the broker within 100 ms, and the prefetch is not used up."""
    loop = asyncio.get_running_loop()
    recorder = Recorder()
    gate = asyncio.Event()

    class Mixed(AMQPConsumer):
        queues = ["orders"]
        concurrency = 2

        async def handle(self, body: bytes) -> None:
            if body == b"slow":
                await gate.wait()

    def only_the_slow_one_is_left() -> bool:
        queue = rabbit.queues(vhost)["orders"]
        return (queue.ready, queue.unacked) == (0, 1)

    latencies = []
    async with running(url, Mixed, recorder=recorder):
        await client.send("orders", b"slow")
        for count in range(100, 600, 100):
            await client.send("orders", *[b"fast"] * 100)
            await eventually(lambda: len(recorder.settled) == count)  # noqa: B023
            began = loop.time()
            await eventually(only_the_slow_one_is_left)
            latencies.append(loop.time() - began)
        gate.set()
        await eventually(lambda: rabbit.queues(vhost)["orders"].unacked == 0)

    assert min(latencies) < 0.5  # some of the others may have been the machine's
    assert recorder.actions == ["ack"] * 501
    assert recorder.settled[-1].delivery.raw == b"slow"


async def test_g3_handlers_that_never_await_do_not_block_the_loop(
    rabbit: PrivateRabbit, vhost: str, url: str, client: Client
) -> None:
    """Between short calls, timers, heartbeats and acks run at least every 100 ms."""
    recorder = Recorder()
    await client.declare("orders")
    await client.send("orders", *[b"x"] * 800)
    begun = asyncio.Event()

    class Computing(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1
        prefetch = 1_000

        async def handle(self, body: bytes) -> None:
            begun.set()
            until = time.perf_counter() + 0.0007
            while time.perf_counter() < until:
                pass

    longest = 0.0
    async with running(url, Computing, recorder=recorder, ready=False):
        await begun.wait()
        while len(recorder.settled) < 800:
            before = time.thread_time()  # which stands still while others have the processor
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)

    assert longest < 0.1


async def test_g4_bodies_of_every_size_are_consumed_intact_and_in_order(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """From empty to 15 MB, and near the size of a frame."""
    consumer, handled = collector("bodies", concurrency=1)
    bodies = _bodies()
    async with running(url, consumer):
        await client.send("bodies", *bodies)
        await eventually(lambda: len(handled) == len(bodies), 30.0)

    assert [len(body) for body in handled] == SIZES
    assert handled == bodies
    assert errors(caplog) == []


async def test_g4_bodies_of_every_size_are_published_intact_and_in_order(
    url: str, client: Client
) -> None:
    """A published body arrives byte for byte, with any split into frames."""
    await client.declare("bodies")
    bodies = _bodies()
    async with publishing(url) as publisher:
        for body in bodies:
            await publisher.publish(body, "bodies")
    received = [(await client.take("bodies")).body for _ in bodies]

    assert [len(body) for body in received] == SIZES
    assert received == bodies


async def test_g4_large_bodies_published_at_the_same_time_do_not_mix(
    url: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """No other frame is between the frames of a message."""
    caplog.set_level(logging.INFO, "workerkit")
    consumer, handled = collector("bodies", concurrency=4)
    bodies = [bytes([number]) * 1_000_000 for number in range(20)]
    async with running(url, consumer), publishing(url) as publisher:
        await asyncio.gather(*(publisher.publish(body, "bodies") for body in bodies))
        await eventually(lambda: len(handled) == len(bodies), 30.0)

    assert sorted(handled) == bodies
    assert errors(caplog) == []


async def test_g4_a_dead_letter_of_any_size_is_copied_intact(url: str, client: Client) -> None:
    """A large body that cannot be decoded keeps every byte."""

    class Reading(AMQPConsumer):
        queues = ["orders"]

        async def handle(self, order: dict[str, int]) -> None:
            """Never called."""

    body = random.Random(7).randbytes(5_000_000)
    async with running(url, Reading):
        await client.send("orders", body)
        letter = await client.take("orders.dlq")

    assert letter.body == body
