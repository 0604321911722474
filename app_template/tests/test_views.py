"""What the shop answers over HTTP: real requests, a broker of its own, no RabbitMQ."""

import pytest
from aiohttp import web

from shop.consumers.views import OrderView, PlaceOrder
from shop.container import Container
from shop.orders import Order, OrderRepository
from workerkit import PublishTimeout, Retry
from workerkit.testing import FakePublisher, build, override, running


async def test_an_order_over_http(container: Container) -> None:
    """An order is accepted, published, booked, and can be looked at."""
    async with running(container, packages=["shop"]) as app:
        placed = await app.http.post("/orders", json=Order(id=1, item="tea"))
        await app.idle()
        shown = await app.http.get("/orders/1")
        missing = await app.http.get("/orders/2")

    assert placed.status == 202
    assert (shown.status, shown.json()) == (200, {"id": 1, "item": "tea", "quantity": 1})
    assert missing.status == 404


async def test_what_is_no_order(container: Container) -> None:
    """The answer names what is wrong, and nothing is published."""
    publisher = FakePublisher()

    with override(container, publisher=publisher):
        async with running(container, packages=["shop"], only=["PlaceOrder"]) as app:
            answer = await app.http.post("/orders", json={"id": 1, "item": "tea", "quantity": 0})

    assert answer.status == 422
    assert [each["name"] for each in answer.json()["errors"]] == ["quantity"]
    assert publisher.published == []


async def test_while_nothing_can_be_published(container: Container) -> None:
    """Whoever orders is asked to come again."""
    publisher = FakePublisher()
    publisher.error = PublishTimeout("the broker does not answer")

    with override(container, publisher=publisher), pytest.raises(Retry) as raised:
        await build(PlaceOrder, container).post(Order(id=1, item="tea"))

    assert raised.value.after == 5


async def test_an_order_that_is_not_there() -> None:
    """A view is a class, and a test may simply call it."""
    with pytest.raises(web.HTTPNotFound):
        await OrderView(OrderRepository({})).get(1)
