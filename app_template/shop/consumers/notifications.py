"""Handle the events of booked orders."""

import logging

from workerkit import RetryPolicy, SSEConsumer, SSEEvent

from shop.orders import Order, OrderRepository

log = logging.getLogger(__name__)


class OrderBooked(SSEConsumer):
    """Notifies customers of their booked orders, one after the other.

    The settings define the connection `shop`. If it is lost, the stream resumes after the last
    event. If `SHOP_CURSORS` names a directory, it also resumes after a restart.
    """

    connection = "shop"
    routes = ["/booked"]
    events = ["booked"]
    retry = RetryPolicy(delays=(0, 5, 60))

    async def handle(self, event: SSEEvent[Order], orders: OrderRepository) -> None:
        # The note is committed after the e-mail was sent. If the process dies in between, the
        # customer gets a second one; if the commit came first, the customer might get none.
        if await orders.note_notification(event.body.id):
            log.info("customer notified", extra={"order": event.body.id})  # Send an e-mail here.
