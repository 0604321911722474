"""Fixtures for pytest, there as soon as workerkit is installed."""

from collections.abc import Iterator

import pytest

from workerkit.embedded import EmbeddedBroker

# A failed assertion of the contract shows the values, as one in a test module does.
pytest.register_assert_rewrite(
    "workerkit.testing.contract_source", "workerkit.testing.transport_contract"
)


@pytest.fixture
def embedded_amqp_broker() -> Iterator[EmbeddedBroker]:
    """An in-process AMQP broker for one test, in a thread of its own; `.url` is its address."""
    with EmbeddedBroker.in_thread() as broker:
        yield broker
