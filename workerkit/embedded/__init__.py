"""An in-process AMQP 0-9-1 broker for demos and tests; it needs no RabbitMQ."""

from workerkit.embedded.behaviour import LATEST
from workerkit.embedded.server import EmbeddedBroker
from workerkit.embedded.snapshot import MessageSnapshot, QueueSnapshot

__all__ = ["LATEST", "EmbeddedBroker", "MessageSnapshot", "QueueSnapshot"]
