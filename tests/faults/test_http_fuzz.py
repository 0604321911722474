"""Rows FH1 to FH7 together: any data arrives on both ports, and the process keeps working."""

import asyncio
import json
import logging
import re
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as some
from pydantic import BaseModel
from yarl import URL

from tests.console import console
from tests.serving import serving
from workerkit import Cookie, Header, HTTPView
from workerkit.logs import JSONFormatter
from workerkit.testing.http_client import HTTPClient

EXAMPLES = 150
BOUND = 64 * 1024  # KiB of memory.

NASTY = ["\x1b[31m", "\u202e", "\n", "\r\n", "\r", "\0", "\x85", "\u2028", "ä", "level=ERROR"]


class Order(BaseModel):
    id: int
    lines: list[float] = []


class Orders(HTTPView):
    routes = ["/orders/{order_id}", "/orders"]
    max_body = 10_000

    async def get(
        self,
        order_id: int = 0,
        q: str = "",
        n: list[int] = [],  # noqa: B006
        x_own: Annotated[str, Header] = "",
        sid: Annotated[str, Cookie] = "",
    ) -> dict[str, Any]:
        """Answer."""
        return {"q": q, "n": n}

    async def post(self, order: Order, order_id: int = 0) -> Order:
        """Answer."""
        return order


class Raw(HTTPView):
    routes = ["/raw"]
    methods = ["GET", "POST", "PUT"]
    max_body = 10_000

    async def handle(self, request: web.Request) -> web.Response:
        """Read the body in the way that its content type requires."""
        if request.content_type == "application/json":
            await request.json()
        elif request.content_type == "text/plain":
            await request.text()
        else:
            await request.post()
        return web.Response(text="raw")


METHODS = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PURGE", "FOO", "get", "", "CONNECT"]
TARGETS = [
    "/orders",
    "/orders/1",
    "/orders/x%0Ay%1B[31m",
    "/orders?q=%E2%80%AE&n=1&n=x",
    "/raw",
    "/health/live",
    "/metrics",
    "/api/v1/fleet",
    "/api/v1/live",
    "/api/v1/commands",
    "/api/v1/dead-letters/page?queue=orders&text=%1B[31m%0Aq&since=x",
    "/api/v1/dead-letters/page?queue=%ED%A0%80",
    "/api/v1/jobs/x%0Ay%1B[31m/stop",
    "/console/..%2f..%2fserver.py",
    "/nowhere/%0d%0aERROR",
    "*",
    "http://other/orders",
    "//orders",
    "/orders\x1b",
    "/" + "x" * 9_000,
    "",
]
HOSTS = ["h", "localhost", "127.0.0.1:1"]
VERSIONS = ["HTTP/1.1"] * 5 + ["HTTP/1.0", "HTTP/2.0", "HTP", ""]
HEADERS = [
    "Host: h",
    "Origin: http://[",
    "Origin: http://localhost",
    "Sec-Fetch-Site: cross-site",
    "Authorization: Bearer \x1b[31m",
    "Authorization: Bearer",
    "X-Request-ID: mine\x1b[31m",
    "X-Request-ID: a\u202eb",
    "X-Own: \u2028\u202e\x1b",
    "X-Own: a\n folded",
    "Cookie: sid=\x1b; =; ;;",
    "Content-Type: application/json",
    "Content-Type: multipart/form-data; boundary=b",
    "Content-Type: application/x-www-form-urlencoded; charset=nothing",
    "Content-Type: \x1b[31m/x",
    "Content-Encoding: gzip",
    "Content-Encoding: br",
    "Content-Encoding: nothing",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, gzip",
    "Content-Length: 5",
    "Content-Length: 10",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 5, 6",
    "Expect: 100-continue",
    "Expect: \x1b",
    "Connection: close",
    "Connection: upgrade",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "Range: bytes=0-",
    "Accept: text/event-stream",
    ": empty",
    "no colon",
    "X" * 9_000 + ": 1",
]
BODIES = [
    b"",
    b'{"id":1}',
    b'{"id":NaN}',
    b"[" * 5_000,
    b'{"id":"' + b"x" * 20_000,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhell",
    b"ffffffffffffffffff\r\n",
    b"5;ext=\x1b\r\nhello\r\n0\r\nX-Trailer: \x1b\r\n\r\n",
    b"0\r\n\r\nGET /orders HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\x1f\x8b\x08\x00junk",
    b'--b\r\nContent-Disposition: form-data; name="\x1b"\r\n\r\n1',
]
LAST = b"GET /orders HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
SOUND = b"GET /orders HTTP/1.1\r\nHost: h\r\n\r\n"


@some.composite
def requests(draw: some.DrawFn) -> bytes:
    """Generate one request, complete or not."""
    line = " ".join(
        [
            draw(some.sampled_from(METHODS)),
            draw(some.sampled_from(TARGETS)),
            draw(some.sampled_from(VERSIONS)),
        ]
    )
    headers = draw(some.lists(some.sampled_from(HEADERS), max_size=6))
    if draw(some.booleans()):
        headers.insert(0, f"X-Own: {draw(some.sampled_from(NASTY))}")
    end = draw(some.sampled_from(["\r\n"] * 5 + ["\n", "\r"]))
    head = end.join([line, f"Host: {draw(some.sampled_from(HOSTS))}", *headers, "", ""])
    return head.encode("utf-8", "surrogateescape") + draw(some.sampled_from(BODIES))


@some.composite
def streams(draw: some.DrawFn) -> list[bytes]:
    """Generate the data of one client, in pieces."""
    sent = b"".join(draw(some.lists(requests() | some.just(SOUND), min_size=1, max_size=3)))
    for _ in range(draw(some.integers(0, 3))):
        at = draw(some.integers(0, len(sent)))
        sent = sent[:at] + draw(some.binary(max_size=3)) + sent[at + draw(some.integers(0, 3)) :]
    if draw(some.booleans()):
        sent = sent[: draw(some.integers(0, len(sent)))]
    cuts = sorted(draw(some.lists(some.integers(0, len(sent)), max_size=3)))
    return [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]


async def talk(url: str, pieces: Sequence[bytes], patience: float = 0.03) -> bytes:
    """Send the pieces, and return what arrives until the server closes or is silent."""
    at = URL(url)
    reader, writer = await asyncio.open_connection(at.host, at.port)
    answer = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        while True:
            async with asyncio.timeout(patience):
                if not (data := await reader.read(65_536)):
                    break
            answer += data
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()
    return answer


@asynccontextmanager
async def both() -> AsyncIterator[tuple[HTTPClient, str]]:
    """Run a server of views, and an ops server with the console."""
    async with serving(Orders, Raw) as client, console(interval=60.0) as served:
        yield client, served.url


def memory() -> int:
    """Return the peak memory of this process, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def test_fh_any_bytes_on_both_ports(caplog: pytest.LogCaptureFixture) -> None:
    """FH1 to FH7: others are served, nothing is a 500, and no record is forged or above INFO."""
    caplog.set_level(logging.INFO)
    with asyncio.Runner() as runner:
        context = both()
        client, ops = runner.run(context.__aenter__())
        before = memory()

        @seed(1)
        @settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(pieces=streams(), to_ops=some.booleans())
        def send(pieces: list[bytes], to_ops: bool) -> None:
            caplog.clear()
            answer = runner.run(talk(ops if to_ops else client.url, pieces))
            statuses = [int(each) for each in STATUS.findall(answer)]
            assert all(each < 500 or each == 501 for each in statuses), (pieces, answer)
            records = [each for each in caplog.records if not each.name.startswith("asyncio")]
            # At most one for each request; a malformed one may be read as several.
            assert len(records) <= max(len(statuses), 1) + 1, [each.message for each in records]
            for record in records:
                assert record.levelno <= logging.INFO, record
                assert record.exc_info is None
                line = JSONFormatter().format(record)
                assert "\n" not in line
                assert "\x1b" not in line
                assert len(line) < 4_096
                json.loads(line)

        send()
        neighbour = runner.run(client.get("/orders/7"))
        live = runner.run(talk(ops, [LAST.replace(b"/orders", b"/health/live")], 30.0))
        grown = memory() - before
        runner.run(context.__aexit__(None, None, None))

    assert neighbour.status == 200
    assert b" 200 " in live
    assert grown < BOUND


@pytest.mark.parametrize("id", ["a\x1b[31m", "a\u202eb", "x" * 200, 'a"b', "a b", "a\u2028ERROR"])
async def test_fh_an_external_id_forges_no_line(caplog: pytest.LogCaptureFixture, id: str) -> None:
    """FH: an id with unsafe characters is used neither in the log nor in the response."""
    caplog.set_level(logging.INFO)
    async with serving(Orders) as client:
        url = client.url
        sent = LAST.replace(b"/orders", b"/orders/x").replace(
            b"Host: h", b"Host: h\r\nX-Request-ID: " + id.encode()
        )
        answer = await talk(url, [sent], 30.0)

    assert b" 422 " in answer or b" 400 " in answer
    assert id.encode() not in answer
    for record in caplog.records:
        assert id not in JSONFormatter().format(record)
