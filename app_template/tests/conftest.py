"""Fixtures: an empty database, and the container that uses it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from workerkit.testing import override

from shop.container import Container
from shop.database import Sessions, open_engine
from shop.models import Base
from shop.orders import OrderRepository
from shop.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a database of SQLite, or the one that TEST_DATABASE_URL names."""
    url = os.environ.get("TEST_DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    return Settings(database_url=SecretStr(url), largest_quantity=10)


@pytest.fixture
async def sessions(settings: Settings) -> AsyncIterator[Sessions]:
    """Sessions with that database; its tables are emptied afterwards."""
    async with asynccontextmanager(open_engine)(settings) as engine:
        yield async_sessionmaker(engine)
        async with engine.begin() as connection:
            for table in Base.metadata.sorted_tables:
                await connection.execute(table.delete())


@pytest.fixture
async def session(sessions: Sessions) -> AsyncIterator[AsyncSession]:
    """One of these sessions."""
    async with sessions() as session:
        yield session


@pytest.fixture
def orders(session: AsyncSession) -> OrderRepository:
    """The repository in that session."""
    return OrderRepository(session)


@pytest.fixture
def container(settings: Settings, sessions: Sessions) -> Iterator[Container]:
    """The container, with that database."""
    container = Container()
    with override(container, settings=settings):
        yield container
