"""Test of the whole service, with an in-process broker."""

import asyncio

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from workerkit.testing import running

from shop.container import Container
from shop.models import NotificationRow
from shop.orders import Order


async def test_an_order_from_request_to_notification(
    container: Container, session: AsyncSession
) -> None:
    """An order over HTTP is published, booked and streamed, and its customer is notified."""
    notified: list[int] = []

    async with asyncio.timeout(60.0), running(container, packages=["shop"]) as app:
        await app.http.post("/orders", json=Order(id=1, item="tea"))
        while not notified:
            await app.idle()
            notified += await session.scalars(select(NotificationRow.order_id))
            await session.rollback()

    assert notified == [1]
