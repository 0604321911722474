"""An in-process AMQP 0-9-1 broker, for demo and tests: the real protocol, no RabbitMQ needed."""

from workerkit.embedded.behaviour import LATEST
from workerkit.embedded.server import EmbeddedBroker
from workerkit.embedded.snapshot import MessageSnapshot, QueueSnapshot

__all__ = ["LATEST", "EmbeddedBroker", "MessageSnapshot", "QueueSnapshot"]
