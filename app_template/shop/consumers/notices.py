"""What happens when the shop announces that an order is booked."""

from shop.orders import Customers, Order
from workerkit import RetryPolicy, SSEConsumer, SSEEvent


class OrderBooked(SSEConsumer):
    """Tells customers about their orders, one after the other.

    The stream is a connection of the settings. When it is lost, the server is asked for what came
    behind the last event; with `SHOP_CURSORS` naming a directory, after a restart as well.
    """

    connection = "shop"
    routes = ["/booked"]
    events = ["booked"]
    retry = RetryPolicy(delays=(0, 5, 60))

    def __init__(self, customers: Customers) -> None:
        self.customers = customers

    async def handle(self, event: SSEEvent[Order]) -> None:
        await self.customers.tell(event.body)
