"""Write an answer that is like most others, without aiohttp's preparations.

`StreamResponse.prepare` looks for cookies, compression, chunks, signals and old versions of HTTP on
the way, and its writer for what may be left of the head. Where none of these is there, a head can
be written at once: 4 µs of CPU less per request, which pay for what workerkit does beside.
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
# For what a client still sends of a body that nobody wants, so that it comes to read the answer:
# seconds, and bytes of a compressed one after decompression.
LINGERING = 1.0
_DISCARDED = 8 << 20
_LARGE = 65_536  # From here on, to copy a body costs more than to send it for itself.
_NOT_PLAIN = (
    hdrs.CONNECTION,
    hdrs.CONTENT_LENGTH,
    hdrs.DATE,
    hdrs.SERVER,
    hdrs.TRANSFER_ENCODING,
    REQUEST_ID,
)


class _Sent(web.Response):
    """Stands for an answer that is sent; aiohttp asks it whether the connection goes on."""

    keep_alive = True


# As `RequestHandler.finish_response`: an answer, and whether the client has left.
Sending = Coroutine[Any, Any, tuple[web.StreamResponse, bool]]
SENT: web.StreamResponse = _Sent()
_second = 0
_headers = ""


def plain(
    request: web.BaseRequest, response: web.StreamResponse, id: str
) -> tuple[bytes, bytes] | None:
    """Head and body of an answer; None where it is one for aiohttp to send.

    Args:
        id: Of the request.
    """
    if type(response) is not web.Response or type(body := response.body) is not bytes:
        return None
    if not _is_plain(request, response):
        return None
    try:
        lines = _chosen(response)
    except TypeError:
        # A value that is no text.
        return None
    # A line break in a value would make a header that nobody has set; aiohttp says so.
    if lines is None or not "".join(lines).isprintable() or not id.isprintable():
        return None
    chosen = "\r\n".join(lines)
    head = f"{chosen}\r\nContent-Length: {len(body)}\r\n{_given()}{id}\r\n\r\n".encode()
    return head, body


def _chosen(response: web.Response) -> list[str] | None:
    """The lines of a head that are up to the view; None where one of them is not for us."""
    headers = response.headers
    kind = headers.get(hdrs.CONTENT_TYPE)
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}",
        "Content-Type: " + ("application/octet-stream" if kind is None else kind),
    ]
    if len(headers) > (kind is not None):
        if any(name in headers for name in _NOT_PLAIN):
            return None
        others = (item for item in headers.items() if item[0].lower() != "content-type")
        lines += map(": ".join, others)
    return lines


def _is_plain(request: web.BaseRequest, response: web.Response) -> bool:
    """Whether it is for somebody who keeps the connection, and has no more than a body."""
    return (
        response.status not in _WITHOUT_BODY
        and not response.prepared
        and not request.writer.output_size
        and not response.compression
        and not response.chunked
        # The property would make a jar for them first.
        and getattr(response, "_cookies", True) is None
        and response.keep_alive is None
        and (request.method == "GET" or _has_no_parts(request))
        and request.version is HttpVersion11
        and request.keep_alive
        and hdrs.UPGRADE not in request.headers
    )


def _has_no_parts(request: web.BaseRequest) -> bool:
    # aiohttp closes the files of a form behind the answer.
    form = request.headers.get(hdrs.CONTENT_TYPE, "").startswith("multipart/")
    return request.method in _WITH_BODY and not form


def is_used(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Whether a response that is prepared was the answer to another request.

    aiohttp would send nothing and close the connection.
    """
    return not request.writer.output_size and getattr(response, "_req", request) is not request


async def send(
    request: web.BaseRequest, head: bytes, body: bytes, sent: Callable[[], None]
) -> tuple[web.StreamResponse, bool]:
    """Send it, as `RequestHandler.finish_response`, and call *sent* when nothing is left to do."""
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


async def discard(content: StreamReader, sending: Sending) -> tuple[web.StreamResponse, bool]:
    """Send an answer, then read and forget the rest of a compressed body, up to a limit.

    The client comes to read the answer, if it sends no more than the limit. A few bytes may
    decompress to any number, without a pause for others, so they get a turn between the pieces.
    """
    sent = await sending
    read = 0
    with suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
        async with asyncio.timeout(LINGERING):
            while not content.is_eof() and read < _DISCARDED:
                read += len(await content.readany())
                await asyncio.sleep(0)
    return sent


def without_body(writer: AbstractStreamWriter) -> None:
    """Send no more than the head: aiohttp writes the body of a stream in answer to a HEAD as well.

    The client would read it as the head of its next answer.
    """

    async def write(chunk: object, **_: object) -> None:
        writer.send_headers()
        if writer.transport is None or writer.transport.is_closing():
            raise ClientConnectionResetError("the client has left")

    vars(writer)["write"] = write


def _given() -> str:
    """What stands in each head, up to the id; made anew once a second."""
    global _second, _headers
    now = int(time.time())
    if now != _second:
        date = formatdate(now, usegmt=True)
        _second, _headers = now, f"Date: {date}\r\nServer: {SERVER_SOFTWARE}\r\n{REQUEST_ID}: "
    return _headers
