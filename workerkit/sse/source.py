"""One connection to one event stream."""

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import aiohttp
from aiohttp_sse_client.client import (
    READY_STATE_CLOSED,
    READY_STATE_CONNECTING,
    READY_STATE_OPEN,
    EventSource,
)
from multidict import CIMultiDict
from yarl import URL

from workerkit.errors import ConnectionLost, StreamRefused
from workerkit.places import said
from workerkit.sse.event import SSEEvent
from workerkit.sse.stream import Parser

_EVENT_STREAM = "text/event-stream"
_NO_CONTENT = 204
# More at a time costs more for each event: what a chunk becomes no longer fits the caches.
_CHUNK = 16 * 1024

# What would end a header, or the request.
_NO_TEXT = re.compile("[\r\n\0]")

# Mistakes of whoever configured it, which no second try mends.
_TLS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError)

# Their texts have whole URLs, or what the server wrote.
_TELLTALE = (aiohttp.ClientResponseError, aiohttp.InvalidURL, aiohttp.RedirectClientError)


@dataclass(frozen=True, slots=True)
class Request:
    """How a stream is asked for.

    Attributes:
        url: May contain secrets in its query.
        display: The same for logs and errors.
        headers: With the credentials.
        json: Body; None for none.
        tls: None for the system's certificates.
        server_name: That the certificate must have, instead of the host.
        connect_timeout: Seconds for name resolution, TCP and TLS.
        idle_timeout: Seconds without a byte after which the connection is lost; 0 for never.
    """

    method: str
    url: URL = field(repr=False)
    display: str
    headers: Mapping[str, str] = field(repr=False)
    json: Any
    tls: ssl.SSLContext | None
    server_name: str | None
    connect_timeout: float
    idle_timeout: float

    def __str__(self) -> str:
        return f"{self.method} {self.display}"


class Source(EventSource):
    """An `EventSource` that reads as the standard says and connects once.

    Of the base class remain the life cycle and its states. Iterating gives the events that each
    chunk completed, as a list, which may be empty: a comment is a sign of life. It ends where the
    server ends the stream; whoever reads it decides when to connect again, and as what.

    Args:
        parser: Begins with the id to resume behind.

    Attributes:
        parser: Knows the last event id and what the server asked for.
        over: The server has nothing more, for good: it answered 204.
    """

    def __init__(self, request: Request, parser: Parser) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=request.connect_timeout)
        session = aiohttp.ClientSession(timeout=timeout)
        super().__init__(request.url, option={"method": request.method}, session=session)
        self._need_close_session = True
        self._request = request
        self.parser = parser
        self.over = False

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise

    async def connect(self, retry: int = 0) -> None:
        """Send the request and look at the answer's head, once; *retry* is the base class's.

        Raises:
            StreamRefused: The answer is no event stream, or TLS failed.
            ConnectionLost: There was no answer.
        """
        self._ready_state = READY_STATE_CONNECTING
        response = await self._answer()
        if response.status == _NO_CONTENT:
            response.close()
            self.over = True
            self._ready_state = READY_STATE_CLOSED
            return
        if response.status != 200 or response.content_type != _EVENT_STREAM:
            response.close()
            raise _refusal(self._request, response)
        self._response = response
        self._ready_state = READY_STATE_OPEN

    async def __anext__(self) -> list[SSEEvent[Any]]:
        response, idle = self._response, self._request.idle_timeout
        if response is None or self._ready_state == READY_STATE_CLOSED:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(idle or None):
                chunk = await response.content.read(_CHUNK)
        except TimeoutError:
            raise ConnectionLost(f"{self._request}: nothing came for {idle:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(f"{self._request}: {said(error)}") from error
        if not chunk:
            raise StopAsyncIteration
        return self.parser.feed(chunk)

    async def _answer(self) -> aiohttp.ClientResponse:
        request = self._request
        try:
            async with asyncio.timeout(request.idle_timeout or None):
                return await self._session.request(
                    request.method,
                    request.url,
                    headers=self._headers(),
                    json=request.json,
                    ssl=request.tls or True,
                    server_hostname=request.server_name,
                )
        except _TLS as error:
            raise StreamRefused(f"{request}: {said(error)}", 0) from error
        except _TELLTALE as error:
            raise ConnectionLost(f"{request}: {type(error).__name__}") from None
        except TimeoutError as error:
            raise ConnectionLost(f"{request}: no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(f"{request}: {said(error)}") from error
        except (ValueError, TypeError):
            # Not chained: such a text may quote the value.
            raise StreamRefused(f"{request}: {_unsendable(self._headers())}", 0) from None

    def _headers(self) -> CIMultiDict[str]:
        # As the standard asks for, over what is configured.
        headers = CIMultiDict(self._request.headers)
        headers["Accept"] = _EVENT_STREAM
        headers["Cache-Control"] = "no-cache"
        if self.parser.last_event_id:
            headers["Last-Event-ID"] = self.parser.last_event_id
        return headers


def _unsendable(headers: Mapping[str, Any]) -> str:
    """Say which header a request cannot have; its value stays out of it."""
    names = [name for name, value in headers.items() if not (_is_text(name) and _is_text(value))]
    told = f"header {names[0]!r}" if names else "a header"
    return f"{told} cannot be sent: write a str without line breaks"


def _is_text(found: object) -> bool:
    return isinstance(found, str) and not _NO_TEXT.search(found)


def _refusal(request: Request, response: aiohttp.ClientResponse) -> StreamRefused:
    found = f"{response.status} {response.reason or ''}".strip()
    if response.status == 200:
        found += f" with content type {response.content_type!r} instead of {_EVENT_STREAM!r}"
    after = _seconds(response.headers.get("Retry-After"))
    return StreamRefused(f"{request} was answered by {found}", response.status, after)


def _seconds(retry_after: str | None) -> float | None:
    """The header `Retry-After`, which has seconds or a date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)
