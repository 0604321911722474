"""Cancel what a client waits for when the client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import ClientConnectionResetError, web

from workerkit.http.connection import ClientConnection

T = TypeVar("T")


async def while_connected(request: web.Request, call: Coroutine[Any, Any, T]) -> T:
    """Await a call for a request, and cancel it if the client disconnects.

    Without this, a request is handled to its end.

    Raises:
        ClientConnectionResetError: The client has disconnected.
    """
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    current = asyncio.current_task()
    assert current is not None
    cancelled, task = current.cancelling(), asyncio.create_task(call)
    connection.on_lost = task.cancel
    if request.transport is None:
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError as error:
        if current.cancelling() > cancelled or request.transport is not None:
            raise
        raise ClientConnectionResetError("the client has disconnected") from error
    finally:
        connection.on_lost = None
