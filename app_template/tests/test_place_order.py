"""Tests of orders over HTTP that wait in the queue until they are booked."""

import pytest
from workerkit import PublishTimeout, Retry
from workerkit.testing import FakePublisher, override, running

from shop.consumers.place_order import PlaceOrder
from shop.container import Container
from shop.orders import Order

TEA = Order(id=1, item="tea", quantity=3)


async def test_an_order_over_http(container: Container) -> None:
    """An order is accepted, published and booked, and can be read."""
    async with running(
        container, packages=["shop"], only=["PlaceOrder", "OrderPlaced", "OrderView"]
    ) as app:
        placed = await app.http.post("/orders", json=TEA)
        await app.idle()
        shown = await app.http.get("/orders/1")

    assert placed.status == 202
    assert Order.model_validate(shown.json()) == TEA


async def test_an_invalid_order(container: Container) -> None:
    """The response names the wrong field, and nothing is published."""
    publisher = FakePublisher()

    with override(container, publisher=publisher):
        async with running(container, packages=["shop"], only=["PlaceOrder"]) as app:
            response = await app.http.post("/orders", json={"id": 1, "item": "tea", "quantity": 0})

    assert response.status == 422
    assert [each["name"] for each in response.json()["errors"]] == ["quantity"]
    assert publisher.published == []


async def test_an_order_while_publishing_fails() -> None:
    """The client is asked to retry later."""
    publisher = FakePublisher()
    publisher.error = PublishTimeout("the broker does not respond")

    with pytest.raises(Retry) as raised:
        await PlaceOrder(publisher).post(TEA)

    assert raised.value.after == 5
