"""A small HTTP client, for tests of views."""

import io
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
from workerkit.http.upload import UploadFile
from workerkit.transport import Context, running_handlers


@dataclass(frozen=True, slots=True)
class HTTPAnswer:
    """The response of a server.

    Attributes:
        headers: Values by name; names are case-insensitive.
        body: The whole body.
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
            ValueError: The body is not JSON.
        """
        return json.loads(self.body)


class HTTPClient:
    """A client of one server, over real connections.

    Attributes:
        url: The URL of the server, for other clients; empty before `open`.
    """

    def __init__(self) -> None:
        self.url = ""
        self._session: aiohttp.ClientSession | None = None

    def open(self, url: str) -> None:
        """Send the following requests to the server at *url*."""
        self.url = url
        self._session = aiohttp.ClientSession(url, cookie_jar=aiohttp.DummyCookieJar())

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        form: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> HTTPAnswer:
        """Send a request and return the response; redirects are not followed.

        Args:
            json: A model, a dataclass or JSON values for the body.
            form: The fields of a form instead: texts, `UploadFile` objects, and lists of them. With
                a file it is sent as `multipart/form-data`, otherwise URL-encoded.
            body: The raw body, instead of *json*.
            query: A list becomes a repeated parameter.

        Raises:
            RuntimeError: There is no server, because no view runs.
        """
        if self._session is None:
            raise RuntimeError("there is no HTTP server: no view runs")
        all_headers = dict(headers or {})
        if json is not None:
            body, content_type = encode(json)
            all_headers.setdefault("Content-Type", content_type)
        async with self._session.request(
            method,
            path,
            data=body if form is None else await _form_data(form),
            params=query,
            headers=all_headers,
            cookies=cookies,
            allow_redirects=False,
        ) as response:
            return HTTPAnswer(response.status, response.headers, await response.read())

    async def get(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a GET request, like `request`."""
        return await self.request("GET", path, **more)

    async def post(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a POST request, like `request`."""
        return await self.request("POST", path, **more)

    async def put(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a PUT request, like `request`."""
        return await self.request("PUT", path, **more)

    async def patch(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a PATCH request, like `request`."""
        return await self.request("PATCH", path, **more)

    async def delete(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a DELETE request, like `request`."""
        return await self.request("DELETE", path, **more)

    async def head(self, path: str, **more: Any) -> HTTPAnswer:
        """Send a HEAD request, like `request`."""
        return await self.request("HEAD", path, **more)

    async def options(self, path: str, **more: Any) -> HTTPAnswer:
        """Send an OPTIONS request, like `request`."""
        return await self.request("OPTIONS", path, **more)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


async def _form_data(form: Mapping[str, Any]) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, found in form.items():
        for each in found if isinstance(found, list) else [found]:
            if isinstance(each, UploadFile):
                content = io.BytesIO(await each.read())
                kind, filename = each.content_type, each.filename
                data.add_field(name, content, content_type=kind, filename=filename)
            else:
                data.add_field(name, str(each))
    return data


class TrackedHTTPTransport:
    """The HTTP transport of a test, which knows the open event streams: they never end."""

    def __init__(self, transport: HTTPTransport) -> None:
        self._transport = transport
        self._open: dict[int, web.Request] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def start(self, endpoints: Sequence[Endpoint], context: Context) -> list[Health]:
        """Listen, with one more middleware."""

        @web.middleware
        async def track(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._open[id(request)] = request
            try:
                return await handler(request)
            finally:
                del self._open[id(request)]

        context = replace(context, middlewares=[track, *context.middlewares])
        return await self._transport.start(endpoints, context)

    def pending(self) -> list[str]:
        """Return the views that answer requests, unless all answers are open event streams."""
        waiting = [each for each in self._open.values() if not is_event_stream(each)]
        return running_handlers(self._transport.busy()) if waiting else []

    def skip_waits(self) -> None:
        """There is nothing to skip."""
