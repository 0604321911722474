"""Data of an event stream takes limited memory, and other tasks get turns."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from tests.raw_server import CHUNKED, STREAM, raw_server
from tests.records import fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import SSEEvent
from workerkit.sse.connection import StreamConnection
from workerkit.sse.decoding import Decoder
from workerkit.sse.parser import MAX_ID_LENGTH, Parser
from workerkit.sse.request import StreamRequest
from workerkit.testing import sse_server

CHUNK = 16 * 1024
MOST = 8_000
MOST_KEPT = 500_000

NEVER_ENDING = {
    "empty data": b"data:\n",
    "no colon": b"data\n",
    "data": b"data: xyz\n",
    "names": b"event: xyz\n",
    "ids": b"id: xyz\n",
    "comments": b": xyz\n",
    "unknown": b"abc: xyz\n",
    "one line": b"x",
    "one line of data": b"data: " + b"x" * 1000,
    "a comment": b":" + b"x" * 1000,
    "carriage returns": b"data:\r",
    "half a character": b"\xe2\x82",
    "blank lines": b"\n",
    "retry": b"retry: 999\n",
    "wide": b"data: \xf0\x9f\x98\x80\n",
}


def kept(stream: bytes, chunk: int) -> int:
    """Return the peak memory of a parser for these chunks, without the events that it returns."""
    parser = Parser(max_event_size=MOST)
    tracemalloc.start()
    try:
        for place in range(0, len(stream), chunk):
            parser.feed(stream[place : place + chunk])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", NEVER_ENDING)
def test_fe4_data_without_an_end_takes_limited_memory(name: str) -> None:
    """150 times the size of the largest event takes only a few times its memory."""
    unit = NEVER_ENDING[name]
    much = unit * (150 * MOST // len(unit))

    assert kept(much, CHUNK) < MOST_KEPT
    assert kept(much[: 2 * MOST], 1000) < MOST_KEPT


@pytest.mark.parametrize("lines", [1, 2, 999, 1000, 1001, 5000])
def test_fe4_each_line_counts_with_its_line_feed(lines: int) -> None:
    """Data of exactly the largest size is delivered, in any number of lines; more is not."""
    data = "\n" * (lines - 1)
    stream = b"data:\n" * lines + b"\n"

    (fits,) = Parser(max_event_size=max(lines - 1, 1)).feed(stream)
    (over,) = Parser(max_event_size=max(lines - 1, 1)).feed(b"data: x\n" + stream)

    assert (fits.raw, fits.oversized) == (data, False)
    assert (over.raw, over.oversized) == ("", True)


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(st.text(alphabet="ab", max_size=30), min_size=1, max_size=40),
    name=st.text(alphabet="n", max_size=20),
    largest=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_fe4_the_limit_is_exact_for_any_chunks(
    lines: list[str], name: str, largest: int, cuts: list[int]
) -> None:
    """An event is oversized if its data and its name are longer, and only then."""
    data = "\n".join(lines)
    stream = "".join(
        [f"event: {name}\n" if name else "", *(f"data: {line}\n" for line in lines), "\n"]
    ).encode()
    parser = Parser(max_event_size=largest)
    places = [0, *sorted(min(each, len(stream)) for each in cuts), len(stream)]
    events = [each for a, b in pairwise(places) for each in parser.feed(stream[a:b])]

    if len(name) > largest + len("data: ") and not events[0].oversized:
        # The line of the name was longer than the limit, and was ignored.
        name = ""
    over = len(data) + len(name) > largest
    assert [(each.raw, each.oversized) for each in events] == [("" if over else data, over)]


def test_fe4_a_long_name_is_cut() -> None:
    """An event that is too large because of its name does not keep it."""
    parser = Parser(max_event_size=1000)

    (event,) = parser.feed(b"event: " + b"n" * 1000 + b"\ndata: x\n\n")

    assert (event.oversized, event.name) == (True, "n" * 100)


async def test_fe4_an_event_without_an_end_over_a_socket() -> None:
    """The event is skipped, and the next one is handled."""
    consumer, handled = collector(max_event_size=MOST)

    def answer(number: int, head: bytes) -> Iterator[bytes]:
        yield STREAM + b"\r\n"
        for _ in range(20):
            yield b"data:\n" * 20_000
        yield b"\ndata: next\n\n"

    async with (
        raw_server(answer, hold_from=1) as server,
        consuming(server.url, consumer, ready=False),
    ):
        await eventually(lambda: handled == ["next"])


def bomb(times: int) -> bytes:
    """Return a small body that decompresses to a large one."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    return (
        b"".join(deflate.compress(b"data: x\n\n" * 10_000) for _ in range(times)) + deflate.flush()
    )


FLOODS = {
    "gzip bomb": (b"Content-Encoding: gzip\r\n\r\n", [bomb(30)]),
    "blank lines": (b"\r\n", [b"\n" * 1_000_000] * 2),
    "comments": (b"\r\n", [b":\n" * 500_000] * 2),
    "small events": (b"\r\n", [b"data: x\n\n" * 100_000] * 3),
}


class CountingParser(Parser):
    """A parser that counts the bytes that it reads."""

    fed = 0

    def feed(self, chunk: bytes) -> list[SSEEvent[Any]]:
        """Count and parse a chunk."""
        self.fed += len(chunk)
        return super().feed(chunk)


@pytest.mark.parametrize("name", FLOODS)
async def test_fe5_other_tasks_get_turns(name: str) -> None:
    """Another task gets a turn after a limited number of kB, not once at the end."""
    head, pieces = FLOODS[name]
    parser = CountingParser()
    between = [0]

    async def others() -> None:
        while True:
            before = parser.fed
            await asyncio.sleep(0)
            between.append(parser.fed - before)

    async with raw_server(lambda number, _: [STREAM + head, *pieces]) as server:
        request = StreamRequest("GET", URL(server.url), server.url, {}, None, None, None, 5.0, 60.0)
        other = asyncio.create_task(others())
        async with StreamConnection(request, parser) as source:
            async for _ in source:
                pass
        other.cancel()

    assert sum(between) >= 2_000_000
    assert max(between) <= 80 * 1024


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=3000),
    encoding=st.sampled_from(["gzip", "deflate", "raw", "members"]),
    largest=st.integers(1, 500),
    cut=st.integers(1, 50),
)
def test_fe5_steps_of_decompression_are_limited(
    data: bytes, encoding: str, largest: int, cut: int
) -> None:
    """No step returns more than its limit, and all together return the whole data."""
    found = bytearray()
    decoder = Decoder("gzip" if encoding in ("gzip", "members") else "deflate", largest)
    body = compressed(data, encoding)
    for place in range(0, len(body), cut):
        steps = [decoder.step(body[place : place + cut])]
        while decoder.has_more:
            steps.append(decoder.step())
        assert all(len(each) <= largest for each in steps)
        found += b"".join(steps)

    assert found == data


def compressed(data: bytes, encoding: str) -> bytes:
    """Return *data* as a server sends it."""
    if encoding == "members":
        return gzip.compress(data[:100]) + gzip.compress(data[100:])
    if encoding == "gzip":
        return gzip.compress(data)
    deflate = zlib.compressobj(wbits=-15 if encoding == "raw" else 15)
    return deflate.compress(data) + deflate.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_fe5_compressed_events_are_delivered_as_they_arrive(encoding: str) -> None:
    """If a server flushes after each event, it is handled before the stream ends."""
    deflate = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    pieces = [
        deflate.compress(f"data: {n}\n\n".encode()) + deflate.flush(zlib.Z_SYNC_FLUSH)
        for n in range(3)
    ]
    consumer, handled = collector()
    head = STREAM + f"Content-Encoding: {encoding}\r\n\r\n".encode()

    async with (
        raw_server(lambda number, _: [head, *pieces], hold_from=1) as server,
        consuming(server.url, consumer),
    ):
        await eventually(lambda: handled == ["0", "1", "2"])

    assert "accept-encoding: gzip, deflate" in server.lines[0]


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        (b"Content-Encoding: br\r\n\r\n", b"x", "with a content encoding other than gzip"),
        (b"Content-Encoding: gzip\r\n\r\n", b"no gzip", "the body cannot be decompressed"),
    ],
)
async def test_fe5_a_body_that_cannot_be_decompressed(
    head: bytes, body: bytes, reason: str
) -> None:
    """The reason describes the fault; another attempt follows."""
    consumer, _ = collector()

    async with (
        raw_server(lambda number, _: STREAM + head + body) as server,
        consuming(server.url, consumer, ready=False) as runner,
    ):
        await eventually(lambda: reason in runner.health[0].reason and len(server.heads) > 1)


@pytest.mark.parametrize("id_", ["x" * (MAX_ID_LENGTH + 1), "é" * MAX_ID_LENGTH, "x" * 20_000])
async def test_fe7_an_id_that_is_too_long_is_not_sent(
    id_: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream is resumed after the last valid id; there is one WARNING."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer):
        await server.send("a", id="1")
        await server.send("b", id=id_)
        await server.send("c", id=id_)
        await eventually(lambda: handled == ["a", "b", "c"])
        server.cut()
        again = await server.client(2)

    assert again.last_event_id == "1"
    (warning,) = fields(caplog, "id of an event is too long: it is not sent back")
    assert (warning["levelname"], warning["consumer"]) == ("WARNING", "Collector")


async def test_fe7_the_longest_id_is_sent() -> None:
    """An id of exactly the limit is sent."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer):
        await server.send("a", id="x" * MAX_ID_LENGTH)
        await eventually(lambda: handled == ["a"])
        server.cut()
        again = await server.client(2)

    assert again.last_event_id == "x" * MAX_ID_LENGTH


GARBAGE: dict[str, tuple[bytes, str]] = {
    "no number": (b"zzzz\r\n", "malformed HTTP: Invalid character in chunk size"),
    "negative": (b"-1\r\n", "malformed HTTP: Invalid character in chunk size"),
    "overlong": (b"5\r\ndata: x\n\n and more", "malformed HTTP: Expected LF after chunk data"),
    "overflow": (b"f" * 40 + b"\r\n", "malformed HTTP: Chunk size overflow"),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_fe7_a_malformed_chunk_is_noticed_at_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without waiting for `idle_timeout`; the reason describes the fault."""
    garbage, reason = GARBAGE[name]
    consumer, handled = collector(idle_timeout=0)

    async with (
        raw_server(lambda *_: CHUNKED + b"9\r\ndata: x\n\n\r\n", hold_from=1) as server,
        consuming(server.url, consumer),
    ):
        await eventually(lambda: handled == ["x"])
        server.open[0].write(b"9\r\ndata: y\n\n\r\n")
        await eventually(lambda: handled == ["x", "y"])
        server.open[0].write(garbage)
        await eventually(lambda: len(server.heads) == 2)

    (lost, *_) = fields(caplog, "stream lost")
    assert lost["reason"].endswith(reason)
