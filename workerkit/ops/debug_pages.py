"""`/debug/tasks` and `/debug/stacks`, for clients on this machine only."""

import asyncio
import threading
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any

from aiohttp import web
from yarl import URL

from workerkit.ops.debug import Groups, examine, threads
from workerkit.safe_text import Redact, cleaner

TASKS = "/debug/tasks"
STACKS = "/debug/stacks"

# A proxy on this machine adds one of these when it forwards the request of a remote client.
_FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class DebugPages:
    """The pages that show where tasks and threads are; 404 for everybody who may not see them.

    Args:
        redact: The container's.
    """

    def __init__(self, redact: Redact | None) -> None:
        self._clean = cleaner(redact)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._examining = asyncio.Lock()
        self._enabled = False

    def enable(self, addresses: Sequence[Any]) -> None:
        """Serve the pages if the server listens on loopback addresses only.

        Args:
            addresses: Of its sockets, as `getsockname` returns them.
        """
        self._enabled = bool(addresses) and all(is_loopback(each[0]) for each in addresses)

    def may_see(self, request: web.Request) -> bool:
        """Return whether the client of a request may see the pages."""
        return self._enabled and is_local(request)

    async def tasks(self, request: web.Request) -> web.Response:
        """Respond with the tasks."""
        as_json = self.wants_json(request)
        # Other callbacks of the event loop run in between, and no second request examines tasks.
        async with self._examining:
            groups = Groups("task")
            for _ in examine(groups, self._loop, self._thread):
                await asyncio.sleep(0)
            return self._response(groups, as_json)

    async def stacks(self, request: web.Request) -> web.Response:
        """Respond with the threads."""
        as_json = self.wants_json(request)
        return self._response(threads(self._thread), as_json)

    def wants_json(self, request: web.Request) -> bool:
        """Return whether the client wants JSON.

        Raises:
            web.HTTPNotFound: It may not see the page.
            web.HTTPBadRequest: It wants a format that does not exist.
        """
        if not self.may_see(request):
            raise web.HTTPNotFound
        wanted = request.query.get("format")
        if wanted is None:
            return "application/json" in ",".join(request.headers.getall("Accept", []))
        if wanted not in ("json", "text"):
            raise web.HTTPBadRequest(text="format should be json or text")
        return wanted == "json"

    def _response(self, groups: Groups, as_json: bool) -> web.Response:
        if as_json:
            return web.json_response(_cleaned(groups.as_json(), self._clean), headers=_HEADERS)
        return web.Response(text=self._clean(groups.as_text()), headers=_HEADERS)


def is_local(request: web.Request) -> bool:
    """Return whether a request comes from this machine, and is meant for it.

    The name in the Host header is checked too: a web page of a foreign name that is resolved to
    127.0.0.1 (DNS rebinding) can have a browser on this machine send requests, and read responses.
    """
    transport = request.transport
    if transport is None or any(name in request.headers for name in _FORWARDED):
        return False
    ends = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if not all(isinstance(end, tuple) and is_loopback(end[0]) for end in ends):
        return False
    return names_loopback(request.headers.getall("Host", []))


def names_loopback(hosts: Sequence[str]) -> bool:
    """Return whether the values of the Host header name this machine."""
    if len(hosts) != 1:
        return False
    try:
        host = URL(f"http://{hosts[0]}").host or ""
    except ValueError:
        return False
    return host == "localhost" or is_loopback(host)


def is_loopback(address: str) -> bool:
    """Return whether an address is one of the loopback interface."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def _cleaned(value: Any, clean: Redact) -> Any:
    """Return a value of JSON with each of its texts redacted."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(each, clean) for each in value]
    if isinstance(value, dict):
        return {key: _cleaned(each, clean) for key, each in value.items()}
    return value
