"""Send an answer whose head is like most others, without aiohttp's preparations.

`StreamResponse.prepare` looks for cookies, compression, chunks, signals and old versions of HTTP on
the way; where none of these is there, what is left takes a third of its time. Measured on a hello:
3 µs of CPU per request, which pay for what workerkit does beside.
"""

import time
from collections.abc import Callable
from email.utils import formatdate

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11

_WITHOUT_BODY = frozenset({204, 205, 304})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class _Sent(web.Response):
    """Stands for an answer that is sent; aiohttp asks it whether the connection goes on."""

    keep_alive = True


_sent = _Sent()
_second = 0
_date = ""


def is_plain(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Whether `send` may send it: bytes to somebody who keeps the connection."""
    return (
        type(response) is web.Response
        and type(response.body) is bytes
        and response.status not in _WITHOUT_BODY
        and not response.prepared
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


async def send(
    request: web.BaseRequest, response: web.StreamResponse, sent: Callable[[], None]
) -> tuple[web.StreamResponse, bool]:
    """Send it, as `RequestHandler.finish_response`, and call *sent* when nothing is left to do."""
    assert type(response) is web.Response
    body = response.body
    assert type(body) is bytes
    headers = response.headers
    headers[hdrs.CONTENT_LENGTH] = str(len(body))
    if hdrs.CONTENT_TYPE not in headers:
        headers[hdrs.CONTENT_TYPE] = "application/octet-stream"
    if hdrs.DATE not in headers:
        headers[hdrs.DATE] = _now()
    if hdrs.SERVER not in headers:
        headers[hdrs.SERVER] = SERVER_SOFTWARE
    writer = request.writer
    try:
        await writer.write_headers(f"HTTP/1.1 {response.status} {response.reason}", headers)
        await writer.write_eof(body)
    except ConnectionError:
        return response, True
    finally:
        sent()
    return _sent, False


def without_body(writer: AbstractStreamWriter) -> None:
    """Send no more than the head: aiohttp writes the body of a stream in answer to a HEAD as well.

    The client would read it as the head of its next answer.
    """

    async def write(chunk: object, **_: object) -> None:
        writer.send_headers()
        if writer.transport is None or writer.transport.is_closing():
            raise ClientConnectionResetError("the client has left")

    vars(writer)["write"] = write


def _now() -> str:
    """The value of the header `Date`, made anew once a second."""
    global _second, _date
    now = int(time.time())
    if now != _second:
        _second, _date = now, formatdate(now, usegmt=True)
    return _date
