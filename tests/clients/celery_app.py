"""An application of Celery, whose address and journal are variables of the environment.

Each test imports this module anew. Shared tasks would be added to the applications of other tests.
"""

import os
from typing import Any

from celery import Celery, Task
from celery.exceptions import Reject
from kombu import Exchange, Queue
from kombu.common import Broadcast

from tests.clients.application import note

PREFIX = os.environ["QUEUE"]
KIND = os.environ.get("QUEUE_TYPE", "classic")
DEAD = Queue(f"{PREFIX}.dead", Exchange(f"{PREFIX}.dead", "fanout"), durable=True)
WORK = Queue(
    f"{PREFIX}.work",
    Exchange(f"{PREFIX}.work", "topic"),
    routing_key="work.#",
    queue_arguments={
        "x-queue-type": KIND,
        "x-dead-letter-exchange": f"{PREFIX}.dead",
        **({"x-max-priority": 5} if KIND == "classic" else {}),
    },
)

app = Celery("shop", broker=os.environ["AMQP_URL"], backend="rpc://")
app.conf.update(
    task_queues=[WORK, Broadcast(f"{PREFIX}.all")],
    task_default_queue=WORK.name,
    task_default_exchange=WORK.exchange.name,
    task_default_exchange_type="topic",
    task_default_routing_key="work.any",
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"confirm_publish": True},
    broker_heartbeat=10,
    broker_connection_retry_on_startup=True,
)


@app.task(shared=False)
def add(a: int, b: int) -> int:
    """Return a result through the reply queue."""
    return a + b


@app.task(bind=True, max_retries=3, shared=False)
def flaky(self: "Task[Any, Any]", number: int, countdown: float) -> int:
    """Fail once."""
    note(f"flaky {number} {self.request.retries}")
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    return number


@app.task(shared=False)
def refuse() -> None:
    """Go to the dead letters."""
    raise Reject("refused", requeue=False)


@app.task(bind=True, shared=False)
def requeued(self: "Task[Any, Any]") -> None:
    """Return to the queue once."""
    redelivered = self.request.delivery_info["redelivered"]
    note(f"requeued {redelivered}")
    if not redelivered:
        raise Reject("once more", requeue=True)


@app.task(shared=False)
def everywhere() -> None:
    """Run in every worker."""
    note("everywhere")
