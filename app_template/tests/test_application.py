"""Tests of the shop with its container: parts of it, and the whole on an in-process broker."""

from shop.consumers.orders import OrderPlaced
from shop.container import Container
from shop.orders import Order, OrderRepository
from workerkit.testing import SSEServer, build, override, running


async def test_a_consumer_with_mocked_providers(
    container: Container, orders: OrderRepository
) -> None:
    """The container creates the consumer; the test replaces its dependencies."""
    await build(OrderPlaced, container).handle(Order(id=1, item="tea"))

    assert list(orders.booked) == [1]


async def test_the_whole_application(container: Container, orders: OrderRepository) -> None:
    """Valid orders are booked; a too large one and an invalid body are dead-lettered."""
    async with running(container, packages=["shop"]) as app:
        await app.publish(Order(id=1, item="tea"), "orders")
        await app.publish(Order(id=2, item="tea", quantity=5_000), "orders/priority")
        await app.publish("no order", "orders")
        await app.idle()
        actions = sorted(each.action for each in app.settled("OrderPlaced"))
        [large] = app.dead_letters("orders/priority")
        [invalid] = app.dead_letters("orders")

    assert actions == ["ack", "dead_letter", "dead_letter"]
    assert list(orders.booked) == [1]
    assert large.headers["x-workerkit-reason"] == "the quantity 5000 is too large"
    assert invalid.body == b"no order"


async def test_the_event_stream(container: Container, stream: SSEServer) -> None:
    """Customers are notified of booked orders, and not of other events."""
    async with running(container, packages=["shop"]) as app:
        await stream.send(Order(id=1, item="tea"), name="booked")
        await stream.send("whatever", name="other")
        stream.cut()
        await stream.send(Order(id=2, item="tea"), name="booked")
        await app.idle()
        notified = container.notifier().notified

    assert [order.id for order in notified] == [1, 2]


async def test_an_order_from_request_to_notification(orders: OrderRepository) -> None:
    """An order over HTTP is published, booked and streamed, and its customer is notified."""
    container = Container()
    with override(container, orders=orders):
        async with running(container, packages=["shop"]) as app:
            await app.http.post("/orders", json=Order(id=1, item="tea"))
            await app.idle()
            notified = container.notifier().notified

    assert notified == [Order(id=1, item="tea")]
