"""Publish booked orders."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from workerkit import Call, Destination, Exchange, Publisher

from shop.database import current_session
from shop.orders import Order

# Other services bind their queues to it: Binding(Exchange("booked", "fanout")).
BOOKED = Exchange("booked", "fanout")
# What the classes that book orders publish, for `workerkit asyncapi` and `workerkit topology`.
ANNOUNCED = {Destination("", BOOKED, mandatory=False): Order}


class Announce:
    """Publishes the orders that a call has booked, after their transaction was committed.

    The other way around, others would hear of an order that a rollback takes back. If this process
    dies between the commit and the publish, the message of the order is not acknowledged yet. It is
    redelivered, `book` changes nothing, and the order is published then; a client of HTTP, which
    got no response, has to repeat its request. So an order may be published twice.
    """

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        yield
        for order in current_session.get().info.get("booked", []):
            # Not mandatory, because there may be no such queue.
            await self.publisher.publish(order, "", exchange=BOOKED, mandatory=False)
