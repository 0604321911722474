"""Any response of a server of event streams is data: it never ends the process."""

import asyncio
import logging
import random
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from tests.raw_server import CHUNKED, STREAM, raw_server
from tests.records import everything
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import ConnectionLost, SSEConsumer
from workerkit.sse.connection import StreamConnection
from workerkit.sse.cookies import Cookies
from workerkit.sse.parser import Parser
from workerkit.sse.request import StreamRequest, retry_after_seconds
from workerkit.testing import sse_server

NAMES = [
    *("Retry-After", "Content-Type", "Content-Encoding", "Location", "Set-Cookie", "Connection"),
    *("Content-Length", "Transfer-Encoding", "Date", "Link", "WWW-Authenticate", "Upgrade"),
    *("Proxy-Authenticate", "Keep-Alive", "Trailer", "Cache-Control", "X-Any", "Content-Location"),
]
NASTY = [
    *("Mon, 01 Jan 9999999999999999999 00:00:00 GMT", "Mon, 01 Jan 10000 00:00:00 GMT", "9" * 4000),
    *("Mon, 99 Jan 2020 99:99:99 +9999999999", "0, 0 0 0 0:0:0", ",", ";", "=", '"', "text/", "/"),
    *("text/event-stream; charset=\x7f", "gzip", "deflate", "br, gzip", "identity", "-1", "1e309"),
    *("http://[::1", "http://\x00", "//", "///", "http://user:pw@", "http:", "javascript:1", "?#"),
    *("a=b; Expires=Mon, 01 Jan 99999 00:00:00 GMT", "a=b; Max-Age=" + "9" * 400, "a=b; Path=\xff"),
    *("=; =; =", "a=" + "x" * 5000, "a=b; Domain=.", "__Host-a=b", "chunked, chunked", "close, x"),
    *("http://" + "a" * 4000 + "/", "http://xn--" + "a" * 70 + "/", "http://1.2.3.4:99999/", "\t"),
]
LINES = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(NASTY) | st.text(max_size=40) | st.binary(max_size=40).map(str),
)
STATUSES = st.sampled_from([200, 200, 204, 206, 301, 302, 303, 304, 307, 308, 401, 407, 429, 503])


def head_of(status: int, lines: list[tuple[str, str]]) -> bytes:
    """Return the head of a response, with any values."""
    text = f"HTTP/1.1 {status} Any\r\n" + "".join(
        f"{name}: {' '.join(value.splitlines())}\r\n" for name, value in lines
    )
    return (text + "\r\n").encode("utf-8", "surrogatepass")


async def outcome(url: str, cookies: Cookies | None = None) -> str:
    """Return the result of one attempt; unexpected errors are raised."""
    request = StreamRequest("GET", URL(url), url, {}, None, None, None, 5.0, 5.0)
    try:
        async with StreamConnection(request, Parser(), cookies) as source:
            async for _ in source:
                pass
    except ConnectionLost as error:
        return type(error).__name__
    return "ended"


@settings(max_examples=150, deadline=None)
@given(status=STATUSES, lines=st.lists(LINES, max_size=4))
@example(status=503, lines=[("Retry-After", NASTY[0])])
def test_fe2_any_header_is_a_stream_or_a_failed_attempt(
    status: int, lines: list[tuple[str, str]]
) -> None:
    """Each header that a server may send, with any value."""
    answer = head_of(status, [("Content-Type", "text/event-stream"), *lines]) + b"data: x\n\n"

    async def run() -> str:
        async with raw_server(lambda number, head: answer) as server:
            cookies = Cookies()
            await outcome(server.url, cookies)
            return await outcome(server.url, cookies)

    assert asyncio.run(run()) in ("ended", "ConnectionLost", "StreamRefused")


@settings(max_examples=500)
@given(st.text() | st.sampled_from(NASTY) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ \S*"))
def test_fe2_an_invalid_retry_after_counts_as_absent(value: str) -> None:
    """The result is 0 or more seconds, or None; nothing is raised."""
    found = retry_after_seconds(value)

    assert found is None or 0 <= found < float("inf")


async def test_fe2_an_invalid_date_does_not_end_the_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The attempt fails; the next one follows after the usual pause and succeeds."""
    consumer, handled = collector()

    async with sse_server() as server:
        server.refuse(503, times=1, headers={"Retry-After": NASTY[0]})
        async with consuming(server, consumer):
            await server.send("a")
            await eventually(lambda: handled == ["a"])

    assert [each.message for each in caplog.records if each.levelno >= logging.ERROR] == [
        "connection failed"
    ]


async def test_fe2_texts_of_the_server_are_not_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The status has its standard phrase, not that of the server."""
    answer = b"HTTP/1.1 503 s3cret\xc2\x85forged\r\nContent-Type: s3cret\r\nX: s3cret\r\n\r\n"
    consumer, _ = collector()

    async with (
        raw_server(lambda number, head: answer) as server,
        consuming(server.url, consumer, ready=False) as runner,
    ):
        await eventually(lambda: "503 Service Unavailable" in runner.health[0].reason)

    assert "s3cret" not in everything(caplog)


@pytest.mark.parametrize("interim", [b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", b"\r\n"])
async def test_fe4_data_before_a_response_has_a_limit(interim: bytes) -> None:
    """A response without a body that begins is a failed attempt; it takes little memory."""
    sent = 0

    def answer(number: int, head: bytes) -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 << 20:
            yield interim * 1000
            sent += len(interim) * 1000

    async with raw_server(answer) as server:
        request = StreamRequest(
            "GET", URL(server.url), server.url, {}, None, None, None, 60.0, 60.0
        )
        source = StreamConnection(request, Parser())
        with pytest.raises(ConnectionLost, match="malformed HTTP: too much data before"):
            await source.__aenter__()

    assert sent < 16 << 20  # It includes the socket buffers of both sides.


def mutated(dice: random.Random) -> list[bytes]:
    """Generate a valid response with mutations, in pieces."""
    body = dice.choice([b"data: s3cret\n\n", b"id: 1\ndata: x\n\n" * 50, dice.randbytes(300), b""])
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    whole = bytearray(
        dice.choice(
            [
                STREAM + b"\r\n" + body,
                CHUNKED + chunk * 3 + b"0\r\n\r\n",
                STREAM + b"Content-Length: %d\r\n\r\n" % len(body) + body,
                STREAM + b"Content-Encoding: gzip\r\n\r\n" + body,
                b"HTTP/1.1 302 Found\r\nLocation: /s3cret?a=s3cret\r\n\r\n",
                head_of(
                    dice.choice([200, 302, 401, 503]), [(dice.choice(NAMES), "s3cret\x1b[31m")]
                ),
                dice.randbytes(200),
            ]
        )
    )
    for _ in range(dice.randint(0, 4)):
        place = dice.randrange(len(whole))
        change = dice.choice([b"", b"\0", b"\r\n", b"\xff", b"\x1b[2J", b"9" * 30, b": s3cret\r\n"])
        whole[place : place + dice.randint(0, 3)] = change
    del whole[dice.randint(len(whole) // 2, len(whole)) :]
    cut = dice.randint(0, len(whole))
    return [bytes(whole[:cut]), bytes(whole[cut:])]


async def test_fe2_mutated_responses_do_not_affect_other_streams(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Streams with invalid responses are tried again, one record each; another one is served."""
    caplog.set_level(logging.INFO)
    dice = random.Random(2)
    consumers = [collector(f"Junk{n}", routes=[f"/{n}"], connection="junk") for n in range(25)]
    good, handled = collector("Good")

    def answer(number: int, head: bytes) -> Iterator[bytes]:
        return iter(mutated(dice))

    def attempts(name: str) -> list[str]:
        texts = (
            "connection failed",
            "stream lost",
            "the server has ended the stream permanently: 204",
        )
        return [
            each.message
            for each in caplog.records
            if vars(each).get("consumer") == name and each.message in texts
        ]

    async with raw_server(answer) as junk, sse_server() as server:
        classes: list[type[SSEConsumer]] = [class_ for class_, _ in consumers]
        async with consuming(
            server, good, *classes, ready=False, more={"junk": {"url": junk.url}}
        ) as runner:
            for number in range(5):
                await server.send(str(number))
                await eventually(
                    lambda: all(len(attempts(each.__name__)) > number // 2 for each in classes)  # noqa: B023
                )
            await eventually(lambda: handled == ["0", "1", "2", "3", "4"])
            assert not runner.crashed

    shown = everything(caplog)
    assert "s3cret" not in shown
    for record in caplog.records:
        texts = [record.getMessage(), *map(str, vars(record).values())]
        assert not any(re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", each) for each in texts), texts
