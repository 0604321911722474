"""D2, D3, D5, D8, D9. Retries: how often, when, in which order, and what is kept meanwhile."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import Client
from workerkit import AMQPConsumer, AMQPMessage, Queue, RetryPolicy

Handle = Callable[[AMQPMessage[bytes]], Any]


def consumer(handle: Handle, *queues: str | Queue, **options: Any) -> type[AMQPConsumer]:
    """A consumer whose `handle` is *handle*."""

    async def call(self: AMQPConsumer, message: AMQPMessage[bytes]) -> None:
        handle(message)

    attributes = {"queues": list(queues or ["orders"]), "handle": call, **options}
    return type("Orders", (AMQPConsumer,), attributes)


def failing(seen: list[tuple[bytes, int, float]], *bodies: bytes) -> Handle:
    """Notes each call with its attempt and time, and raises for *bodies*, without any for all."""

    def handle(message: AMQPMessage[bytes]) -> None:
        now = asyncio.get_running_loop().time()
        seen.append((message.body, message.attempt, now))
        if not bodies or message.body in bodies:
            raise KeyError("no")

    return handle


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_d2_a_message_that_always_fails_gets_its_tries_and_is_dead_lettered(
    url: str, client: Client, kind: Any
) -> None:
    """Exactly the configured number of tries, spaced as configured; its neighbours flow."""
    seen: list[tuple[bytes, int, float]] = []
    policy = RetryPolicy(delays=(0, 0.3, 0.6), jitter=0)
    orders = consumer(failing(seen, b"bad"), Queue("orders", kind), retry=policy, concurrency=1)
    recorder = Recorder()
    async with running(url, orders, recorder=recorder):
        await client.send("orders", b"bad", b"good", b"fine")
        letter = await client.take("orders.dlq")

    calls = [(attempt, at) for body, attempt, at in seen if body == b"bad"]
    pauses = [round(later[1] - earlier[1], 1) for earlier, later in pairwise(calls)]
    assert [attempt for attempt, _ in calls] == [1, 2, 3, 4]
    assert pauses == pytest.approx([0.0, 0.3, 0.6], abs=0.15)
    assert [body for body, *_ in seen[:4]] == [b"bad", b"bad", b"good", b"fine"]
    assert recorder.actions == ["retry", "retry", "ack", "ack", "retry", "dead_letter"]
    assert letter.body == b"bad"
    assert letter.evidence["attempt"] == 4
    assert letter.evidence["error"] == "KeyError"
    assert letter.evidence["first-failed-at"] < letter.evidence["failed-at"]
