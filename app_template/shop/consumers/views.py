"""Handle HTTP requests."""

import asyncio
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel

from shop.orders import Order, OrderRepository
from workerkit import Header, HTTPView, Publisher, PublishError, Retry


class Accepted(BaseModel):
    """The response to an order that was published."""

    message_id: str


class PlaceOrder(HTTPView):
    """Accepts orders."""

    routes = ["/orders"]
    status = 202

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


class OrderView(HTTPView):
    """Shows booked orders."""

    routes = ["/orders/{order_id}"]

    def __init__(self, orders: OrderRepository) -> None:
        self.orders = orders

    async def get(self, order_id: int) -> Order:
        """Show one order."""
        order = await self.orders.find(order_id)
        if order is None:
            raise web.HTTPNotFound
        return order


class BookedOrders(HTTPView):
    """Streams booked orders as Server-Sent Events."""

    routes = ["/booked"]
    timeout = None

    def __init__(self, orders: OrderRepository) -> None:
        self.orders = orders

    async def get(
        self, request: web.Request, last_event_id: Annotated[str, Header] = ""
    ) -> web.StreamResponse:
        """Stream all orders, or those after the last event that the client received."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        number = self.orders.position(last_event_id)
        while True:
            try:
                async with asyncio.timeout(15.0):
                    orders = await self.orders.after(number)
            except TimeoutError:
                # A comment, so that clients do not take silence for a lost connection.
                await response.write(b": nothing new\n\n")
                continue
            for order in orders:
                number += 1
                data = order.model_dump_json()
                lines = f"id: {self.orders.id}-{number}\nevent: booked\ndata: {data}\n\n"
                await response.write(lines.encode())
