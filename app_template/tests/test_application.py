"""The shop with its container, first a part of it, then as a whole, on a broker of its own."""

from shop.consumers.orders import OrderPlaced
from shop.container import Container
from shop.orders import Order, OrderRepository
from workerkit.testing import SSEServer, build, override, running


async def test_a_consumer_with_mocked_providers(
    container: Container, orders: OrderRepository
) -> None:
    """The container makes the consumer; what it needs is replaced for the test."""
    await build(OrderPlaced, container).handle(Order(id=1, item="tea"))

    assert list(orders.booked) == [1]


async def test_the_whole_application(container: Container, orders: OrderRepository) -> None:
    """Orders are booked; one that is too large and one that is none are put aside, with reasons."""
    async with running(container, packages=["shop"]) as app:
        await app.publish(Order(id=1, item="tea"), "orders")
        await app.publish(Order(id=2, item="tea", quantity=5_000), "orders/priority")
        await app.publish("no order", "orders")
        await app.idle()
        actions = sorted(each.action for each in app.settled("OrderPlaced"))
        [large] = app.dead_letters("orders/priority")
        [odd] = app.dead_letters("orders")

    assert actions == ["ack", "dead_letter", "dead_letter"]
    assert list(orders.booked) == [1]
    assert large.headers["x-workerkit-reason"] == "nobody orders 5000 at once"
    assert odd.body == b"no order"


async def test_what_is_announced(container: Container, stream: SSEServer) -> None:
    """Customers are told about booked orders, and about nothing else."""
    async with running(container, packages=["shop"]) as app:
        await stream.send(Order(id=1, item="tea"), name="booked")
        await stream.send("whatever", name="other")
        stream.cut()
        await stream.send(Order(id=2, item="tea"), name="booked")
        await app.idle()
        told = container.customers().told

    assert [order.id for order in told] == [1, 2]


async def test_the_whole_circle(orders: OrderRepository) -> None:
    """An order over HTTP is queued, booked and announced, and its customer is told."""
    container = Container()
    with override(container, orders=orders):
        async with running(container, packages=["shop"]) as app:
            await app.http.post("/orders", json=Order(id=1, item="tea"))
            await app.idle()
            told = container.customers().told

    assert told == [Order(id=1, item="tea")]
