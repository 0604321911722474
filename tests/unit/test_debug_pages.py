"""`/debug/tasks` and `/debug/stacks`: who sees them, and in which format."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from workerkit import WorkerSettings
from workerkit.health import Readiness
from workerkit.ops.debug_pages import is_local
from workerkit.ops.server import OpsServer
from workerkit.safe_text import Redact


@asynccontextmanager
async def served(
    host: str = "127.0.0.1", redact: Redact | None = None, **ops: Any
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """Run an ops server; return the URL at which this machine reaches it, and a client."""
    settings = WorkerSettings(ops={"host": host, "port": 0, **ops}, _env_file=None)
    server = OpsServer(settings, Readiness(), None, redact)
    await server.open()
    try:
        async with aiohttp.ClientSession() as session:
            yield server.url.replace("0.0.0.0", "127.0.0.1"), session
    finally:
        await server.close()


async def status(session: aiohttp.ClientSession, url: str, **headers: str) -> int:
    """Return the status of a response."""
    async with session.get(url, headers=headers) as response:
        return response.status


@pytest.mark.parametrize("page", ["tasks", "stacks"])
async def test_a_page_is_text_or_json(page: str) -> None:
    """JSON with the header Accept or with `?format=json`; never from a cache."""
    async with served() as (url, session):
        async with session.get(f"{url}/debug/{page}") as response:
            text = await response.text()
            headers = response.headers
        async with session.get(f"{url}/debug/{page}?format=json") as response:
            by_query = await response.json()
        accept = {"Accept": "application/json"}
        async with session.get(f"{url}/debug/{page}", headers=accept) as response:
            by_header = await response.json()
        wrong = await status(session, f"{url}/debug/{page}?format=xml")

    assert f"DebugPages.{page}" in text
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert by_query.keys() == by_header.keys()
    assert by_query["groups"]
    assert wrong == 400


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Host": "evil.example"}, id="DNS rebinding"),
        pytest.param({"Host": "evil.example:8081"}, id="with a port"),
        pytest.param({"Host": "127.0.0.1.evil.example"}, id="a similar name"),
        pytest.param({"Host": "10.0.0.1"}, id="another address"),
        pytest.param({"Host": "["}, id="no host"),
        pytest.param({"Host": ""}, id="empty"),
        pytest.param({"X-Forwarded-For": "10.0.0.1"}, id="a proxy"),
        pytest.param({"Forwarded": "for=10.0.0.1"}, id="a proxy, as RFC 7239 has it"),
        pytest.param({"Via": "1.1 proxy"}, id="a proxy that hides the client"),
    ],
)
async def test_requests_from_elsewhere_get_404(headers: dict[str, str]) -> None:
    """The same as for a page that does not exist."""
    async with served() as (url, session):
        found = [await status(session, f"{url}/debug/{each}", **headers) for each in PAGES]

    assert found == [404, 404]


PAGES = ("tasks", "stacks")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "127.0.0.2", "[::1]", "LOCALHOST"])
async def test_names_of_this_machine_are_accepted(host: str) -> None:
    """With any port, as after `kubectl port-forward`."""
    async with served() as (url, session):
        assert await status(session, f"{url}/debug/tasks", Host=host) == 200


@pytest.mark.parametrize(
    ("host", "ops"),
    [
        pytest.param("0.0.0.0", {}, id="bound elsewhere"),
        pytest.param("0.0.0.0", {"debug": True}, id="bound elsewhere, and set"),
        pytest.param("127.0.0.1", {"debug": False}, id="disabled"),
    ],
)
async def test_there_are_no_pages(host: str, ops: dict[str, Any]) -> None:
    """A port that other machines may reach has none, not even for this machine."""
    async with served(host, **ops) as (url, session):
        found = [await status(session, f"{url}/debug/{each}") for each in PAGES]
        live = await status(session, f"{url}/health/live")

    assert (found, live) == ([404, 404], 200)


class Ends:
    """A transport with the addresses of its two ends."""

    def __init__(self, peer: object, own: object) -> None:
        self._ends = {"peername": peer, "sockname": own}

    def get_extra_info(self, name: str) -> object:
        """Return an address."""
        return self._ends[name]


@pytest.mark.parametrize(
    ("peer", "own", "local"),
    [
        (("127.0.0.1", 1), ("127.0.0.1", 8081), True),
        (("::1", 1, 0, 0), ("::1", 8081, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), ("::ffff:127.0.0.1", 8081, 0, 0), True),
        (("10.0.0.7", 1), ("127.0.0.1", 8081), False),
        (("127.0.0.1", 1), ("10.0.0.7", 8081), False),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::1%eth0", 8081, 0, 2), False),
        (None, None, False),
    ],
)
async def test_both_ends_of_a_connection_are_on_this_machine(
    peer: object, own: object, local: bool
) -> None:
    """A packet from another machine may have been routed to a loopback address."""
    headers = {"Host": "127.0.0.1:8081"}
    request = make_mocked_request("GET", "/debug/tasks", headers, transport=Ends(peer, own))

    assert is_local(request) is local


async def test_the_name_localhost_is_a_loopback_address() -> None:
    """What counts are the addresses of the sockets."""
    async with served("localhost") as (url, session):
        assert await status(session, f"{url}/debug/stacks") == 200


async def test_the_containers_redact_applies() -> None:
    """To both formats; one that raises shows nothing."""

    def hide(text: str) -> str:
        return text.replace("DebugPages", "hidden")

    def fail(text: str) -> str:
        raise ValueError(text)

    async with served(redact=hide) as (url, session):
        for query in ("", "?format=json"):
            async with session.get(f"{url}/debug/stacks{query}") as response:
                text = await response.text()
            assert "hidden.stacks" in text
            assert "DebugPages" not in text
    async with (
        served(redact=fail) as (url, session),
        session.get(f"{url}/debug/stacks") as response,
    ):
        assert await response.text() == "<not shown: redact raised ValueError>"


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/debug/tasks", "a debug page"),
        ("/docs", "the documentation"),
        ("/api/v1/fleet", "the console"),
        ("/console/app.js", "the console"),
    ],
)
def test_metrics_cannot_have_the_path_of_a_page(path: str, page: str) -> None:
    """The error names the page."""
    with pytest.raises(ValueError, match=page):
        WorkerSettings(metrics={"path": path}, _env_file=None)
