"""C4 and C6: handlers that take longer than the broker waits, and those that block the loop."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.application import Recorder, running
from tests.client import connected
from tests.command import running as process
from tests.command import write_package
from tests.rabbit import PrivateRabbit, QueueState, missing
from tests.records import errors, fields
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, PeriodicTask

TOO_LONG = "timeout is longer than the broker waits for an acknowledgement"
OVERDUE = "handler exceeds the broker's consumer_timeout: its message is redelivered"
BLOCKED = "the event loop is blocked: nothing else of this process runs"
CONSUMER_TIMEOUT = 0.1
THE_BROKERS = 1.0


@pytest.fixture(scope="module")
def impatient() -> Iterator[PrivateRabbit]:
    """A node that requeues unacknowledged messages after a second.

    The settings of the workers have a shorter time, because workers count from the start of a
    handler: one that starts late would not be detected otherwise.
    """
    assert missing() is None
    with PrivateRabbit() as node:
        node.eval(
            f"application:set_env(rabbit, consumer_timeout, {round(1000 * THE_BROKERS)}),"
            " application:set_env(rabbit, channel_tick_interval, 100)"
        )
        yield node


# C4


@pytest.mark.parametrize(
    ("timeout", "consumer_timeout", "warned"),
    [(1800.0, 1800.0, False), (1801.0, 1800.0, True), (None, 1800.0, True), (20.0, 10.0, True)],
)
async def test_c4_a_timeout_longer_than_that_of_the_broker_is_a_warning(
    url: str,
    caplog: pytest.LogCaptureFixture,
    timeout: float | None,
    consumer_timeout: float,
    warned: bool,
) -> None:
    """One WARNING at the start, with both numbers."""

    async def handle(self: AMQPConsumer, body: bytes) -> None: ...

    attributes = {"queues": ["a", "b"], "timeout": timeout, "handle": handle}
    slow = type("Slow", (AMQPConsumer,), attributes)
    async with running(url, slow, consumer_timeout=consumer_timeout):
        warnings = fields(caplog, TOO_LONG)

    expected = [("Slow", logging.WARNING, timeout, consumer_timeout)] if warned else []
    assert expected == [
        (each["consumer"], each["levelno"], each["timeout"], each["consumer_timeout"])
        for each in warnings
    ]


async def test_c4_a_message_that_takes_too_long_is_dead_lettered_after_three_times(
    impatient: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """An ERROR each time, then it is dead-lettered; everything else is handled."""
    recorder = Recorder()
    runs: Counter[bytes] = Counter()

    class Slow(AMQPConsumer):
        queues = ["slow", "fast"]
        concurrency = 4

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            runs[message.body] += 1
            if message.body == b"slow":
                await asyncio.sleep(2 * THE_BROKERS)
                raise KeyError("in the end")

    async with (
        running(impatient.url(), Slow, recorder=recorder, consumer_timeout=CONSUMER_TIMEOUT),
        connected(impatient.url()) as client,
    ):
        await client.send("slow", b"slow", *[b"beside %d" % number for number in range(10)])
        for number in range(10):
            await client.send("fast", b"fast %d" % number)
        letter = await client.take("slow.dlq", 20.0)
        await eventually(lambda: impatient.queues()["slow"] == QueueState(0, 0, 1))
        await eventually(lambda: impatient.queues()["fast"] == QueueState(0, 0, 1))
        await client.send("slow", b"afterwards")
        await eventually(lambda: runs[b"afterwards"] == 1)

    overdue = fields(caplog, OVERDUE)
    assert letter.body == b"slow"
    assert letter.evidence["error"] == "HandlerTimeout"
    assert "0.1 s" in letter.evidence["reason"]
    assert 3 <= runs[b"slow"] <= 4
    assert [each["times"] for each in overdue][:3] == [1, 2, 3]
    assert {each["consumer"] for each in overdue} == {"Slow"}
    assert all("'slow'" in each["delivery"] for each in overdue)
    assert all(each["consumer_timeout"] == CONSUMER_TIMEOUT for each in overdue)
    assert all(each["seconds"] >= CONSUMER_TIMEOUT for each in overdue)
    assert all(runs[b"beside %d" % number] == 1 for number in range(10))
    assert all(runs[b"fast %d" % number] == 1 for number in range(10))


async def test_c4_a_late_success_is_a_success(
    impatient: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that was handled is acknowledged when it is redelivered, without another call."""
    recorder = Recorder()
    runs = 0

    class Late(AMQPConsumer):
        queues = ["late"]
        concurrency = 1

        async def handle(self, body: bytes) -> None:
            nonlocal runs
            runs += 1
            await eventually(lambda: fields(caplog, OVERDUE))

    async with (
        running(impatient.url(), Late, recorder=recorder, consumer_timeout=CONSUMER_TIMEOUT),
        connected(impatient.url()) as client,
    ):
        await client.send("late", b"late")
        await eventually(lambda: recorder.actions[-1:] == ["ack"], 20.0)
        await eventually(lambda: impatient.queues()["late"] == QueueState(0, 0, 1))
        left = impatient.queues()["late.dlq"].ready

    assert recorder.actions == ["lost", "ack"]
    assert (runs, left) == (1, 0)
    assert len(fields(caplog, OVERDUE)) == 1


async def test_c4_a_handler_that_does_not_end_is_counted_as_well(
    impatient: PrivateRabbit,
) -> None:
    """Its message is not handled again while the first call still runs."""
    runs = 0
    gate = asyncio.Event()

    class Endless(AMQPConsumer):
        queues = ["endless"]
        concurrency = 16

        async def handle(self, body: bytes) -> None:
            nonlocal runs
            runs += 1
            await gate.wait()

    async with (
        running(impatient.url(), Endless, consumer_timeout=CONSUMER_TIMEOUT),
        connected(impatient.url()) as client,
    ):
        await client.send("endless", b"a")
        try:
            letter = await client.take("endless.dlq", 20.0)
        finally:
            seen = runs
            gate.set()

    assert letter.body == b"a"
    assert seen == 1


async def test_c4_channels_that_are_lost_together_count_once(
    impatient: PrivateRabbit, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss of a channel counts for its own messages only."""
    names = [f"together {number}" for number in range(5)]
    runs: Counter[str] = Counter()
    gate = asyncio.Event()

    class Together(AMQPConsumer):
        queues = names
        concurrency = 4 * len(names)

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            runs[message.queue] += 1
            await gate.wait()

    async with (
        running(impatient.url(), Together, consumer_timeout=CONSUMER_TIMEOUT),
        connected(impatient.url()) as client,
    ):
        for name in names:
            await client.send(name, b"a")
        try:
            for name in names:
                await client.take(f"{name}.dlq", 20.0)
        finally:
            seen = dict(runs)
            gate.set()

    assert seen == dict.fromkeys(names, 1)
    for name in names:
        records = [each for each in fields(caplog, OVERDUE) if repr(name) in each["delivery"]]
        assert [each["times"] for each in records] == [1, 2, 3]


# C6


async def test_c6_a_handler_that_blocks_the_loop_is_named(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One ERROR for the whole time, with the task and the stack of the blocking call."""
    recorder = Recorder()

    class Blocking(AMQPConsumer):
        queues = ["orders"]
        concurrency = 1

        async def handle(self, body: bytes) -> None:
            _compute(lambda: fields(caplog, BLOCKED))
            _compute(lambda: False, 1.5)  # and no second one

    async with running(url, Blocking, recorder=recorder), connected(url) as client:
        await client.send("orders", b"a")
        await eventually(lambda: recorder.settled)

    [record] = fields(caplog, BLOCKED)
    assert record["levelno"] == logging.ERROR
    assert record["task"] == "Blocking worker 1"
    assert record["seconds"] >= 2.0
    assert "_compute" in record["stack"]
    assert "in handle" in record["stack"]
    assert "test_overdue.py" in record["stack"]
    assert recorder.actions == ["ack"]
    assert errors(caplog) == []


async def test_c6_each_time_is_reported_and_threads_do_not_count(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that blocks is reported each time; a handler in a thread does not block."""
    calls: list[int] = []
    threaded: list[bytes] = []

    class Computing(PeriodicTask):
        every = 0.1

        async def handle(self) -> None:
            calls.append(1)
            if len(calls) <= 2:
                _compute(lambda: len(fields(caplog, BLOCKED)) >= len(calls))

    class Sleeping(AMQPConsumer):
        queues = ["orders"]

        def handle(self, body: bytes) -> None:
            time.sleep(2.7)
            threaded.append(body)

    async with running(url, Sleeping), connected(url) as client:
        await client.send("orders", b"a")
        await eventually(lambda: threaded)
    alone = len(fields(caplog, BLOCKED))
    async with running(url, Computing):
        await eventually(lambda: len(calls) >= 3, 30.0)

    assert alone == 0
    assert [each["task"] for each in fields(caplog, BLOCKED)] == ["Computing task"] * 2


def _compute(enough: Callable[[], object], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not enough():
        pass


# C7


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt", "MemoryError"])
async def test_c7_other_handlers_finish_before_the_process_exits(
    rabbit: PrivateRabbit, vhost: str, tmp_path: Path, error: str
) -> None:
    """Running handlers finish, the message is requeued, and the exit code is not 0."""
    consumers = f"""
        import asyncio
        from workerkit import AMQPConsumer

        begun = asyncio.Event()

        class Other(AMQPConsumer):
            queues = ["others"]

            async def handle(self, body: str) -> None:
                print("begin", body, flush=True)
                begun.set()
                await asyncio.sleep(0.7)
                print("end", body, flush=True)

        class Leaving(AMQPConsumer):
            queues = ["work"]

            async def handle(self, body: str) -> None:
                await begun.wait()
                raise {error}
    """
    name = write_package(tmp_path, consumers=consumers)
    async with (
        process(name, cwd=tmp_path, WORKERKIT_AMQP__DEFAULT__URL=rabbit.url(vhost)) as app,
        connected(rabbit.url(vhost)) as client,
    ):
        own = ("work", "others")
        await eventually(lambda: sum(each.queue in own for each in rabbit.consumers(vhost)) == 2)
        await client.send("work", b"a")
        await client.send("others", b"b")
        code = await app.ended()

    await eventually(lambda: rabbit.queues(vhost)["work"] == QueueState(1, 0, 0))
    assert code not in {0, None}
    assert app.out == ["begin b", "end b"]
    await eventually(lambda: rabbit.queues(vhost)["others"] == QueueState(0, 0, 0))
    assert rabbit.queues(vhost)["work.dlq"].ready == 0
    assert error.partition("(")[0] in app.err[-1]
