"""The shop as tests have it: its own book, and a stream that the test writes."""

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
    """In place of the stream on which the shop announces what is booked."""
    async with sse_server() as server:
        yield server


@pytest.fixture
def orders() -> OrderRepository:
    """An empty book."""
    return OrderRepository({})


@pytest.fixture
def container(stream: SSEServer, orders: OrderRepository) -> Iterator[Container]:
    """The shop's container with both of them."""
    container = Container()
    settings = Settings(sse={"shop": SSESettings(url=SecretStr(stream.url))})
    with override(container, settings=settings, orders=orders):
        yield container
