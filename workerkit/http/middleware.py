"""The middleware that runs before the user's middlewares."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from workerkit.http.connection import ClientConnection
from workerkit.http.request import assign_id


@web.middleware
async def prepare_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give a request its id and its limits, and have the server wait for it when it stops."""
    assign_id(request)
    # The handler of a view is a `partial` of a method of its receiver.
    receiver = getattr(getattr(request.match_info.handler, "func", None), "__self__", None)
    if (limit := getattr(receiver, "max_body", None)) is not None:
        request = with_body_limit(request, limit)
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    connection.enter_middlewares(request)
    try:
        return await handler(request)
    except Exception:
        raise
    except BaseException:
        # No response will be sent.
        connection.leave_request()
        raise


def with_body_limit(request: web.Request, max_body: int) -> web.Request:
    """Return the request with a limit for the bytes of its body."""
    if request.client_max_size == max_body:
        return request
    # The request cannot be cloned once a middleware has read its body.
    with suppress(RuntimeError):
        return request.clone(client_max_size=max_body)
    return request
