"""What happens when somebody places an order."""

from shop.orders import Order, OrderRepository
from shop.settings import Settings
from workerkit import AMQPConsumer, Reject, RetryPolicy


class OrderPlaced(AMQPConsumer):
    """Books every order the shop publishes.

    Returning acknowledges the message. Raising tries it again, at once and later, as `retry` says,
    and then puts it aside into `orders.dlq`; so do `Reject`, with the reason, and a body that is no
    `Order`. A further parameter
    `message: AMQPMessage[Order]` would get headers, queue, and whether it came before.
    """

    queues = ["orders", "orders/priority"]
    concurrency = 16
    timeout = 30.0
    retry = RetryPolicy(delays=(0, 5, 60))

    def __init__(self, orders: OrderRepository, settings: Settings) -> None:
        self.orders = orders
        self.largest = settings.largest_quantity

    async def handle(self, order: Order) -> None:
        if order.quantity > self.largest:
            raise Reject(f"nobody orders {order.quantity} at once")
        await self.orders.add(order)
