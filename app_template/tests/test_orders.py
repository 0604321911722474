"""Tests of `OrderPlaced`: without the framework, and with an in-process broker."""

import pytest
from dependency_injector import providers
from workerkit import PublishTimeout, Reject
from workerkit.testing import FakePublisher, build, override, running

from shop.announce import BOOKED
from shop.consumers.orders import OrderPlaced
from shop.container import Container
from shop.orders import Order, OrderRepository
from shop.settings import Settings

TEA = Order(id=1, item="tea", quantity=10)


class FakeOrders(OrderRepository):
    """A repository without a database."""

    def __init__(self) -> None:
        self.booked: list[Order] = []

    async def book(self, order: Order) -> None:
        self.booked.append(order)


async def test_an_order_is_booked() -> None:
    """A unit test calls `handle` of a consumer with what it needs."""
    fake = FakeOrders()

    await OrderPlaced(Settings(largest_quantity=10)).handle(TEA, fake)

    assert fake.booked == [TEA]


async def test_an_order_that_is_too_large(container: Container) -> None:
    """The container of the test creates the consumer, with its settings."""
    fake = FakeOrders()

    with pytest.raises(Reject, match="the quantity 11 is too large"):
        await build(OrderPlaced, container).handle(Order(id=1, item="tea", quantity=11), fake)

    assert fake.booked == []


@pytest.mark.parametrize("body", ["{}", '{"id": 1, "item": "tea", "quantity": 0}', "[]"])
def test_a_body_that_is_not_an_order(body: str) -> None:
    """The model rejects an invalid body, so `handle` is not called."""
    with pytest.raises(ValueError, match="Order"):
        Order.model_validate_json(body)


async def test_messages(container: Container, orders: OrderRepository) -> None:
    """Valid orders are booked; a too large one and an invalid body are dead-lettered."""
    async with running(container, packages=["shop"], only=["OrderPlaced"]) as app:
        await app.publish(TEA, "orders")
        await app.publish(Order(id=2, item="tea", quantity=5_000), "orders/priority")
        await app.publish("no order", "orders")
        await app.idle()
        actions = sorted(each.action for each in app.settled("OrderPlaced"))
        [large] = app.dead_letters("orders/priority")
        [invalid] = app.dead_letters("orders")

    assert actions == ["ack", "dead_letter", "dead_letter"]
    assert [each.id for each in await orders.latest(20)] == [1]
    assert large.headers["x-workerkit-reason"] == "the quantity 5000 is too large"
    assert invalid.body == b"no order"


async def test_messages_that_arrive_twice(container: Container, orders: OrderRepository) -> None:
    """Each order is booked once, and announced as often as its message was handled."""
    publisher = FakePublisher()

    with override(container, publisher=publisher):
        async with running(container, packages=["shop"], only=["OrderPlaced"]) as app:
            for _ in range(10):
                await app.publish(TEA, "orders")
                await app.publish(Order(id=2, item="a cup"), "orders/priority")
            await app.idle()

    assert sorted(each.id for each in await orders.latest(20)) == [1, 2]
    assert len(publisher.published) == 20
    assert {each.exchange for each in publisher.published} == {BOOKED.name}


async def test_a_booking_that_fails(container: Container, orders: OrderRepository) -> None:
    """It is rolled back, and not announced."""

    class BrokenOrders(OrderRepository):
        async def book(self, order: Order) -> None:
            await super().book(order)
            raise Reject("sold out")

    publisher = FakePublisher()
    broken = providers.Factory(BrokenOrders, container.session)

    with override(container, publisher=publisher, orders=broken):
        async with running(container, packages=["shop"], only=["OrderPlaced"]) as app:
            await app.publish(TEA, "orders")
            await app.idle()
            [letter] = app.dead_letters("orders")

    assert letter.headers["x-workerkit-reason"] == "sold out"
    assert await orders.latest(20) == []
    assert publisher.published == []


async def test_an_announcement_that_fails(container: Container, orders: OrderRepository) -> None:
    """The order is committed before it is announced, so only the announcement is repeated."""
    publisher = FakePublisher()
    publisher.error = PublishTimeout("the broker does not respond")

    with override(container, publisher=publisher):
        async with running(container, packages=["shop"], only=["OrderPlaced"]) as app:
            await app.publish(TEA, "orders")
            await app.idle()
            [letter] = app.dead_letters("orders")

    assert [each.id for each in await orders.latest(20)] == [1]
    assert letter.headers["x-workerkit-attempt"] == 4
