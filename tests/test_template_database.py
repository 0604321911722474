"""The template with PostgreSQL: its own tests, and two processes of it."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.client import connected
from tests.command import Application, environment, running
from tests.ports import free_port
from tests.postgresql_server import PrivatePostgreSQL
from tests.publishing import publishing
from tests.waiting import eventually
from workerkit import Exchange
from workerkit.testing import embedded_broker

TEMPLATE = Path(__file__).parents[1] / "app_template"
ORDERS = range(1, 31)
BOOKED = Exchange("booked", "fanout")
QUERY = "SELECT id FROM orders JOIN notifications ON id = order_id"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    """A server for these tests."""
    with PrivatePostgreSQL() as server:
        yield server


def test_the_tests_of_the_template(postgresql: PrivatePostgreSQL) -> None:
    """Those that use the database pass with PostgreSQL as well."""
    files = [f"tests/test_{name}.py" for name in ("database", "orders", "stream", "notifications")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=TEMPLATE,
        env=environment({"TEST_DATABASE_URL": postgresql.url}),
        capture_output=True,
        text=True,
        timeout=110.0,
        check=False,
    )

    assert run.returncode == 0, run.stdout


@asynccontextmanager
async def shop(database: str, broker: str) -> AsyncIterator[tuple[Application, str]]:
    """Run the template inside the block; yield its process and the address of its views."""
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    async with running(
        "shop",
        cwd=TEMPLATE,
        SHOP_DATABASE_URL=database,
        SHOP_AMQP__DEFAULT__URL=broker,
        SHOP_HTTP__PORT=port,
        SHOP_SSE__SHOP__URL=url,
        SHOP_OPS__ENABLED="false",
    ) as application:
        yield application, url


async def booked(url: str) -> list[int]:
    """Read the stream until it has every order; return their ids."""
    found: list[int] = []
    async with aiohttp.ClientSession() as session, session.get(f"{url}/booked") as stream:
        async for line in stream.content:
            if line.startswith(b"data: "):
                found.append(json.loads(line.removeprefix(b"data: "))["id"])
            if len(found) == len(ORDERS):
                break
    return found


async def test_two_processes_that_start_at_once(postgresql: PrivatePostgreSQL) -> None:
    """Each order is booked once, streamed by both and announced, although one of them is killed."""
    engine = create_async_engine(postgresql.url.replace("://", "+asyncpg://"), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(embedded_broker())
        shops = [shop(postgresql.url, broker.url) for _ in range(2)]
        (first, url), (second, other) = [await stack.enter_async_context(each) for each in shops]
        await asyncio.gather(first.says("consuming"), second.says("consuming"))
        publisher = await stack.enter_async_context(publishing(broker.url))
        await publisher.publish({"id": 0}, "", exchange=BOOKED, mandatory=False)
        client = await stack.enter_async_context(connected(broker.url))
        await client.declare("invoices")
        await client.bind("invoices", BOOKED.name, "")
        streams = asyncio.gather(booked(url), booked(other))
        for number in ORDERS:
            await publisher.publish({"id": number, "item": "tea"}, "orders")
            await publisher.publish({"id": number, "item": "tea"}, "orders/priority")
        async with asyncio.timeout(60.0):
            ids, same = await streams
        first.send(signal.SIGKILL)
        await publisher.publish({"id": 99, "item": "tea"}, "orders")

        async def notified() -> Counter[int]:
            async with engine.connect() as connection:
                found = await connection.scalars(text(QUERY))
                ids = Counter(found.all())
            assert 99 in ids
            return ids

        customers = await eventually(notified)
        invoices = [json.loads(each.body)["id"] for each in broker.queue("invoices").messages]

    assert ids == same
    assert Counter(ids) == Counter(ORDERS)
    assert customers == Counter([*ORDERS, 99])
    assert set(invoices) == {*ORDERS, 99}
