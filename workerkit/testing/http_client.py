"""A small HTTP client, for tests of views."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from workerkit.codec import encode
from workerkit.endpoint import Endpoint
from workerkit.health import Health
from workerkit.http.response import is_event_stream
from workerkit.http.transport import HTTPTransport
from workerkit.transport import Context


@dataclass(frozen=True, slots=True)
class HTTPAnswer:
    """What a server has answered.

    Attributes:
        headers: By name, in any case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self.body)


class HTTPClient:
    """Asks one server, over real connections.

    Attributes:
        url: Of the server, for clients of your own; empty before `open`.
    """

    def __init__(self) -> None:
        self.url = ""
        self._session: aiohttp.ClientSession | None = None

    def open(self, url: str) -> None:
        """Ask the server of this address from now on."""
        self.url = url
        self._session = aiohttp.ClientSession(url, cookie_jar=aiohttp.DummyCookieJar())

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        body: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> HTTPAnswer:
        """Send a request and read the answer; redirects are not followed.

        Args:
            json: A model, a dataclass or JSON values, which become the body.
            body: Instead, as it is.
            query: Lists become parameters that are repeated.

        Raises:
            RuntimeError: There is no server, because no view runs.
        """
        if self._session is None:
            raise RuntimeError("there is no HTTP server: no view runs")
        told = dict(headers or {})
        if json is not None:
            body, content_type = encode(json)
            told.setdefault("Content-Type", content_type)
        async with self._session.request(
            method,
            path,
            data=body,
            params=query,
            headers=told,
            cookies=cookies,
            allow_redirects=False,
        ) as answer:
            return HTTPAnswer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a GET; as `request`."""
        return await self.request("GET", path, **more)

    async def post(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a POST; as `request`."""
        return await self.request("POST", path, **more)

    async def put(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a PUT; as `request`."""
        return await self.request("PUT", path, **more)

    async def patch(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a PATCH; as `request`."""
        return await self.request("PATCH", path, **more)

    async def delete(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a DELETE; as `request`."""
        return await self.request("DELETE", path, **more)

    async def head(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a HEAD; as `request`."""
        return await self.request("HEAD", path, **more)

    async def options(self, path: str, **more: Any) -> HTTPAnswer:
        """Send an OPTIONS; as `request`."""
        return await self.request("OPTIONS", path, **more)

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()


class WatchedViews:
    """A transport of HTTP that knows which of its answers are event streams, which have no end."""

    def __init__(self, transport: HTTPTransport) -> None:
        self._transport = transport
        self._answering: dict[int, web.Request] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Listen, with a middleware more."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._answering[id(request)] = request
            try:
                return await handler(request)
            finally:
                del self._answering[id(request)]

        context = replace(context, middlewares=[watch, *context.middlewares])
        return await self._transport.start(endpoints, context)

    def pending(self) -> list[str]:
        """Return the views that answer requests, unless all answers are open event streams."""
        waiting = [each for each in self._answering.values() if not is_event_stream(each)]
        busy = self._transport.busy() if waiting else []
        return [f"a handler of {name} runs" for name in busy]

    def skip_waits(self) -> None:
        """There is nothing to skip."""
