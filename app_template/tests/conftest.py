"""Fixtures: the container with an empty repository and an event stream that the test controls."""

from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from shop.container import Container
from shop.orders import OrderRepository
from shop.settings import Settings
from workerkit import SSESettings
from workerkit.testing import SSEServer, override, sse_server


@pytest.fixture
async def stream() -> AsyncIterator[SSEServer]:
    """A server that replaces the shop's stream of booked orders."""
    async with sse_server() as server:
        yield server


@pytest.fixture
def orders() -> OrderRepository:
    """An empty repository."""
    return OrderRepository({})


@pytest.fixture
def container(stream: SSEServer, orders: OrderRepository) -> Iterator[Container]:
    """The shop's container with both of them instead of its own."""
    container = Container()
    settings = Settings(sse={"shop": SSESettings(url=SecretStr(stream.url))})
    with override(container, settings=settings, orders=orders):
        yield container
