"""Write a simple response without aiohttp's preparations.

`StreamResponse.prepare` checks for cookies, compression, chunks, signals and old versions of HTTP,
and its writer for a head that is not sent yet. A response with none of these can be written
directly: this takes 4 µs less CPU per request, which pays for the rest of what workerkit does.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from email.utils import formatdate
from typing import Any

from aiohttp import ClientConnectionResetError, StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11

from workerkit.http.request import REQUEST_ID

_WITHOUT_BODY = frozenset({204, 205, 304})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# Limits for reading the rest of a request's body after the response, so that its client gets to
# read the response: seconds, and decompressed bytes of a compressed body.
LINGERING = 1.0
_MAX_DISCARDED = 8 << 20
_LARGE = 65_536  # From this size on, copying a body takes longer than a second call of write().
_COMPLEX_HEADERS = (
    hdrs.CONNECTION,
    hdrs.CONTENT_LENGTH,
    hdrs.DATE,
    hdrs.SERVER,
    hdrs.TRANSFER_ENCODING,
    REQUEST_ID,
)


class _SentResponse(web.Response):
    """A placeholder for a response that is sent; aiohttp reads `keep_alive` of it."""

    keep_alive = True


# What `RequestHandler.finish_response` returns: a response, and whether the client has left.
Sending = Coroutine[Any, Any, tuple[web.StreamResponse, bool]]
SENT: web.StreamResponse = _SentResponse()
# The second for which the common headers were last written, and those headers.
_second = 0
_headers = ""


def fast_response(
    request: web.BaseRequest, response: web.StreamResponse, id: str
) -> tuple[bytes, bytes] | None:
    """Return the head and the body of a response; None if aiohttp has to send it.

    Args:
        id: The id of the request.
    """
    if type(response) is not web.Response or type(body := response.body) is not bytes:
        return None
    if not _is_simple(request, response):
        return None
    try:
        lines = _head_lines(response)
    except TypeError:
        # A header's value is not a str.
        return None
    # A line break in a value would add a header; aiohttp raises an error for it.
    if lines is None or not "".join(lines).isprintable() or not id.isprintable():
        return None
    own = "\r\n".join(lines)
    head = f"{own}\r\nContent-Length: {len(body)}\r\n{_common_headers()}{id}\r\n\r\n".encode()
    return head, body


def _head_lines(response: web.Response) -> list[str] | None:
    """Return the lines of the head that the view determines; None if aiohttp has to write them."""
    headers = response.headers
    kind = headers.get(hdrs.CONTENT_TYPE)
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}",
        "Content-Type: " + ("application/octet-stream" if kind is None else kind),
    ]
    if len(headers) > (kind is not None):
        if any(name in headers for name in _COMPLEX_HEADERS):
            return None
        others = (item for item in headers.items() if item[0].lower() != "content-type")
        lines += map(": ".join, others)
    return lines


def _is_simple(request: web.BaseRequest, response: web.Response) -> bool:
    """Return whether a response has only headers and a body, and the connection is kept open."""
    return (
        response.status not in _WITHOUT_BODY
        and not response.prepared
        and not request.writer.output_size
        and not response.compression
        and not response.chunked
        # The property `cookies` would create a jar.
        and getattr(response, "_cookies", True) is None
        and response.keep_alive is None
        and (request.method == "GET" or _is_not_multipart(request))
        and request.version is HttpVersion11
        and request.keep_alive
        and hdrs.UPGRADE not in request.headers
    )


def _is_not_multipart(request: web.BaseRequest) -> bool:
    # aiohttp closes the files of a form after the response.
    form = request.headers.get(hdrs.CONTENT_TYPE, "").startswith("multipart/")
    return request.method in _WITH_BODY and not form


def is_used(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Return whether a prepared response was sent for another request before.

    aiohttp would send nothing and close the connection.
    """
    return not request.writer.output_size and getattr(response, "_req", request) is not request


async def send(
    request: web.BaseRequest, head: bytes, body: bytes, sent: Callable[[], None]
) -> tuple[web.StreamResponse, bool]:
    """Send head and body as `RequestHandler.finish_response` does, then call *sent*."""
    writer = request.writer
    transport = writer.transport
    try:
        if transport is None or transport.is_closing():
            return SENT, True
        if len(body) < _LARGE:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        writer.output_size += len(head) + len(body)
        if transport.get_write_buffer_size():
            await writer.drain()
    except ConnectionError:
        return SENT, True
    finally:
        sent()
    return SENT, False


async def discard_rest(content: StreamReader, sending: Sending) -> tuple[web.StreamResponse, bool]:
    """Send a response, then read and discard the rest of a compressed body, up to a limit.

    A client that sends no more than the limit gets to read the response. A few bytes may decompress
    to any number of them, so other tasks get a turn after each piece.
    """
    sent = await sending
    read = 0
    with suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
        async with asyncio.timeout(LINGERING):
            while not content.is_eof() and read < _MAX_DISCARDED:
                read += len(await content.readany())
                await asyncio.sleep(0)
    return sent


def without_body(writer: AbstractStreamWriter) -> None:
    """Have *writer* send only the head of the response to a HEAD request.

    aiohttp would also send the body of a stream, which the client would read as the head of its
    next response.
    """

    async def write(chunk: object, **_: object) -> None:
        writer.send_headers()
        if writer.transport is None or writer.transport.is_closing():
            raise ClientConnectionResetError("the client has left")

    vars(writer)["write"] = write


def _common_headers() -> str:
    """Return the headers of every response, up to the value of the id; they change each second."""
    global _second, _headers
    now = int(time.time())
    if now != _second:
        date = formatdate(now, usegmt=True)
        _second, _headers = now, f"Date: {date}\r\nServer: {SERVER_SOFTWARE}\r\n{REQUEST_ID}: "
    return _headers
