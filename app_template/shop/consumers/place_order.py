"""Accept orders over HTTP, and let the queue keep them until they are booked."""

from pydantic import BaseModel
from workerkit import HTTPView, Publisher, PublishError, Retry

from shop.orders import Order


class Accepted(BaseModel):
    """The response to an order that was published."""

    message_id: str


class PlaceOrder(HTTPView):
    """Accepts orders."""

    routes = ["/orders"]
    status = 202
    publishes = {"orders": Order}

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def post(self, order: Order) -> Accepted:
        """Place an order.

        The response is sent when RabbitMQ has confirmed the message; `OrderPlaced` books the order.
        If RabbitMQ does not confirm it, the response is a 503 with `Retry-After`.
        """
        try:
            message_id = await self.publisher.publish(order, "orders")
        except PublishError as error:
            raise Retry("orders cannot be accepted at the moment", after=5) from error
        return Accepted(message_id=message_id)
