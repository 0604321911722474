"""Tests of the HTTP views, without the framework and with real requests."""

import pytest
from aiohttp import web
from workerkit.testing import running

from shop.consumers.views import OrderView
from shop.container import Container
from shop.orders import Order, OrderRepository
from shop.settings import Settings

TEA = Order(id=1, item="tea", quantity=3)
VIEWS = ["OrderList", "OrderView", "Page"]


async def test_a_missing_order(settings: Settings, orders: OrderRepository) -> None:
    """A view is a class, and a test can call its methods."""
    with pytest.raises(web.HTTPNotFound):
        await OrderView(settings).get(1, orders)


async def test_an_order_that_is_booked_at_once(container: Container) -> None:
    """It can be read; a repeated request changes nothing."""
    async with running(container, packages=["shop"], only=VIEWS) as app:
        booked = await app.http.put("/orders/1", json=TEA)
        again = await app.http.put("/orders/1", json={**TEA.model_dump(), "quantity": 4})
        shown = (await app.http.get("/orders/1")).json()
        missing = await app.http.get("/orders/2")

    assert (booked.status, again.status, missing.status) == (201, 201, 404)
    assert Order.model_validate(shown) == TEA
    assert set(shown) == {"id", "item", "quantity", "number", "booked_at"}


async def test_the_latest_orders(container: Container) -> None:
    """The newest comes first."""
    async with running(container, packages=["shop"], only=VIEWS) as app:
        for number in (3, 1, 2):
            await app.http.put(f"/orders/{number}", json=Order(id=number, item="tea"))
        shown = await app.http.get("/orders?limit=2")

    assert [each["id"] for each in shown.json()] == [2, 1]


@pytest.mark.parametrize(
    "change", [{"quantity": 0}, {"quantity": 11}, {"item": "a\u0000b"}, {"id": 2}, {"id": 2**60}]
)
async def test_an_order_that_is_refused(container: Container, change: dict[str, object]) -> None:
    """A wrong value, a quantity above the limit, and another id than in the path."""
    async with running(container, packages=["shop"], only=VIEWS) as app:
        response = await app.http.put("/orders/1", json={**TEA.model_dump(), **change})
        shown = await app.http.get("/orders")

    assert response.status == 422
    assert shown.json() == []


async def test_the_page(container: Container) -> None:
    """The page is served."""
    async with running(container, packages=["shop"], only=VIEWS) as app:
        page = await app.http.get("/")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Place order" in page.text
