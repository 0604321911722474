"""Fixtures for pytest, there as soon as workerkit is installed."""

from collections.abc import Iterator

import pytest

from workerkit.embedded import EmbeddedBroker


@pytest.fixture
def embedded_amqp_broker() -> Iterator[EmbeddedBroker]:
    """An in-process AMQP broker for one test, in a thread of its own; `.url` is its address."""
    with EmbeddedBroker.in_thread() as broker:
        yield broker
