"""Run migrations: `alembic upgrade head`, or the start of the service with its connection."""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from shop.models import Base
from shop.settings import Settings

# Until the commit, so that of two processes which start at once, one waits for the other.
LOCKS = {
    "postgresql": "SELECT pg_advisory_xact_lock(hashtext('alembic'))",
    "sqlite": "BEGIN IMMEDIATE",
}


def migrate(connection: Connection) -> None:
    """Run the migrations in the transaction of a connection."""
    connection.exec_driver_sql(LOCKS[connection.dialect.name])
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite can change a column only by copying the table.
    )
    context.run_migrations()


async def connect_and_migrate() -> None:
    """Run the migrations with a connection to `SHOP_DATABASE_URL`."""
    engine = create_async_engine(Settings().database_url.get_secret_value())
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


if connection := context.config.attributes.get("connection"):
    migrate(connection)
else:
    asyncio.run(connect_and_migrate())
