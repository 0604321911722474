"""Tests of `OrderBooked`, with a server whose stream the test controls."""

from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from workerkit import SSESettings
from workerkit.testing import fake_event, override, running, sse_server

from shop.consumers.notifications import OrderBooked
from shop.container import Container
from shop.models import NotificationRow
from shop.orders import Order, OrderRepository
from shop.settings import Settings

TEA = Order(id=1, item="tea")


async def test_a_customer_is_notified_once(orders: OrderRepository, session: AsyncSession) -> None:
    """An event may arrive twice."""
    for _ in range(2):
        await OrderBooked().handle(fake_event(TEA, name="booked"), orders)

    assert list(await session.scalars(select(NotificationRow.order_id))) == [1]


async def test_the_event_stream(
    container: Container, settings: Settings, session: AsyncSession
) -> None:
    """Customers are notified of booked orders, also after a lost connection."""
    async with sse_server() as stream:
        changed = {"sse": {"shop": SSESettings(url=SecretStr(stream.url))}}
        with override(container, settings=settings.model_copy(update=changed)):
            only = ["OrderBooked"]
            async with running(container, packages=["shop"], only=only) as app:
                await stream.send(TEA, name="booked")
                await stream.send("whatever", name="other")
                stream.cut()
                await stream.send(Order(id=2, item="a cup"), name="booked")
                await app.idle()

    notified = await session.scalars(select(NotificationRow.order_id))
    assert sorted(notified) == [1, 2]
