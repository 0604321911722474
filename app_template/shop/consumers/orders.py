"""What happens when somebody places an order."""

from shop.orders import Order, OrderRepository
from shop.settings import Settings
from workerkit import AMQPConsumer, Reject


class OrderPlaced(AMQPConsumer):
    """Books every order the shop publishes.

    Returning acknowledges the message. Raising puts it back, `Reject` puts it aside into
    `orders.dlq` with the reason, and so does a body that is no `Order`. A further parameter
    `message: AMQPMessage[Order]` would get headers, queue, and whether it came before.
    """

    queues = ["orders", "orders/priority"]
    concurrency = 16
    timeout = 30.0

    def __init__(self, orders: OrderRepository, settings: Settings) -> None:
        self.orders = orders
        self.largest = settings.largest_quantity

    async def handle(self, order: Order) -> None:
        if order.quantity > self.largest:
            raise Reject(f"nobody orders {order.quantity} at once")
        await self.orders.add(order)
