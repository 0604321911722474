"""Handle the messages of placed orders."""

from workerkit import AMQPConsumer, RetryPolicy

from shop.announce import ANNOUNCED
from shop.orders import Order, OrderRepository
from shop.settings import Settings


class OrderPlaced(AMQPConsumer):
    """Books the placed orders.

    If `handle` returns, the order is committed and announced, and then the message is
    acknowledged. If it raises, the message is retried as `retry` states, and then moved to the
    dead-letter queue `orders.dlq`. `Reject` and a body that is not an `Order` move it there
    immediately. A parameter `message: AMQPMessage[Order]` would get the headers, the queue, and
    whether the message was redelivered.
    """

    queues = ["orders", "orders/priority"]
    concurrency = 8  # A call uses one of the 15 connections of the database's pool.
    timeout = 30.0
    retry = RetryPolicy(delays=(0, 5, 60))
    publishes = ANNOUNCED

    def __init__(self, settings: Settings) -> None:
        self.largest = settings.largest_quantity

    async def handle(self, order: Order, orders: OrderRepository) -> None:
        order.check(self.largest)
        await orders.book(order)
