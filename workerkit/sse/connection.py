"""One connection to one event stream: open it, follow redirects, read its events."""

import asyncio
import os
import re
import ssl
import zlib
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, Self

import aiohttp
from aiohttp_sse_client.client import (
    READY_STATE_CLOSED,
    READY_STATE_CONNECTING,
    READY_STATE_OPEN,
    EventSource,
)
from multidict import CIMultiDict

from workerkit.describe import describe_error
from workerkit.errors import ConnectionLost, StreamRefused
from workerkit.forking import keep_from_children
from workerkit.sse.cookies import Cookies
from workerkit.sse.decoding import ACCEPTED, Decoder, encoding_of
from workerkit.sse.event import SSEEvent
from workerkit.sse.parser import Parser, is_sendable
from workerkit.sse.protocol import connector
from workerkit.sse.redirects import (
    MAX_REDIRECTS,
    Hop,
    Redirect,
    check_hop,
    first_hop,
    is_redirect,
    next_hop,
)
from workerkit.sse.request import StreamRequest, retry_after_seconds, unsendable_header

_EVENT_STREAM = "text/event-stream"
_NO_CONTENT = 204
# A larger chunk takes more time for each event: its parsed data no longer fits the CPU caches.
_CHUNK = 16 * 1024
# Other tasks get a turn after this many seconds, or bytes. The slowest chunk takes about 5 ms.
_MAX_TURN = 0.001
_MAX_PARSED = 4 * _CHUNK
_MAX_TYPE_LENGTH = 60

_CLOSED_EARLY = "the connection was closed in the middle of the stream"

_QUOTATION = re.compile("b?['\"]")
_SAFE_TEXT = re.compile("[A-Za-z0-9 ,.:/-]{1,100}")

# Errors of the configuration: trying again does not help.
_TLS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError)

NETWORK_ERRORS = (aiohttp.ClientError,)
"""Errors of the server or the network; their tracebacks do not help."""

_NO_RESPONSE = "the server closed the connection without a response"


class StreamConnection(EventSource):
    """An `EventSource` that follows the WHATWG standard and connects once.

    It keeps the life cycle and the states of the base class. Each iteration returns a list of the
    events that one chunk completed; it may be empty, as after a comment. The iteration ends when
    the server ends the stream; it does not reconnect. Other tasks get a turn at least every 64 kB,
    also while a body is decompressed.

    Args:
        parser: Its last event id is the one to resume after.
        cookies: Cookies of earlier connections; those of this connection are added.
        redirected: Called with each redirect to another origin.

    Attributes:
        parser: Has the last event id and the reconnection time.
        has_ended: The server has ended the stream permanently: it answered 204.
    """

    def __init__(
        self,
        request: StreamRequest,
        parser: Parser,
        cookies: Cookies | None = None,
        redirected: Callable[[Redirect], None] = lambda redirect: None,
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=request.connect_timeout)
        # aiohttp's cookie jar ignores ports. Its decompression has no limit for one step.
        session = aiohttp.ClientSession(
            connector=connector(),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        super().__init__(request.url, option={"method": request.method}, session=session)
        self._need_close_session = True
        self._request = request
        self._cookies = Cookies() if cookies is None else cookies
        self._redirected = redirected
        self._decoder: Decoder | None = None
        self._protocol: Any = None
        self._close_reason = ""
        self._turn = perf_counter()
        self._parsed = 0
        self._turn_scheduled = False
        self.parser = parser
        self.has_ended = False

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise

    async def connect(self, retry: int = 0) -> None:
        """Send the request once and check the head of the response; *retry* is not used.

        Raises:
            StreamRefused: The response is not an event stream, or TLS failed.
            ConnectionLost: There was no response.
        """
        self._ready_state = READY_STATE_CONNECTING
        try:
            async with asyncio.timeout(self._request.idle_timeout or None):
                response = await self._open()
        except TimeoutError as error:
            raise ConnectionLost(f"{self._request}: no response in time") from error
        if response.status == _NO_CONTENT:
            response.close()
            self.has_ended = True
            self._ready_state = READY_STATE_CLOSED
            return
        encoding = encoding_of(response.headers.get("Content-Encoding"))
        is_stream = response.status == 200 and _content_type(response) == _EVENT_STREAM
        if not is_stream or encoding is None:
            response.close()
            raise _refusal(self._request, response, is_stream)
        self._decoder = Decoder(encoding, _CHUNK) if encoding else None
        self._response = response
        self._notice_close(response)
        # Data that arrived with the head is read without a turn of other tasks in between.
        self._turn = perf_counter()
        self._ready_state = READY_STATE_OPEN

    async def __anext__(self) -> list[SSEEvent[Any]]:
        if self._response is None or self._ready_state == READY_STATE_CLOSED:
            raise StopAsyncIteration
        if not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._end_turn)
        decoder = self._decoder
        if decoder is None or not decoder.has_more:
            chunk = await self._chunk(self._response)
            if not chunk:
                if self._close_reason:
                    raise ConnectionLost(f"{self._request}: {self._close_reason}")
                raise StopAsyncIteration
        else:
            chunk = b""
        if not self._turn_scheduled:
            # It waited for the chunk, so other tasks had a turn.
            self._turn = perf_counter()
        elif self._parsed >= _MAX_PARSED or perf_counter() - self._turn > _MAX_TURN:
            await asyncio.sleep(0)
        if decoder is not None:
            try:
                chunk = decoder.step(chunk)
            except zlib.error:
                text = f"{self._request}: the body cannot be decompressed"
                raise ConnectionLost(text) from None
        self._parsed += len(chunk)
        return self.parser.feed(chunk)

    def _end_turn(self) -> None:
        self._turn_scheduled, self._parsed, self._turn = False, 0, perf_counter()

    async def _chunk(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the data that has arrived; b"" at the end of the stream."""
        idle = self._request.idle_timeout
        try:
            async with asyncio.timeout(idle or None):
                return await response.content.read(_CHUNK)
        except TimeoutError:
            raise ConnectionLost(f"{self._request}: no data for {idle:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"{self._request}: {describe_error(error)}") from error
        except aiohttp.ClientPayloadError:
            raise ConnectionLost(f"{self._request}: {self._malformed() or _CLOSED_EARLY}") from None
        except Exception as error:
            raise ConnectionLost(
                f"{self._request}: {self._malformed() or _error_name(error)}"
            ) from None

    def _notice_close(self, response: aiohttp.ClientResponse) -> None:
        """End the body when its connection is closed, and close the socket in forked children.

        aiohttp closes the connection of a malformed body without an error for its reader.
        """
        connection = response.connection
        if connection is not None and connection.transport is not None:
            keep_from_children(connection.transport)
        protocol = None if connection is None else connection.protocol
        closed = None if protocol is None else protocol.closed
        if protocol is not None and closed is not None:
            self._protocol = protocol
            closed.add_done_callback(partial(self._closed, response.content))

    def _closed(self, content: aiohttp.StreamReader, closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # Marks it as retrieved; the reader of the body gets it as well.
        if not content.is_eof() and content.exception() is None:
            # Data that arrived before is read first.
            self._close_reason = self._malformed() or _CLOSED_EARLY
            content.feed_eof()

    def _malformed(self) -> str:
        """Return the fault in the HTTP of the body; "" if there is none."""
        error = None if self._protocol is None else self._protocol.exception()
        return _error_name(error) if isinstance(error, aiohttp.http.HttpProcessingError) else ""

    async def _open(self) -> aiohttp.ClientResponse:
        """Return the response after all redirects.

        Raises:
            StreamRefused: A redirect is not followed, or TLS failed.
            ConnectionLost: There was no response.
        """
        hop = first_hop(self._request)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(hop)
            if hop.configured_origin:
                self._keep_cookies(response)
            if not is_redirect(response.status):
                return response
            response.close()
            following = next_hop(
                self._request, hop, response.status, response.headers.get("Location")
            )
            if (redirect := check_hop(self._request, hop, following)) is not None:
                self._redirected(redirect)
                if redirect.refusal:
                    raise _refused_redirect(self._request, redirect, response.status)
            hop = following
        raise StreamRefused(f"{self._request}: more than {MAX_REDIRECTS} redirects", 310)

    async def _send(self, hop: Hop) -> aiohttp.ClientResponse:
        request = self._request
        headers = self._headers(hop)
        try:
            proxy = request.proxy_for(hop.url)
        except ValueError:
            text = f"{request}: the proxy of the environment is not the URL of an HTTP proxy"
            raise StreamRefused(text, 0) from None
        try:
            return await self._session.request(
                hop.method,
                hop.url,
                headers=headers,
                json=hop.json,
                ssl=(request.tls if hop.trusted else request.tls_elsewhere) or True,
                server_hostname=request.server_name if hop.configured_origin else None,
                proxy=proxy,
                allow_redirects=False,
            )
        except _TLS as error:
            raise StreamRefused(f"{request}: {describe_error(error)}", 0) from error
        except TimeoutError:
            raise
        except aiohttp.ClientHttpProxyError as error:
            text = f"{request}: the proxy answered {_status(error.status)}"
            raise StreamRefused(text, error.status) from None
        except aiohttp.ServerDisconnectedError:
            # Its text may contain the head of the response.
            raise ConnectionLost(f"{request}: {_NO_RESPONSE}") from None
        except aiohttp.ClientConnectorError as error:
            raise ConnectionLost(f"{request}: {_connect_error(error)}") from error
        except OSError as error:
            # It contains only addresses and system errors; other texts may quote the server.
            raise ConnectionLost(f"{request}: {describe_error(error)}") from error
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError) as error:
            raise ConnectionLost(f"{request}: {_error_name(error)}") from None
        except Exception as error:
            # Not chained: its text may quote the value of a header.
            if wrong := unsendable_header(headers):
                raise StreamRefused(f"{request}: {wrong}", 0) from None
            raise ConnectionLost(f"{request}: {_error_name(error)}") from None

    def _headers(self, hop: Hop) -> CIMultiDict[str]:
        # The standard requires these; they replace headers of the configuration.
        headers = CIMultiDict(hop.headers)
        headers["Accept"] = _EVENT_STREAM
        headers["Cache-Control"] = "no-cache"
        headers.setdefault("Accept-Encoding", ACCEPTED)
        if self.parser.last_event_id and is_sendable(self.parser.last_event_id):
            headers["Last-Event-ID"] = self.parser.last_event_id
        if hop.configured_origin:
            own = headers.pop("Cookie", "")
            if cookies := "; ".join(filter(None, (own, self._cookies.header(hop.url)))):
                headers["Cookie"] = cookies
        return headers

    def _keep_cookies(self, response: aiohttp.ClientResponse) -> None:
        try:
            self._cookies.add(response.cookies, response.url)
        except Exception:
            # A malformed cookie: it is not kept.
            self._cookies.ignored += 1


def _error_name(error: BaseException | None) -> str:
    """Return a description of an error without quotes of the server's response."""
    names: list[str] = []
    while error is not None:
        if isinstance(error, aiohttp.http.HttpProcessingError):
            # The text is such as "Invalid character in chunk size:", a blank line, and the bytes.
            text = " ".join(_QUOTATION.split(error.message)[0].split()).rstrip(" :")
            return f"malformed HTTP: {text}" if _SAFE_TEXT.fullmatch(text) else "malformed HTTP"
        names.append(type(error).__name__)
        error = error.__cause__
    return ": ".join(dict.fromkeys(names))


def _connect_error(error: aiohttp.ClientConnectorError) -> str:
    """Return the system error, without the address and the settings that aiohttp adds."""
    found = error.os_error
    if found.errno and found.errno > 0:
        return f"[Errno {found.errno}] {os.strerror(found.errno)}"
    # Errors of name resolution have negative numbers; some errors have neither number nor text.
    return found.strerror or f"cannot connect to {error.host}:{error.port}: {describe_error(found)}"


def _status(status: int) -> str:
    """Return a status with its standard phrase: the phrase of the server may be any text."""
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def _content_type(response: aiohttp.ClientResponse) -> str:
    try:
        return response.content_type
    except Exception:
        # The header of the server cannot be parsed.
        return "application/octet-stream"


def _refusal(
    request: StreamRequest, response: aiohttp.ClientResponse, is_stream: bool
) -> StreamRefused:
    found = _status(response.status)
    if is_stream:
        found += f" with a content encoding other than {ACCEPTED}"
    elif response.status == 200:
        type_ = _content_type(response)[:_MAX_TYPE_LENGTH]
        found += f" with content type {type_!r} instead of {_EVENT_STREAM!r}"
    after = retry_after_seconds(response.headers.get("Retry-After"))
    return StreamRefused(f"{request} was answered by {found}", response.status, after)


def _refused_redirect(request: StreamRequest, redirect: Redirect, status: int) -> StreamRefused:
    way = f"from {redirect.origin} to {redirect.target}"
    return StreamRefused(
        f"{request}: the redirect {way} was not followed: {redirect.refusal}", status
    )
