"""Stream booked orders as Server-Sent Events."""

import asyncio
from typing import Annotated

from aiohttp import web
from workerkit import Header, HTTPView

from shop.database import Sessions
from shop.orders import Number, OrderRepository

POLL = 0.5  # Seconds.


class BookedOrders(HTTPView):
    """Streams booked orders.

    The id of an event is the number of the order in the database. So a client resumes after its
    last event at any process, also after a restart, and sees what other processes book.
    """

    routes = ["/booked"]
    timeout = None

    def __init__(self, sessions: Sessions) -> None:
        # Not the session of the call, which would keep a connection as long as the stream is open.
        self.sessions = sessions

    async def get(
        self,
        request: web.Request,
        after: Number = 0,
        last_event_id: Annotated[Number | None, Header] = None,
    ) -> web.StreamResponse:
        """Stream all orders, or those after the last event that the client received."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        number = after if last_event_id is None else last_event_id
        while True:
            async with self.sessions() as session:
                orders = await OrderRepository(session).after(number)
            for order in orders:
                number = order.number
                data = order.model_dump_json()
                await response.write(f"id: {number}\nevent: booked\ndata: {data}\n\n".encode())
            if not orders:
                # A comment: it shows clients that the connection is alive, and us that they are.
                await response.write(b": nothing new\n\n")
                await asyncio.sleep(POLL)
