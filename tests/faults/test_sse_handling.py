"""Rows S5 and S7, and everything else that happens to an event after it arrived."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from tests.application import Recorder
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import (
    Action,
    InvalidBody,
    Reject,
    Retry,
    RetryPolicy,
    SSEConsumer,
    SSEEvent,
)
from workerkit.sse.cursor import MemoryCursors
from workerkit.testing import sse_server


async def reported(recorder: Recorder, count: int) -> list[tuple[str, str, int]]:
    """Return the observers' records once there are enough: data, action, attempt."""
    await eventually(lambda: len(recorder.settled) >= count, what=f"{recorder.settled}")
    return [(each.delivery.raw, each.action.value, attempt) for each, attempt in seen(recorder)]


def seen(recorder: Recorder) -> list[tuple[Any, int]]:
    """Return the records, each with its attempt, which the delivery keeps counting."""
    tries: dict[int, int] = {}
    found = []
    for each in recorder.settled:
        tries[id(each.delivery)] = tries.get(id(each.delivery), 0) + 1
        found.append((each, tries[id(each.delivery)]))
    return found


async def test_s5_retried_by_the_policy_in_order_then_skipped() -> None:
    """S5: a failing event has the attempts of the policy, while later events wait."""
    recorder, store = Recorder(), MemoryCursors()
    tries: list[tuple[str, int]] = []

    class Failing(SSEConsumer):
        connection = "server"
        routes = ["/events"]
        retry = RetryPolicy(delays=(0, 0.05), jitter=0)

        async def handle(self, event: SSEEvent[str]) -> None:
            tries.append((event.body, event.attempt))
            if event.body == "bad":
                raise ValueError("never")

    async with sse_server() as server:
        for body in ("a", "bad", "b"):
            await server.send(body)
        async with consuming(server, Failing, recorder=recorder, cursors=store):
            actions = await reported(recorder, 5)

    assert tries == [("a", 1), ("bad", 1), ("bad", 2), ("bad", 3), ("b", 1)]
    assert [each[:2] for each in actions] == [
        ("a", "ack"),
        ("bad", "retry"),
        ("bad", "retry"),
        ("bad", "reject"),
        ("b", "ack"),
    ]
    assert await store.load("Failing", "/events") == "3"


async def test_s5_requeued_after_a_pause_in_order() -> None:
    """S5: without a policy the event is handled again after a second, in order."""
    recorder = Recorder()
    failures = 1
    times: list[float] = []

    def fail(event: SSEEvent[str]) -> None:
        nonlocal failures
        if event.body == "bad":
            times.append(asyncio.get_running_loop().time())
        if event.body == "bad" and failures:
            failures -= 1
            raise ValueError("not yet")

    consumer, handled = collector(before=fail)
    async with sse_server() as server:
        for body in ("bad", "b", "c"):
            await server.send(body)
        async with consuming(server, consumer, recorder=recorder):
            await eventually(lambda: handled == ["bad", "b", "c"])

    assert [each.action for each in recorder.settled] == ["requeue", "ack", "ack", "ack"]
    assert 0.95 <= times[1] - times[0] < 5.0


@pytest.mark.parametrize(
    ("raised", "action"),
    [(Reject("no"), "reject"), (Retry(after=0), "retry"), (KeyError("fatal"), "reject")],
)
async def test_what_a_handler_raises(raised: Exception, action: str) -> None:
    """After `Reject` and a fatal error the event is skipped, after `Retry` tried again."""
    recorder = Recorder()

    def fail(event: SSEEvent[str]) -> None:
        if event.attempt == 1:
            raise raised

    policy = RetryPolicy(delays=(0, 0), fatal=(KeyError,))
    consumer, handled = collector(before=fail, retry=policy)
    async with sse_server() as server, consuming(server, consumer, recorder=recorder):
        await server.send("a")
        await server.send("b")
        await eventually(lambda: "b" in handled or len(recorder.settled) > 1)

    assert recorder.settled[0].action == action
    assert recorder.settled[0].outcome.error is raised


async def test_an_invalid_body_is_skipped() -> None:
    """`on_invalid` is REJECT: observers are notified, and the next event is handled."""
    recorder = Recorder()
    numbers: list[int] = []

    class Numbers(SSEConsumer):
        connection = "server"
        routes = ["/events"]
        max_event_size = 1_000

        async def handle(self, number: int) -> None:
            numbers.append(number)

    async with sse_server() as server, consuming(server, Numbers, recorder=recorder):
        for body in (1, "no number", "9" * 2_000, 2):
            await server.send(body)
        await eventually(lambda: numbers == [1, 2])

    assert recorder.actions == ["ack", "reject", "reject", "ack"]
    assert [type(each.outcome.error) for each in recorder.settled[1:3]] == [InvalidBody] * 2
    assert str(recorder.settled[2].outcome.error) == "the event is longer than max_event_size"


async def test_types_by_event_name() -> None:
    """Each event is decoded as the type of its name; other events are not handled."""

    class Info(BaseModel):
        version: int

    @dataclass
    class Success:
        version: int

    got: list[Any] = []

    class Deployments(SSEConsumer):
        connection = "server"
        routes = ["/events"]
        events = {"info": Info, "success": Success, "text": str, "raw": bytes}

        async def handle(self, event: SSEEvent[Info | Success | str | bytes]) -> None:
            got.append((event.name, event.body))

    async with sse_server() as server, consuming(server, Deployments):
        await server.send({"version": 1}, name="info")
        await server.send({"version": 2}, name="other")
        await server.send({"version": 3}, name="success")
        await server.send("4", name="text")
        await server.send("é", name="raw")
        await eventually(lambda: len(got) == 4)

    assert got == [
        ("info", Info(version=1)),
        ("success", Success(version=3)),
        ("text", "4"),
        ("raw", "é".encode()),
    ]


async def test_batches_and_the_outcome_of_each_event() -> None:
    """Events of a batch that fail are handled again, without the others."""
    recorder, store = Recorder(), MemoryCursors()
    batches: list[list[str]] = []

    class Audit(SSEConsumer):
        connection = "server"
        routes = ["/events"]
        batch_size, batch_interval = 3, 0.05
        retry = RetryPolicy(delays=(0,))

        async def handle(self, events: list[SSEEvent[str]]) -> None:
            batches.append([event.body for event in events])
            for event in events:
                if event.body == "2":
                    event.retry(after=0)
                if event.body == "3":
                    event.reject(requeue=False)

    async with sse_server() as server:
        for number in range(1, 5):
            await server.send(str(number))
        async with consuming(server, Audit, recorder=recorder, cursors=store):
            await eventually(lambda: len(recorder.settled) == 5)

    assert batches == [["1", "2", "3"], ["2"], ["4"]]
    assert recorder.actions == ["ack", "retry", "reject", "reject", "ack"]
    assert await store.load("Audit", "/events") == "4"


async def test_a_handler_in_a_thread() -> None:
    """`def handle` works as well."""
    bodies: list[bytes] = []

    class Sync(SSEConsumer):
        connection = "server"

        def handle(self, body: bytes) -> None:
            bodies.append(body)

    async with sse_server() as server, consuming(server, Sync):
        await server.send("a")
        await eventually(lambda: bodies == [b"a"])


async def test_concurrency_is_a_limit_for_all_streams_together() -> None:
    """With two streams and concurrency 2 there are never three calls."""
    running = highest = 0
    done = 0

    class Busy(SSEConsumer):
        connection = "server"
        routes = ["/a", "/b"]
        concurrency = 2

        async def handle(self, body: str) -> None:
            nonlocal running, highest, done
            running += 1
            highest = max(highest, running)
            await asyncio.sleep(0.002)
            running -= 1
            done += 1

    async with sse_server() as server, consuming(server, Busy):
        for number in range(40):
            await server.send(str(number))
        await eventually(lambda: done == 80)

    assert highest == 2


async def test_s7_a_fast_server_waits_for_a_slow_handler() -> None:
    """S7: while a handler is slow, reading pauses, so the server cannot send."""
    gate = asyncio.Event()
    consumer, handled = collector(before=lambda event: gate.wait())
    sent = 0

    async with sse_server() as server, consuming(server, consumer) as runner:

        async def flood() -> None:
            nonlocal sent
            for _ in range(2_000):
                await server.send("x" * 10_000)
                sent += 1

        flooding = asyncio.create_task(flood())
        last = -1

        async def stalled() -> bool:
            nonlocal last
            before, last = last, sent
            await asyncio.sleep(0.1)
            return before == sent > 0

        await eventually(stalled)
        # The kernel buffers the data of both sockets; the process holds a few chunks.
        held = sent
        assert runner.ready
        gate.set()
        await flooding
        await eventually(lambda: len(handled) == 2_000)

    assert held < 1_500


async def test_s7_memory_is_limited_behind_a_slow_event() -> None:
    """S7: behind an event that hangs, the number of unsettled events is limited."""
    gate = asyncio.Event()
    consumer, handled = collector(
        before=lambda event: gate.wait() if event.body == "0" else None, concurrency=4
    )

    async with sse_server() as server:
        await server.send("0")
        async with consuming(server, consumer) as runner:
            lines = b"".join(b"id: %d\ndata: x\n\n" % n for n in range(60_000))
            flooding = asyncio.create_task(server.raw(lines))
            await eventually(lambda: len(handled) > 9_000)
            before = 0

            async def stalled() -> bool:
                nonlocal before
                last, before = before, len(handled)
                await asyncio.sleep(0.1)
                return last == before

            await eventually(stalled)
            behind = len(handled)
            gate.set()
            await flooding
            await eventually(lambda: len(handled) == 60_001)
            assert runner.ready

    assert behind < 15_000


async def test_settled_by_the_handler_itself() -> None:
    """`accept` prevails over a later error; `reject()` has the event handled again."""
    recorder = Recorder()

    class Own(SSEConsumer):
        connection = "server"
        on_exception = Action.REJECT

        async def handle(self, event: SSEEvent[str]) -> None:
            if event.body == "accept":
                event.accept()
                raise ValueError("too late")
            if event.attempt == 1:
                event.reject()

    async with sse_server() as server, consuming(server, Own, recorder=recorder):
        await server.send("accept")
        await server.send("again")
        await eventually(lambda: len(recorder.settled) == 3)

    assert recorder.actions == ["ack", "requeue", "ack"]
