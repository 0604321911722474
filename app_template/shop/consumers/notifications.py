"""Handle the events of booked orders."""

from shop.orders import Notifier, Order
from workerkit import RetryPolicy, SSEConsumer, SSEEvent


class OrderBooked(SSEConsumer):
    """Notifies customers of their booked orders, one after the other.

    The settings define the connection `shop`. If it is lost, the stream resumes after the last
    event. If `SHOP_CURSORS` names a directory, it also resumes after a restart.
    """

    connection = "shop"
    routes = ["/booked"]
    events = ["booked"]
    retry = RetryPolicy(delays=(0, 5, 60))

    def __init__(self, notifier: Notifier) -> None:
        self.notifier = notifier

    async def handle(self, event: SSEEvent[Order]) -> None:
        await self.notifier.notify(event.body)
