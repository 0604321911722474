"""Tests of the HTTP views: real requests, and an in-process broker."""

import pytest
from aiohttp import web

from shop.consumers.views import OrderView, PlaceOrder
from shop.container import Container
from shop.orders import Order, OrderRepository
from workerkit import PublishTimeout, Retry
from workerkit.testing import FakePublisher, build, override, running


async def test_an_order_over_http(container: Container) -> None:
    """An order is accepted, published and booked, and can be read."""
    async with running(container, packages=["shop"]) as app:
        placed = await app.http.post("/orders", json=Order(id=1, item="tea"))
        await app.idle()
        shown = await app.http.get("/orders/1")
        missing = await app.http.get("/orders/2")

    assert placed.status == 202
    assert (shown.status, shown.json()) == (200, {"id": 1, "item": "tea", "quantity": 1})
    assert missing.status == 404


async def test_an_invalid_order(container: Container) -> None:
    """The response names the wrong field, and nothing is published."""
    publisher = FakePublisher()

    with override(container, publisher=publisher):
        async with running(container, packages=["shop"], only=["PlaceOrder"]) as app:
            response = await app.http.post("/orders", json={"id": 1, "item": "tea", "quantity": 0})

    assert response.status == 422
    assert [each["name"] for each in response.json()["errors"]] == ["quantity"]
    assert publisher.published == []


async def test_an_order_while_publishing_fails(container: Container) -> None:
    """The client is asked to retry later."""
    publisher = FakePublisher()
    publisher.error = PublishTimeout("the broker does not respond")

    with override(container, publisher=publisher), pytest.raises(Retry) as raised:
        await build(PlaceOrder, container).post(Order(id=1, item="tea"))

    assert raised.value.after == 5


async def test_a_missing_order() -> None:
    """A view is a class, and a test can call its methods."""
    with pytest.raises(web.HTTPNotFound):
        await OrderView(OrderRepository({})).get(1)
