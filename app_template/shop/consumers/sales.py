"""Report the sales every minute."""

import logging
from datetime import UTC, datetime, timedelta

from workerkit import PeriodicTask

from shop.orders import OrderRepository

log = logging.getLogger(__name__)


class SalesReport(PeriodicTask):
    """Logs what was sold in the last 24 hours."""

    every = 60.0
    # with amqp
    singleton = True  # One process of all runs it; the broker knows which.
    # end

    async def handle(self, orders: OrderRepository) -> None:
        sales = await orders.sales(datetime.now(UTC) - timedelta(days=1))
        log.info("sales of the last 24 hours", extra={"sales": sales})
