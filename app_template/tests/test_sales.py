"""Tests of the periodic report."""

import logging

import pytest
from workerkit.testing import running

from shop.container import Container
from shop.database import Sessions
from shop.orders import Order, OrderRepository


async def test_the_report(
    container: Container, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    """A test decides when a periodic task runs."""
    caplog.set_level(logging.INFO, "shop")
    async with sessions.begin() as session:
        await OrderRepository(session).book(Order(id=1, item="tea", quantity=3))

    async with running(container, packages=["shop"], only=["SalesReport"]) as app:
        await app.tick("SalesReport")

    [record] = [each for each in caplog.records if each.module == "sales"]
    assert record.__dict__["sales"] == {"tea": 3}
