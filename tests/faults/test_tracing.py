"""Traces across RabbitMQ: a retry waits there, a dead letter stays there, a replay comes back."""

import asyncio
from typing import Any

from pamqp.commands import Basic

from tests.application import running
from tests.client import Client
from tests.command import workerkit
from tests.tracing import ids, parent_of, recorded
from tests.waiting import eventually
from workerkit import AMQPConsumer, AMQPMessage, Queue, RetryPolicy

TRACE, PRODUCER = "a1" * 16, "b2" * 8
SENT: dict[str, Any] = {
    "traceparent": f"00-{TRACE}-{PRODUCER}-01",
    "tracestate": "vendor=1",
    "baggage": "tenant=acme",
}


async def test_attempts_dead_letter_and_replay_are_one_trace(
    url: str, client: Client, tmp_path: Any
) -> None:
    """Each span is a child of the one before, across waits, processes and the command."""
    seen: list[dict[str, Any]] = []

    class Orders(AMQPConsumer):
        queues = [Queue("orders")]
        retry = RetryPolicy(delays=(0.2,), jitter=0)

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(message.headers)
            if len(seen) < 3:
                raise KeyError("not yet")

    with recorded() as spans:
        async with running(url, Orders):
            await client.send("orders", b"1", properties=Basic.Properties(headers=SENT))
            await eventually(lambda: spans.named("dead_letter orders"))
            done = await asyncio.to_thread(
                workerkit, "dead-letters", "replay", url, "orders", "--yes", cwd=tmp_path
            )
            assert done.returncode == 0, done.stderr
            await eventually(lambda: len(seen) == 3 and len(spans.all) == 5)

    first, second, third = spans.named("process orders")
    retry, letter = spans.one("retry orders"), spans.one("dead_letter orders")
    assert parent_of(first) == (int(TRACE, 16), int(PRODUCER, 16))
    assert parent_of(retry) == ids(first)
    assert parent_of(second) == ids(retry)
    assert parent_of(letter) == ids(second)
    assert parent_of(third) == ids(letter)
    assert seen[2]["traceparent"] == f"00-{TRACE}-{ids(letter)[1]:016x}-01"
    assert (seen[2]["tracestate"], seen[2]["baggage"]) == ("vendor=1", "tenant=acme")


async def test_a_requeue_by_a_copy_goes_on_in_the_trace(url: str, client: Client) -> None:
    """The copy for the same queue has the context of its span, and no stale one."""
    seen: list[dict[str, Any]] = []

    class Orders(AMQPConsumer):
        queues = [Queue("orders", type="quorum")]

        async def handle(self, message: AMQPMessage[bytes]) -> None:
            seen.append(message.headers)
            if len(seen) == 1:
                message.reject(requeue=True)

    with recorded() as spans:
        async with running(url, Orders):
            await client.send("orders", b"1", properties=Basic.Properties(headers=SENT))
            await eventually(lambda: len(seen) == 2)

    copies = spans.named("requeue orders")
    parents = [parent_of(each) for each in spans.named("process orders")]
    # From RabbitMQ 4.3 on, no copy is needed: the broker delivers the same message again.
    assert parents[1] == (ids(copies[0]) if copies else parents[0])
