"""Tests of the stream of booked orders, as a browser reads it."""

import json
from collections.abc import AsyncGenerator

import aiohttp
from workerkit.testing import running

from shop.container import Container
from shop.orders import Order

VIEWS = ["BookedOrders", "OrderView"]


async def events(url: str, last: str | None = None) -> AsyncGenerator[tuple[str, int], None]:
    """Yield the id of each event and of its order, as they arrive."""
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
    timeout = aiohttp.ClientTimeout(total=30.0)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.get(url) as response,
    ):
        event_id = ""
        async for line in response.content:
            field, _, value = line.decode().strip().partition(": ")
            if field == "id":
                event_id = value
            elif field == "data":
                yield event_id, json.loads(value)["id"]


async def test_a_stream_that_is_resumed(container: Container) -> None:
    """A client gets every order, and after a lost connection those after its last event."""
    async with running(container, packages=["shop"], only=VIEWS) as app:
        for number in (3, 1):
            await app.http.put(f"/orders/{number}", json=Order(id=number, item="tea"))
        stream = events(f"{app.http.url}/booked")
        seen = [await anext(stream), await anext(stream)]
        await app.http.put("/orders/2", json=Order(id=2, item="tea"))
        seen.append(await anext(stream))
        await stream.aclose()
        stream = events(f"{app.http.url}/booked", last=seen[0][0])
        resumed = [await anext(stream), await anext(stream)]
        await stream.aclose()

    assert [order_id for _, order_id in seen] == [3, 1, 2]
    assert resumed == seen[1:]


async def test_a_stream_after_a_number(container: Container) -> None:
    """The page asks for the orders after those that it shows."""
    async with running(container, packages=["shop"], only=VIEWS) as app:
        for number in (1, 2):
            await app.http.put(f"/orders/{number}", json=Order(id=number, item="tea"))
        shown = (await app.http.get("/orders/1")).json()["number"]
        stream = events(f"{app.http.url}/booked?after={shown}")
        _, order_id = await anext(stream)
        await stream.aclose()

    assert order_id == 2
