"""What every request gets before the middlewares of the user's, and before its view."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from workerkit.http.connection import ClientConnection
from workerkit.http.request import identify


@web.middleware
async def begun(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Stand before the user's middlewares: their requests have ids, limits, and are waited for."""
    identify(request)
    # Of a view it is a partial call of a receiver's method.
    receiver = getattr(getattr(request.match_info.handler, "func", None), "__self__", None)
    if (limit := getattr(receiver, "max_body", None)) is not None:
        request = limited(request, limit)
    connection = request.protocol
    assert isinstance(connection, ClientConnection)
    connection.begin(request)
    try:
        return await handler(request)
    except Exception:
        raise
    except BaseException:
        # Nothing is going to be sent.
        connection.release()
        raise


def limited(request: web.Request, max_body: int) -> web.Request:
    """The request, whose body may have so many bytes."""
    if request.client_max_size == max_body:
        return request
    # A body that a middleware has read is as large as it is.
    with suppress(RuntimeError):
        return request.clone(client_max_size=max_body)
    return request
