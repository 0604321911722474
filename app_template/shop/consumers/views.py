"""What the shop answers over HTTP."""

import asyncio
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel

from shop.orders import Order, OrderRepository
from workerkit import Header, HTTPView, Publisher, PublishError, Retry


class Accepted(BaseModel):
    """An order that is on its way."""

    message_id: str


class PlaceOrder(HTTPView):
    """Takes orders."""

    routes = ["/orders"]
    status = 202

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher

    async def post(self, order: Order) -> Accepted:
        """Place an order.

        It is accepted as soon as RabbitMQ has it; `OrderPlaced` books it. While RabbitMQ does not
        take it, the answer is a 503 that says when to come again.
        """
        try:
            message_id = await self.publisher.publish(order, "orders")
        except PublishError as error:
            raise Retry("no orders are taken at the moment", after=5) from error
        return Accepted(message_id=message_id)


class OrderView(HTTPView):
    """Shows the orders that are booked."""

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
    """Announces the orders that are booked, as a stream of Server-Sent Events."""

    routes = ["/booked"]
    timeout = None

    def __init__(self, orders: OrderRepository) -> None:
        self.orders = orders

    async def get(
        self, request: web.Request, last_event_id: Annotated[str, Header] = ""
    ) -> web.StreamResponse:
        """Announce all orders, or those behind the one that a client has seen last."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        number = self.orders.seen(last_event_id)
        while True:
            try:
                async with asyncio.timeout(15.0):
                    orders = await self.orders.after(number)
            except TimeoutError:
                # A comment, so that nobody takes silence for a lost connection.
                await response.write(b": nothing new\n\n")
                continue
            for order in orders:
                number += 1
                data = order.model_dump_json()
                lines = f"id: {self.orders.name}-{number}\nevent: booked\ndata: {data}\n\n"
                await response.write(lines.encode())
