"""Tasks of taskiq, whose address and journal are variables of the environment."""

import os
from typing import Annotated

from taskiq import Context, SmartRetryMiddleware, TaskiqDepends
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from tests.clients.application import note

PREFIX = os.environ["QUEUE"]
broker = AioPikaBroker(
    f"{os.environ['AMQP_URL']}?heartbeat=10",
    exchange=Exchange(name=PREFIX),
    task_queues=[Queue(name=f"{PREFIX}.work", type=QueueType.CLASSIC, max_priority=5)],
    dead_letter_queue=Queue(name=f"{PREFIX}.dead"),  # Quorum queues are the default.
    delay_queue=Queue(name=f"{PREFIX}.delay"),
    reconnect_interval=0.2,
).with_middlewares(SmartRetryMiddleware(default_retry_count=3, default_delay=0.05))


@broker.task
async def add(a: int, b: int) -> None:
    """Write a result."""
    note(f"add {a + b}")


@broker.task(retry_on_error=True)
async def flaky(name: str, context: Annotated[Context, TaskiqDepends()]) -> None:
    """Fail once."""
    retries = int(context.message.labels.get("_retries", 0))
    note(f"flaky {name} {retries}")
    if not retries:
        raise RuntimeError(name)
