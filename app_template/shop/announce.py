"""Publish booked orders."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shop.database import current_session
from workerkit import Call, Exchange, Publisher

# Whoever wants to know binds a queue to it: Binding(Exchange("booked", "fanout")).
BOOKED = Exchange("booked", "fanout")


class Announce:
    """Publishes the orders that a call has booked, after their transaction was committed.

    The other way around, others would hear of an order that a rollback takes back. If this process
    dies between the commit and the publish, the message of the order is not acknowledged yet. It is
    redelivered, `book` changes nothing, and the order is published then. So an order may be
    published twice, and those who read the exchange have to expect that.
    """

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        yield
        for order in current_session.get().info.get("booked", []):
            # Not mandatory: nobody has to have a queue there.
            await self.publisher.publish(order, "", exchange=BOOKED, mandatory=False)
