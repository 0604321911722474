"""How orders are handled: a consumer is a class, and a test calls it. No broker, no framework."""

import pytest

from shop.consumers.orders import OrderPlaced
from shop.orders import Order, OrderRepository, open_book
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


async def test_where_a_reader_of_the_book_goes_on(orders: OrderRepository) -> None:
    """Behind what it has seen of this book, and at the beginning of another one."""
    for number in (1, 2, 3):
        await orders.add(Order(id=number, item="tea"))

    assert orders.seen(f"{orders.name}-2") == 2
    assert orders.seen(f"{OrderRepository({}).name}-2") == orders.seen("") == 0
    assert [order.id for order in await orders.after(2)] == [3]


async def test_an_order_that_comes_twice(consumer: OrderPlaced, orders: OrderRepository) -> None:
    """A message may be delivered again; the order is booked once."""
    order = Order(id=1, item="tea")

    await consumer.handle(order)
    await consumer.handle(order)

    assert list(orders.booked.values()) == [order]


async def test_an_order_that_is_too_large(consumer: OrderPlaced, orders: OrderRepository) -> None:
    """Nobody orders more than the settings allow: such a message is put aside, with the reason."""
    with pytest.raises(Reject, match="nobody orders 11 at once"):
        await consumer.handle(Order(id=1, item="tea", quantity=11))

    assert orders.booked == {}


@pytest.mark.parametrize("body", ["{}", '{"id": 1, "item": "tea", "quantity": 0}', "[]"])
def test_a_body_that_is_no_order(body: str) -> None:
    """What does not validate never reaches a consumer."""
    with pytest.raises(ValueError, match="Order"):
        Order.model_validate_json(body)


async def test_the_book() -> None:
    """The book is open as long as the shop is."""
    opening = open_book()
    book = await anext(opening)
    book[1] = Order(id=1, item="tea")

    assert await anext(opening, None) is None
    assert book == {}
