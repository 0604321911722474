"""Redirects of event streams: configured secrets are never sent to another origin."""

import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from yarl import URL

from tests.raw_server import raw_server
from tests.records import errors, everything, fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import SSEConsumer, StreamRefused
from workerkit.config.connections import SSESettings
from workerkit.sse.redirects import Hop, check_hop, first_hop, next_hop
from workerkit.sse.request import StreamRequest
from workerkit.testing import sse_server

SECRETS: dict[str, Any] = {
    "headers": {"X-Api-Key": "s3cret-key", "Cookie": "session=s3cret-cookie"},
    "token": "s3cret-token",
}


def redirect(location: str, status: int = 302, more: str = "") -> bytes:
    """Return a response that redirects to *location*."""
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\n{more}\r\n".encode()


class Own(SSEConsumer):
    """A consumer with its own headers."""

    connection = "server"

    async def headers(self) -> dict[str, str]:
        return {"X-Own": "s3cret-own"}

    async def handle(self, data: str) -> None: ...


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_fe3_headers_stay_on_their_origin(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Another origin gets none of them; one WARNING names both origins, and no secret."""
    async with sse_server() as other:
        to = f"{other.url}/elsewhere?key=s3cret-query#s3cret"
        answer = redirect(to, status, "Set-Cookie: sid=s3cret-sid\r\n")
        async with (
            raw_server(lambda number, head: answer) as server,
            consuming(server.url, Own, **SECRETS),
        ):
            for number in range(1, 4):
                await other.client(number)
                other.cut()

    for request in other.opened:
        assert (request.path, request.query["key"]) == ("/elsewhere", "s3cret-query")
        assert not {"x-api-key", "authorization", "cookie", "x-own"} & {
            name.lower() for name in request.headers
        }
    assert any("x-api-key: s3cret-key" in line for line in server.lines[0])
    (warning,) = fields(caplog, "the server redirects to another origin")
    assert warning["levelname"] == "WARNING"
    assert (warning["from_origin"], warning["to_origin"]) == (server.url, other.url)
    assert "s3cret" not in everything(caplog)


async def test_fe3_headers_are_sent_within_the_origin(caplog: pytest.LogCaptureFixture) -> None:
    """A redirect within the origin is followed with all headers, and is not reported."""

    async with sse_server() as goal, AsyncExitStack() as stack:

        def answer(number: int, head: bytes) -> bytes:
            if head.startswith(b"GET /new"):
                return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n"
            return redirect("/new")

        server = await stack.enter_async_context(raw_server(answer))
        consumer, handled = collector()
        async with consuming(server.url, consumer, ready=False, **SECRETS):
            await eventually(lambda: handled)
        assert goal.requests == []

    assert any("x-api-key: s3cret-key" in line for line in server.lines[1])
    assert fields(caplog, "the server redirects to another origin") == []


async def test_fe3_a_trusted_origin_gets_the_headers() -> None:
    """One in TRUSTED_ORIGINS, and no other."""
    async with (
        sse_server() as other,
        raw_server(lambda number, head: redirect(other.url)) as server,
        consuming(server.url, Own, trusted_origins=[other.url + "/"], **SECRETS),
    ):
        request = await other.client()

    assert request.headers["X-Api-Key"] == "s3cret-key"
    assert request.headers["Authorization"] == "Bearer s3cret-token"


@pytest.mark.parametrize(
    ("policy", "there", "reason"),
    [
        ("none", "/new", "REDIRECTS is 'none'"),
        (
            "same-origin",
            "OTHER",
            "REDIRECTS is 'same-origin'; to allow it, add the origin to TRUSTED_ORIGINS",
        ),
    ],
)
async def test_fe3_a_policy_refuses_redirects(policy: str, there: str, reason: str) -> None:
    """The attempt fails, and the reason names the setting."""
    async with sse_server() as other:
        to = other.url if there == "OTHER" else there
        consumer, _ = collector()
        async with (
            raw_server(lambda number, head: redirect(to)) as server,
            consuming(server.url, consumer, ready=False, redirects=policy) as runner,
        ):
            await eventually(lambda: reason in runner.health[0].reason)
            assert server.url in runner.health[0].reason

    assert other.requests == []


async def test_fe3_never_from_https_to_http(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even to a trusted origin, or on the same host."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    consumer, _ = collector()

    async with (
        sse_server() as other,
        raw_server(lambda number, head: redirect(other.url), tls=tls) as server,
        consuming(
            server.url,
            consumer,
            ready=False,
            trusted_origins=[other.url],
            tls={"ca": tmp_path / "ca.pem"},
        ) as runner,
    ):
        await eventually(lambda: "it goes from https to http" in runner.health[0].reason)

    assert other.requests == []
    (warning,) = fields(caplog, "the server redirects to another origin")
    assert (warning["to_origin"], warning["followed"]) == (other.url, False)
    assert set(errors(caplog)) == {"connection failed"}


async def test_fe3_a_body_stays_on_its_origin() -> None:
    """A 307 that would send the body to another origin is refused; a 303 omits it."""
    consumer, handled = collector(json={"prompt": "s3cret"}, reopen=True)

    async with sse_server() as other:
        await other.send("a")
        statuses = iter([307, 303])
        async with (
            raw_server(lambda number, head: redirect(other.url, next(statuses, 303))) as server,
            consuming(server.url, consumer, ready=False) as runner,
        ):
            await eventually(lambda: "the body of the request would be sent" in str(runner.health))
            await eventually(lambda: handled == ["a"])

    assert [(each.method, each.body) for each in other.requests][:1] == [("GET", b"")]


async def test_fe3_redirects_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """More than ten are a failed attempt."""
    consumer, _ = collector()

    async with (
        raw_server(lambda number, head: redirect(f"/{number}")) as server,
        consuming(server.url, consumer, ready=False) as runner,
    ):
        await eventually(lambda: "more than 10 redirects" in runner.health[0].reason)

    assert fields(caplog, "connection failed")


HOSTS = ["https://a.example", "https://b.example", "http://a.example", "http://b.example:81"]


@settings(max_examples=300)
@given(
    st.sampled_from(HOSTS),
    st.lists(
        st.tuples(st.sampled_from([*HOSTS, ""]), st.sampled_from([301, 303, 307])), max_size=6
    ),
    st.sets(st.sampled_from(HOSTS), max_size=2),
    st.sampled_from(["any", "same-origin", "none"]),
)
def test_fe3_any_chain_of_redirects(
    home: str, ways: list[tuple[str, int]], trusted: set[str], policy: Any
) -> None:
    """Headers are not sent to another origin, nor after it; https is never left."""
    headers = {"X-Api-Key": "secret"}
    request = StreamRequest(
        "POST", URL(home), home, headers, {"a": 1}, None, None, 1, 1, policy, frozenset(trusted)
    )
    hops = list(followed(request, ways))

    assert hops[0].headers == headers
    strayed = False
    for before, hop in pairwise(hops):
        origin = str(hop.url.origin())
        strayed = strayed or (origin != str(before.url.origin()) and origin not in trusted)
        assert not (before.url.scheme == "https" and hop.url.scheme == "http")
        assert hop.trusted is not strayed
        assert (hop.headers == headers, hop.json is None or not strayed) == (not strayed, True)
        assert hop.configured_origin <= (origin == home and not strayed)


def followed(request: StreamRequest, ways: list[tuple[str, int]]) -> Iterator[Hop]:
    """Yield the requests that are sent, until one is refused."""
    hop = first_hop(request)
    yield hop
    for host, status in ways:
        following = next_hop(request, hop, status, f"{host}/x")
        found = check_hop(request, hop, following)
        if found is not None and found.refusal:
            return
        hop = following
        yield hop


@pytest.mark.parametrize("location", [None, "", "ftp://h/", "http://[s3cret", "mailto:s3cret"])
def test_fe3_an_invalid_location(location: str | None) -> None:
    """It is a refusal, and the reason does not contain the location."""
    request = StreamRequest("GET", URL("http://h/"), "http://h/", {}, None, None, None, 1, 1)

    with pytest.raises(StreamRefused, match="without the URL of an HTTP server") as caught:
        next_hop(request, first_hop(request), 302, location)

    assert "s3cret" not in str(caught.value)


def test_fe3_credentials_of_a_location_are_not_used() -> None:
    """A server cannot choose the password for another server."""
    request = StreamRequest("GET", URL("http://h/"), "http://h/", {}, None, None, None, 1, 1)

    hop = next_hop(request, first_hop(request), 302, "http://user:pw@other/x#y")

    assert str(hop.url) == "http://other/x"


@pytest.mark.parametrize(
    "origin", ["h", "ftp://h", "https://h/path", "https://u:s3cret@h", "https://h?a=s3cret"]
)
def test_fe3_an_invalid_origin(origin: str) -> None:
    """It is a fault of the settings that does not quote the value."""
    with pytest.raises(ValidationError) as caught:
        SSESettings(url=SecretStr("https://h"), trusted_origins=(origin,))

    assert "s3cret" not in str(caught.value)


def test_fe3_origins_are_normalized() -> None:
    """Case and the default port do not matter."""
    found = SSESettings(url=SecretStr("https://h"), trusted_origins=("HTTPS://EU.Example:443/",))

    assert found.trusted_origins == ("https://eu.example",)
