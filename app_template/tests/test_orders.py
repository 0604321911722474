"""Unit tests of a consumer: they call `handle`, without a broker or the framework."""

import pytest

from shop.consumers.orders import OrderPlaced
from shop.orders import Order, OrderRepository, open_storage
from shop.settings import Settings
from workerkit import Reject


@pytest.fixture
def consumer(orders: OrderRepository) -> OrderPlaced:
    return OrderPlaced(orders, Settings(largest_quantity=10))


async def test_an_order_is_booked(consumer: OrderPlaced, orders: OrderRepository) -> None:
    """A placed order reaches the repository."""
    order = Order(id=1, item="tea", quantity=10)

    await consumer.handle(order)

    assert orders.booked == {1: order}


async def test_the_position_of_an_event(orders: OrderRepository) -> None:
    """A client resumes after its last event, or at the start of another repository."""
    for number in (1, 2, 3):
        await orders.add(Order(id=number, item="tea"))

    assert orders.position(f"{orders.id}-2") == 2
    assert orders.position(f"{OrderRepository({}).id}-2") == orders.position("") == 0
    assert [order.id for order in await orders.after(2)] == [3]


async def test_an_order_delivered_twice(consumer: OrderPlaced, orders: OrderRepository) -> None:
    """A message may be redelivered; the order is booked once."""
    order = Order(id=1, item="tea")

    await consumer.handle(order)
    await consumer.handle(order)

    assert list(orders.booked.values()) == [order]


async def test_an_order_that_is_too_large(consumer: OrderPlaced, orders: OrderRepository) -> None:
    """An order above the limit of the settings is rejected, with the reason."""
    with pytest.raises(Reject, match="the quantity 11 is too large"):
        await consumer.handle(Order(id=1, item="tea", quantity=11))

    assert orders.booked == {}


@pytest.mark.parametrize("body", ["{}", '{"id": 1, "item": "tea", "quantity": 0}', "[]"])
def test_a_body_that_is_not_an_order(body: str) -> None:
    """The model rejects an invalid body, so `handle` is not called."""
    with pytest.raises(ValueError, match="Order"):
        Order.model_validate_json(body)


async def test_the_storage() -> None:
    """The storage is emptied when the shop stops."""
    opening = open_storage()
    storage = await anext(opening)
    storage[1] = Order(id=1, item="tea")

    assert await anext(opening, None) is None
    assert storage == {}
