"""Actors of dramatiq, whose address and journal are variables of the environment."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.clients.application import note

QUEUE = os.environ["QUEUE"]
broker = RabbitmqBroker(
    url=f"{os.environ['AMQP_URL']}?heartbeat=10", confirm_delivery=True, max_priority=5
)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE)
def add(a: int, b: int) -> None:
    """Write a result."""
    note(f"add {a + b}")


@dramatiq.actor(queue_name=QUEUE, max_retries=2, min_backoff=20, max_backoff=20)
def fail(name: str) -> None:
    """Fail in each attempt, so that the message ends among the dead letters."""
    note(f"fail {name}")
    raise RuntimeError(name)
