"""Rows S1 to S4: a stream is lost, refused, silent or cut, and no event is lost."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from yarl import URL

from tests.application import Recorder
from tests.ports import free_port
from tests.records import errors, everything, fields
from tests.streams import collector, consuming
from tests.waiting import eventually
from workerkit import SSEConsumer, SSEEvent, StreamRefused
from workerkit.health import abort_reasons
from workerkit.sse.connection import StreamConnection
from workerkit.sse.parser import Parser
from workerkit.sse.request import StreamRequest
from workerkit.sse.subscription import StreamHealth
from workerkit.testing import sse_server
from workerkit.testing.sse import SSEServer


def stream_of(runner: object) -> StreamHealth:
    """Return the health of the only stream of the only consumer."""
    part = runner.health[0].parts[0]  # type: ignore[attr-defined]
    assert isinstance(part, StreamHealth)
    return part


@pytest.mark.parametrize("lose", [SSEServer.cut, SSEServer.end], ids=["reset", "clean end"])
async def test_s1_a_lost_stream_resumes_after_the_last_event(
    lose: Callable[[SSEServer], None], caplog: pytest.LogCaptureFixture
) -> None:
    """S1: after a reset and after a clean end it resumes after the last event."""
    caplog.set_level(logging.INFO)
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer) as runner:
        for round_ in range(3):
            await server.client(round_ + 1)
            await server.send(f"{round_}a")
            await server.send(f"{round_}b")
            await eventually(lambda: len(handled) == 2 * round_ + 2)  # noqa: B023
            lose(server)
        await server.client(4)
        await eventually(lambda: runner.ready)

    assert handled == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert [each.last_event_id for each in server.opened] == [None, "2", "4", "6"]
    assert len(fields(caplog, "stream lost")) == 3
    assert len(fields(caplog, "stream is open")) == 4
    assert errors(caplog) == []


@pytest.mark.parametrize("own", [False, True], ids=["of the settings", "of the class"])
async def test_s1_connections_are_in_the_metrics(own: bool) -> None:
    """S1: successful, failed and lost connections are counted."""

    def counted(name: str) -> float | None:
        labels = {"connection": "Events" if own else "server", "role": "stream"}
        assert runner.metrics is not None
        return runner.metrics.registry.get_sample_value(f"workerkit_{name}_total", labels)

    handled: list[str] = []

    async def handle(self: SSEConsumer, body: str) -> None:
        handled.append(body)

    async with sse_server() as server:
        where = {"url": server.url} if own else {"connection": "server"}
        consumer = type("Events", (SSEConsumer,), {"routes": ["/a"], "handle": handle, **where})
        async with consuming(server, consumer) as runner:
            server.refuse(503, times=2)
            server.cut()
            await server.send("a")
            await eventually(lambda: handled == ["a"])
            found = [
                counted(name)
                for name in ("connections", "connection_losses", "connection_failures")
            ]

    assert found == [2, 1, 2]


async def test_s1_waiting_events_are_not_requested_again() -> None:
    """S1: it resumes after the last complete event, even if that one still waits."""
    gate = asyncio.Event()
    consumer, handled = collector(before=lambda event: gate.wait())

    async with sse_server() as server:
        await server.send("0")
        await server.send("1")
        async with consuming(server, consumer):
            await server.client()
            server.cut()
            again = await server.client(2)
            gate.set()
            await eventually(lambda: len(handled) == 2)
            await server.send("2")
            await eventually(lambda: len(handled) == 3)

    assert again.last_event_id == "2"
    assert handled == ["0", "1", "2"]


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_s1_temporary_errors(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """S1: one ERROR for each failed attempt, with all details, and one INFO at the end."""
    caplog.set_level(logging.INFO)
    calls: list[tuple[Exception, int]] = []

    class Watching(SSEConsumer):
        connection = "server"
        routes = ["/events"]

        async def handle(self, data: str) -> None: ...

        async def on_connection_error(self, error: Exception, attempt: int) -> None:
            calls.append((error, attempt))
            raise KeyError("a hook may fail")

    async with sse_server() as server:
        server.refuse(status, times=2)
        async with consuming(server, Watching):
            await eventually(lambda: len(calls) == 2)

    found = fields(caplog, "connection failed")
    assert [each["attempt"] for each in found] == [1, 2]
    assert [each["exc_info"][0] for each in found] == [StreamRefused, StreamRefused]
    assert [each["error"] for each in found] == [str(each["exc_info"][1]) for each in found]
    assert all(0.25 <= each["retry_in"] <= 1.0 for each in found)
    assert {(each["consumer"], each["route"], each["url"]) for each in found} == {
        ("Watching", "/events", f"{server.url}/events")
    }
    assert [each["attempt"] for each in fields(caplog, "stream is open")] == [3]
    assert [attempt for _, attempt in calls] == [1, 2]
    assert [type(error) for error, _ in calls] == [StreamRefused, StreamRefused]


async def test_s1_a_server_that_is_not_reachable(caplog: pytest.LogCaptureFixture) -> None:
    """S1: attempts continue, from the start and later."""
    consumer, handled = collector()
    server = SSEServer(free_port())
    await server.start()
    await server.stop()

    async with consuming(server, consumer, ready=False) as runner:
        await eventually(lambda: errors(caplog) == ["connection failed"])
        assert not runner.ready
        async with server:
            await server.send("a")
            await eventually(lambda: handled == ["a"])
            await server.stop()
            await eventually(lambda: not runner.ready)
            await server.start()
            await server.send("b")
            await eventually(lambda: handled == ["a", "b"])

    assert server.opened[-1].last_event_id == "1"


async def test_s1_retry_after_is_honoured(caplog: pytest.LogCaptureFixture) -> None:
    """S1: a server that requests a pause of a second gets it."""
    consumer, _ = collector()

    async with sse_server() as server:
        server.refuse(429, times=1, headers={"Retry-After": "1"})
        before = time.monotonic()
        async with consuming(server, consumer):
            seconds = time.monotonic() - before

    assert seconds >= 1.0
    assert [each["retry_in"] for each in fields(caplog, "connection failed")] == [1.0]


async def test_s1_retry_is_honoured(caplog: pytest.LogCaptureFixture) -> None:
    """S1: the pause before the next attempt is never shorter than the server's `retry`."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer):
        await server.raw(b"retry: 700\n\ndata: x\n\n")
        await eventually(lambda: handled == ["x"])
        server.cut()
        before = time.monotonic()
        await server.client(2)
        seconds = time.monotonic() - before

    (lost,) = fields(caplog, "stream lost")
    assert 0.7 <= lost["retry_in"] <= 1.4
    assert seconds >= 0.65


async def test_s1_pauses_grow_and_are_capped(caplog: pytest.LogCaptureFixture) -> None:
    """S1: if a server ends every stream immediately, pauses grow up to a limit."""
    consumer, _ = collector()

    async with sse_server() as server, consuming(server, consumer):
        for number in range(1, 6):
            await server.client(number)
            server.end()
        await eventually(lambda: len(fields(caplog, "stream lost")) == 5)

    pauses = [each["retry_in"] for each in fields(caplog, "stream lost")]
    assert all(
        0.01 * 2**n <= pause + 0.005 <= 0.02 * 2**n + 0.01 for n, pause in enumerate(pauses)
    ), pauses


async def test_s2_no_content_ends_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    """S2: 204 is the end; it is logged, is no failure, and there is no other request."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer) as runner:
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        server.refuse(204)
        server.cut()
        await eventually(lambda: stream_of(runner).over)
        asked = len(server.requests)
        assert runner.ready
        assert not stream_of(runner).connected

    assert len(fields(caplog, "the server has ended the stream permanently: 204")) == 1
    assert len(server.requests) == asked == 2
    assert errors(caplog) == []


async def test_s2_refused_from_the_start() -> None:
    """S2: three refusals of a stream that was never open fail the start."""

    async def refused(status: int, content_type: str = "text/plain") -> None:
        consumer, _ = collector()
        async with sse_server() as server:
            server.refuse(status, headers={"Content-Type": content_type})
            async with consuming(server, consumer, ready=False) as runner:
                await eventually(lambda: abort_reasons(runner.health))
                (reason,) = abort_reasons(runner.health)
                asked = len(server.requests)
        assert asked == 3
        assert f"GET {server.url}/events was answered by {status}" in reason
        assert (status == 200) == ("'text/html' instead of 'text/event-stream'" in reason)

    await asyncio.gather(*map(refused, [401, 403, 404, 410]), refused(200, "text/html"))


async def test_s2_a_refusal_later_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """S2: attempts of a stream that was open continue, more slowly than after a loss."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer) as runner:
        server.refuse(401, times=2)
        server.cut()
        await server.send("a")
        await eventually(lambda: stream_of(runner).refusals == 2)
        assert abort_reasons(runner.health) == []
        await eventually(lambda: handled == ["a"])

    pauses = [each["retry_in"] for each in fields(caplog, "connection failed")]
    assert all(0.25 * 2**n <= pause <= 0.5 * 2**n for n, pause in enumerate(pauses)), pauses


async def test_s2_an_unknown_certificate_is_a_refusal(tmp_path: Path) -> None:
    """S2: a failure of TLS needs an operator; with the right authority it works."""
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    consumer, handled = collector()

    async with sse_server(tls=tls) as server:
        await server.send("a")
        async with consuming(server, consumer, ready=False) as runner:
            await eventually(lambda: stream_of(runner).refusals)
            assert "CertificateError" in stream_of(runner).reason
        async with consuming(server, consumer, tls={"ca": tmp_path / "ca.pem"}):
            await eventually(lambda: handled == ["a"])


async def test_s3_a_silent_connection_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """S3: after `idle_timeout` without a byte the stream is reopened."""
    consumer, handled = collector(idle_timeout=0.2)

    async with sse_server() as server, consuming(server, consumer):
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        again = await server.client(len(server.opened) + 1)
        await server.send("b")
        await eventually(lambda: handled == ["a", "b"])

    assert again.last_event_id == "1"
    assert "no data for 0.2 s" in fields(caplog, "stream lost")[0]["reason"]


async def test_s3_comments_count_as_data() -> None:
    """S3: comments alone keep a stream open, far beyond the timeout."""
    consumer, _ = collector()

    async with sse_server() as server, consuming(server, consumer, idle_timeout=3.0):
        opened = len(server.opened)
        until = time.monotonic() + 6.5
        while time.monotonic() < until:
            await server.comment("still here")
            await asyncio.sleep(0.05)

        assert len(server.opened) == opened


async def test_s3_a_server_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    """S3: a server that accepts the connection and sends nothing is a failed attempt."""
    consumer, _ = collector()
    writers: list[asyncio.StreamWriter] = []
    mute = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{mute.sockets[0].getsockname()[1]}"

    async with mute:
        async with consuming(url, consumer, ready=False, idle_timeout=0.1):
            await eventually(lambda: "connection failed" in errors(caplog))
        for writer in writers:
            writer.close()

    assert "no response in time" in str(fields(caplog, "connection failed")[0]["exc_info"][1])


async def test_s3_a_slow_handler_is_not_a_silent_server() -> None:
    """S3: time in which nothing is read because handlers are slow does not count."""
    gate = asyncio.Event()
    consumer, handled = collector(before=lambda event: gate.wait(), idle_timeout=0.3)

    async with sse_server() as server:
        for number in range(10):
            await server.send(str(number))
        async with consuming(server, consumer):
            before = len(server.opened)
            stalled = asyncio.get_running_loop().time() + 1.0
            await eventually(lambda: asyncio.get_running_loop().time() > stalled)
            opened = len(server.opened)
            gate.set()
            await eventually(lambda: len(handled) == 10)

    assert opened == before


async def test_s4_half_an_event_is_requested_again() -> None:
    """S4: a partial event is discarded, and is complete after the next connect."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer):
        await server.send("a", id="1")
        await server.raw(b"id: 2\ndata: hal")
        await eventually(lambda: handled == ["a"])
        server.cut()
        await server.send("whole", id="2")
        await eventually(lambda: len(handled) == 2)

    assert handled == ["a", "whole"]
    assert server.opened[1].last_event_id == "1"


async def test_secrets_are_sent_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Tokens, passwords and queries are sent to the server, and are not in log or health."""
    caplog.set_level(logging.DEBUG)
    consumer, _ = collector()

    async with sse_server() as server:
        server.refuse(500, times=1)
        url = server.url.replace("http://", "http://user:pa55word@") + "/base?key=querys3cret"
        async with consuming(url, consumer, headers={"X-Key": "h3ader"}) as runner:
            request = await server.client()
            server.cut()
            await server.client(2)
            shown = everything(caplog) + repr(runner.health)

    assert (request.path, dict(request.query)) == ("/base/events", {"key": "querys3cret"})
    assert request.headers["Authorization"] == "Basic dXNlcjpwYTU1d29yZA=="
    assert request.headers["X-Key"] == "h3ader"
    for secret in ("pa55word", "querys3cret", "h3ader", "dXNlcjpwYTU1d29yZA"):
        assert secret not in shown


async def test_headers_are_called_for_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """`headers` of a consumer replace those of the connection; an exception fails the attempt."""
    tokens = iter(["first", "", "slow", "second"])

    class Renewing(SSEConsumer):
        connection = "server"
        routes = ["/events"]

        async def headers(self) -> dict[str, str]:
            token = next(tokens)
            if not token:
                raise LookupError("no token now")
            if token == "slow":
                raise TimeoutError("no answer with a token")
            return {"authorization": f"Bearer {token}"}

        async def handle(self, data: str) -> None: ...

    async with sse_server() as server, consuming(server, Renewing, token="old"):
        await server.client()
        server.cut()
        await server.client(2)

    sent = [each.headers["Authorization"] for each in server.opened]
    assert sent == ["Bearer first", "Bearer second"]
    reasons = [str(each["exc_info"][1]) for each in fields(caplog, "connection failed")]
    assert reasons == [
        "headers of Renewing: LookupError: no token now",
        "headers of Renewing: TimeoutError: no answer with a token",
    ]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, "headers of Wrong: returned None: return a dict of str by name"),
        ("X-Key: a", "headers of Wrong: returned a str: return a dict of str by name"),
        ({1: "a"}, "headers of Wrong: a name is of type int: write a str"),
        ({"X-Key": "s3cret\n"}, "header 'X-Key' cannot be sent: write a str without line breaks"),
        ({"X-Key": b"s3cret"}, "header 'X-Key' cannot be sent: write a str without line breaks"),
        ({"X-Key": None}, "header 'X-Key' cannot be sent: write a str without line breaks"),
    ],
)
async def test_headers_that_cannot_be_sent_are_named(
    caplog: pytest.LogCaptureFixture, found: Any, sentence: str
) -> None:
    """The attempt fails; the log has the name of the header and what is expected, no value."""

    answers = iter([{"X-Good": "good", **found} if isinstance(found, dict) else found])

    class Wrong(SSEConsumer):
        connection = "server"
        routes = ["/events"]

        async def headers(self) -> Any:
            return next(answers, {})

        async def handle(self, data: str) -> None: ...

    async with sse_server() as server, consuming(server, Wrong):
        await server.client()

    (failed,) = fields(caplog, "connection failed")
    assert str(failed["exc_info"][1]).endswith(sentence)
    assert "s3cret" not in everything(caplog)


async def test_a_stream_opened_by_post() -> None:
    """With `json` the request is a POST with that body."""
    consumer, handled = collector(json={"prompt": "hello"})

    async with sse_server() as server, consuming(server, consumer):
        request = await server.client()
        await server.send("hi")
        await eventually(lambda: handled == ["hi"])

    assert (request.method, request.body) == ("POST", b'{"prompt": "hello"}')


async def test_several_routes_are_several_streams() -> None:
    """Each route is a separate stream; one that is refused does not affect others."""
    recorder = Recorder()

    class Both(SSEConsumer):
        connection = "server"
        routes = ["/a", "/b"]

        async def handle(self, event: SSEEvent[str]) -> None: ...

    async with sse_server() as server, consuming(server, Both, recorder=recorder) as runner:
        await server.client(2)
        await server.send("one", route="/a")
        await server.send("two", route="/b")
        await eventually(lambda: len(recorder.settled) == 2)
        routes = [part.route for part in runner.health[0].parts if isinstance(part, StreamHealth)]

    assert {(each.source, each.delivery.raw) for each in recorder.settled} == {
        ("/a", "one"),
        ("/b", "two"),
    }
    assert routes == ["/a", "/b"]


async def test_s1_stop_while_reconnecting() -> None:
    """A stop does not wait for the pause before the next attempt."""
    consumer, _ = collector()

    async with sse_server() as server:
        server.refuse(503, headers={"Retry-After": "60"})
        async with consuming(server, consumer, ready=False) as runner:
            await eventually(lambda: stream_of(runner).reason.startswith("GET"))
            before = time.monotonic()
        seconds = time.monotonic() - before

    assert seconds < 30.0


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


HOSTILE = [
    b"",
    b"\0\xff" * 100,
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 999999 ?\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    HEAD + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    HEAD + b"Content-Encoding: gzip\r\n\r\nno gzip at all",
    HEAD + b"Content-Length: 1000\r\n\r\ndata: half",
    HEAD + b"Content-Length: -5\r\n\r\n",
    CHUNKED + b"zzzz\r\ndata: x\n\n\r\n",
    CHUNKED + b"5\r\ndata: x\n\n and more than five",
    CHUNKED + b"-1\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: ftp://s3cret/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[s3cret\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nRetry-After: \xff\r\n\r\n",
]


async def test_s1_invalid_http(caplog: pytest.LogCaptureFixture) -> None:
    """S1: any data of a server only fails its connection: another attempt follows."""

    async def against(answer: bytes) -> None:
        tries = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tries
            tries += 1
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        consumer, _ = collector()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, consuming(url, consumer, ready=False) as runner:
            await eventually(lambda: tries >= 2, what=f"a second try after {answer[:100]!r}")
            assert not runner.crashed

    await asyncio.gather(*map(against, HOSTILE))

    # The target of a redirect may be a secret as well.
    assert "s3cret" not in everything(caplog)
    told = len(fields(caplog, "connection failed")) + len(fields(caplog, "stream lost"))
    assert told >= len(HOSTILE)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00", 0.0),
        ("soon", None),
        ("-1", None),
        ("\u0661", None),
        ("9" * 400, 999_999_999.0),
    ],
)
async def test_s1_values_of_retry_after(retry_after: str, seconds: float | None) -> None:
    """S1: seconds or a date; other values count as absent."""
    async with sse_server() as server:
        server.refuse(503, headers={"Retry-After": retry_after})
        request = StreamRequest("GET", URL(server.url), server.url, {}, None, None, None, 5.0, 5.0)
        with pytest.raises(StreamRefused) as caught:
            async with StreamConnection(request, Parser()):
                pass

    assert caught.value.retry_after == seconds


async def test_the_health_of_a_stream() -> None:
    """It has the route, the connection, and the last event."""
    consumer, handled = collector()

    async with sse_server() as server, consuming(server, consumer) as runner:
        stream = stream_of(runner)
        before = (stream.route, stream.connected, stream.age, stream.cursor_stored)
        await server.send("a")
        await eventually(lambda: handled == ["a"])
        age = stream.age
        await server.stop()
        await eventually(lambda: not stream.connected)
        reason = runner.health[0].reason
        await server.start()

    assert before == ("/events", True, None, True)
    assert age is not None
    assert 0 <= age < 5
    assert reason.startswith(f"GET {server.url}/events: ")
