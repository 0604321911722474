"""Fixtures: RabbitMQ, the modes of the embedded broker, and an environment for each scenario."""

from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest

from tests.contract.environment import VERSIONS, Broker, Environment
from tests.contract.rabbit import Rabbit
from workerkit.embedded import EmbeddedBroker


@pytest.fixture(scope="session", params=["rabbitmq", *(f"embedded {each}" for each in VERSIONS)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """RabbitMQ, in the version of this run, or one of the modes of the embedded broker."""
    kind, _, version = request.param.partition(" ")
    if kind == "rabbitmq":
        yield Rabbit(request.getfixturevalue("rabbit"))
        return
    with EmbeddedBroker.in_thread(behaves_as=version) as broker:
        yield broker


@pytest.fixture
async def env(broker: Broker) -> AsyncIterator[Environment]:
    """A new virtual host."""
    vhost = f"contract-{token_hex(6)}"
    broker.add_vhost(vhost)
    env = Environment(broker, vhost)
    yield env
    await env.close()
    broker.delete_vhost(vhost)
