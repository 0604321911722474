"""Show and book orders over HTTP, and serve the page."""

from pathlib import Path
from typing import Annotated

from aiohttp import web
from pydantic import Field
from workerkit import HTTPView, Reject

# with amqp
from shop.announce import ANNOUNCED

# end
from shop.orders import BookedOrder, Number, Order, OrderRepository
from shop.settings import Settings


class OrderList(HTTPView):
    """The booked orders."""

    routes = ["/orders"]

    async def get(
        self, orders: OrderRepository, limit: Annotated[int, Field(ge=1, le=100)] = 20
    ) -> list[BookedOrder]:
        """Show the latest orders, the newest first."""
        return await orders.latest(limit)


class OrderView(HTTPView):
    """Single orders."""

    routes = ["/orders/{order_id}"]
    status = {"put": 201}
    # with amqp
    publishes = ANNOUNCED
    # end

    def __init__(self, settings: Settings) -> None:
        self.largest = settings.largest_quantity

    async def get(self, order_id: Number, orders: OrderRepository) -> BookedOrder:
        """Show an order."""
        order = await orders.find(order_id)
        if order is None:
            raise web.HTTPNotFound
        return order

    async def put(self, order_id: Number, order: Order, orders: OrderRepository) -> None:
        """Book an order at once; a client that got no response may repeat the request."""
        if order.id != order_id:
            raise Reject(f"the order has the id {order.id}, the path {order_id}")
        order.check(self.largest)
        await orders.book(order)


class Page(HTTPView):
    """The page, which shows orders as they are booked."""

    routes = ["/"]
    html = Path(__file__).with_name("page.html").read_text()

    async def get(self) -> web.Response:
        """Show the page."""
        return web.Response(text=self.html, content_type="text/html")
