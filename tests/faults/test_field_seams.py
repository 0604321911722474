"""Where what was built for one fault in the field meets what was built for another."""

import asyncio
from typing import Any

import pytest

from tests.application import Recorder, running
from tests.client import Client
from tests.rabbit import PrivateRabbit
from tests.records import errors
from workerkit import AMQPConsumer, AMQPMessage, Queue, RetryPolicy


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_fr1_what_a_cancelled_batch_has_settled_does_not_go_back(
    rabbit: PrivateRabbit,
    vhost: str,
    url: str,
    client: Client,
    kind: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch is acknowledged in part, and tries the rest again: only that goes back at a stop."""
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
    state = rabbit.queues(vhost)["orders"]
    assert (state.ready, state.unacked) == (1, 0)
