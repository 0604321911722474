"""Test consumers: alone, with mocked providers, or as a whole application with a broker."""

from workerkit.testing.broker import embedded_broker
from workerkit.testing.containers import build, override
from workerkit.testing.fakes import FakePublisher, Published, fake_event, fake_message
from workerkit.testing.running import Application, running
from workerkit.testing.sse import SSEServer, sse_server

__all__ = [
    "Application",
    "FakePublisher",
    "Published",
    "SSEServer",
    "build",
    "embedded_broker",
    "fake_event",
    "fake_message",
    "override",
    "running",
    "sse_server",
]
