"""The two brokers, and a fresh place on each for every scenario."""

from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest

from tests.contract.rabbit import Rabbit
from tests.contract.site import Broker, Site
from workerkit.embedded import EmbeddedBroker


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedBroker]:
    """The embedded broker that all scenarios share."""
    with EmbeddedBroker.in_thread() as broker:
        yield broker


@pytest.fixture(scope="session", params=["rabbitmq", "embedded"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """One of the two brokers."""
    if request.param == "rabbitmq":
        return Rabbit(request.getfixturevalue("rabbit"))
    embedded: EmbeddedBroker = request.getfixturevalue("embedded")
    return embedded


@pytest.fixture
async def site(broker: Broker) -> AsyncIterator[Site]:
    """A fresh virtual host."""
    vhost = f"contract-{token_hex(6)}"
    broker.add_vhost(vhost)
    site = Site(broker, vhost)
    yield site
    await site.close()
    broker.delete_vhost(vhost)
