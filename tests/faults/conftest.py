"""Fixtures for what most of these tests need."""

from collections.abc import AsyncIterator

import pytest

from tests.client import Client, connected
from tests.rabbit import PrivateRabbit


@pytest.fixture
def url(rabbit: PrivateRabbit, vhost: str) -> str:
    """Address of this test's own virtual host on the shared node."""
    return rabbit.url(vhost)


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    """Another client of that virtual host."""
    async with connected(url) as client:
        yield client
