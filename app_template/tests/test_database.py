"""Tests of the database: bookings, the order of the stream, and migrations."""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr, ValidationError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from shop.database import Sessions
from shop.models import Base
from shop.orders import Order, OrderRepository
from shop.settings import Settings


async def book(sessions: Sessions, order: Order) -> None:
    """Book an order in a transaction."""
    async with sessions.begin() as session:
        await OrderRepository(session).book(order)


async def test_an_order_is_booked_once(sessions: Sessions, orders: OrderRepository) -> None:
    """Ten workers book the same order at the same time; the first one counts."""
    await asyncio.gather(
        *(book(sessions, Order(id=7, item="tea", quantity=number)) for number in range(1, 11))
    )

    [booked] = await orders.latest(20)
    assert booked == await orders.find(7)
    assert await orders.find(8) is None
    assert abs(datetime.now(UTC) - booked.booked_at) < timedelta(minutes=5)


async def test_a_stream_misses_no_order(sessions: Sessions, orders: OrderRepository) -> None:
    """An order does not become visible before another one that has a lower number."""
    async with sessions() as session:
        await OrderRepository(session).book(Order(id=1, item="tea"))
        second = asyncio.create_task(book(sessions, Order(id=2, item="tea")))
        await asyncio.wait([second], timeout=0.2)
        assert await orders.after(0) == []
        await session.commit()
    await second

    assert [each.id for each in await orders.after(0)] == [1, 2]


async def test_the_sales(sessions: Sessions, orders: OrderRepository) -> None:
    """The quantities of each item are added."""
    for number, item in enumerate(["tea", "tea", "a cup"], 1):
        await book(sessions, Order(id=number, item=item, quantity=number))
    now = datetime.now(UTC)

    assert await orders.sales(now - timedelta(hours=1)) == {"tea": 3, "a cup": 3}
    assert await orders.sales(now + timedelta(hours=1)) == {}


async def test_the_migrations_create_the_tables_of_the_models(sessions: Sessions) -> None:
    """A model that was changed without a migration fails this test."""

    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    async with sessions() as session:
        connection = await session.connection()
        assert await connection.run_sync(differences) == []


async def test_migrations_of_two_processes_at_once(settings: Settings) -> None:
    """One upgrades the schema, and the other one waits for it."""

    url = settings.database_url.get_secret_value()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    await engine.dispose()

    async def upgrade() -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "alembic", "upgrade", "head"),
            cwd=Path(__file__).parents[1],
            env={**os.environ, "SHOP_DATABASE_URL": url},
        )
        return await process.wait()

    assert set(await asyncio.gather(upgrade(), upgrade())) == {0}


def test_a_database_that_is_not_supported() -> None:
    """The error says what would be right, and does not repeat the password."""
    with pytest.raises(ValidationError, match="should begin with postgresql://") as raised:
        Settings(database_url=SecretStr("mysql://me:secret@localhost/shop"))

    assert "secret" not in str(raised.value)
