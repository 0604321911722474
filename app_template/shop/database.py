"""The database: its engine, the upgrade of its schema, and a transaction for each call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from workerkit import Call

from shop.settings import Settings

Sessions = async_sessionmaker[AsyncSession]

current_session: ContextVar[AsyncSession] = ContextVar("current_session")


async def open_engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """Open the database before the first consumer starts; close it after the last one stops."""
    engine = create_async_engine(settings.database_url.get_secret_value(), pool_pre_ping=True)
    try:
        if settings.database_upgrade:
            async with engine.begin() as connection:
                await connection.run_sync(upgrade)
        yield engine
    finally:
        await engine.dispose()


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, as `alembic upgrade head` does."""
    config = Config(Path(__file__).parents[1] / "alembic.ini")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class Transaction:
    """Gives each call of `handle` a session, and commits it before the message is acknowledged.

    If `handle` raises, the session is closed without a commit. A session has no connection before
    its first statement, so a call that uses none costs nothing.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        async with self.sessions() as session:
            current_session.set(session)
            yield
            await session.commit()
