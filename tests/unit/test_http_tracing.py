"""The spans of requests: one for each, from the first middleware to the last byte."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType, web
from opentelemetry.baggage import get_baggage
from opentelemetry.context import Context
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel
from yarl import URL

from tests.serving import everything, first_answer, serving
from tests.tracing import Spans, configured, recorded
from tests.waiting import eventually
from workerkit import HTTPView, Reject, Retry

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Order(BaseModel):
    id: int


class ByNumber(HTTPView):
    """A view with a parameter."""

    routes = ["/orders/{number}"]

    async def get(self, number: int) -> Order:
        if number == 1:
            raise KeyError("customer")
        if number == 2:
            raise web.HTTPBadGateway
        if number == 3:
            raise Reject("sold out")
        if number == 4:
            raise Retry(after=1)
        if number == 5:
            return object()  # type: ignore[return-value]  # It cannot be serialized.
        return Order(id=number)


class All(HTTPView):
    """A view without one."""

    routes = ["/orders"]
    max_body = 100

    async def get(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier

    async def post(self, order: Order) -> Order:
        return order


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans of the test."""
    with recorded() as found:
        yield found


async def ended(spans: Spans, number: int = 1) -> Sequence[ReadableSpan]:
    """Return the spans, when that number has ended."""
    await eventually(lambda: len(spans.all) >= number)
    assert len(spans.all) == number
    return spans.all


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return its attributes, without those that are the same for each."""
    common = ["url.scheme", "server.address", "server.port", "client.address"]
    own = dict(span.attributes or {})
    return {name: value for name, value in own.items() if name not in common}


async def test_a_request_is_a_child_of_its_client(spans: Spans) -> None:
    """Its span has the name of the route; the query may be secret, so it is nowhere."""
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=1", "User-Agent": "shop/1"}
    async with serving(ByNumber) as client:
        await client.get("/orders/7?token=secret", headers=headers)

    [span] = await ended(spans)
    assert span.parent is not None
    assert (span.name, span.kind) == ("GET /orders/{number}", SpanKind.SERVER)
    assert (span.parent.trace_id, span.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert span.parent.trace_state == {"a": "1"}
    url = URL(client.url)
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/orders/{number}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/orders/7",
        "server.address": url.host,
        "server.port": url.port,
        "client.address": "127.0.0.1",
        "user_agent.original": "shop/1",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert "secret" not in span.to_json()


async def test_a_request_without_a_parent(spans: Spans) -> None:
    """It begins a trace, even on a connection that had a request with a parent before."""
    async with serving(All) as client:
        first = (await client.get("/orders", headers={"traceparent": TRACEPARENT})).json()
        second = (await client.get("/orders")).json()

    one, two = await ended(spans, 2)
    assert one.context is not None
    assert first["traceparent"] == f"00-{TRACE}-{one.context.span_id:016x}-01"
    assert two.parent is None
    assert TRACE not in second["traceparent"]
    assert one.name == two.name == "GET /orders"


async def test_baggage(spans: Spans) -> None:
    """It reaches the view, and what the view publishes."""

    class Tenant(HTTPView):
        routes = ["/tenant"]

        async def get(self) -> list[str]:
            carrier: dict[str, str] = {}
            inject(carrier)
            return [str(get_baggage("tenant")), carrier["baggage"]]

    async with serving(Tenant) as client:
        answer = await client.get("/tenant", headers={"baggage": "tenant=acme"})
        other = await client.get("/tenant", headers={"baggage": "tenant=umbrella"})

    assert answer.json() == ["acme", "tenant=acme"]
    assert other.json() == ["umbrella", "tenant=umbrella"]


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/orders/1", 500, "KeyError"),
        ("/orders/2", 502, "aiohttp.web_exceptions.HTTPBadGateway"),
        ("/orders/3", 422, None),
        ("/orders/4", 503, "503"),
        ("/orders/5", 500, "TypeError"),
        ("/orders/x", 422, None),
    ],
)
async def test_only_a_failure_of_the_server_is_an_error(
    spans: Spans, path: str, status: int, error: str | None
) -> None:
    """A refused request is one of its client."""
    async with serving(ByNumber) as client:
        await client.get(path)

    [span] = await ended(spans)
    assert span.name == "GET /orders/{number}"
    found = attributes(span)
    assert (found["http.response.status_code"], found.get("error.type")) == (status, error)
    expected = StatusCode.UNSET if error is None else StatusCode.ERROR
    assert span.status.status_code is expected
    described = error is not None and error != "503"
    assert [each.name for each in span.events] == ["exception"] * described


HEAD = b"POST /orders HTTP/1.1\r\nHost: shop:80\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_", "name", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", "GET", 404),
        (b"DELETE /orders HTTP/1.1\r\nHost: a\r\n\r\n", "DELETE /orders", 405),
        (b"PROPFIND /orders HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP /orders", 405),
        (b"nonsense\r\n\r\n", "HTTP", 400),
        (b"NONSENSE / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP", 501),
        (HEAD + b"Content-Length: 1\r\n\r\n{", "POST /orders", 400),
        (HEAD + b"Content-Length: 1000\r\n\r\n" + b" " * 1000, "POST /orders", 413),
        (HEAD + b"Content-Encoding: x\r\nContent-Length: 1\r\n\r\n{", "POST /orders", 415),
        (HEAD + b"Expect: x\r\nContent-Length: 1\r\n\r\n{", "POST /orders", 417),
    ],
)
async def test_a_request_that_reaches_no_view(
    spans: Spans, request_: bytes, name: str, status: int
) -> None:
    """It has a span as well, with the route that it was about."""
    async with serving(All) as client:
        answer = await first_answer(client, request_)

    assert answer.split()[1] == str(status).encode()
    assert b'"request_id":' in answer
    [span] = await ended(spans)
    found = attributes(span)
    assert (span.name, found["http.response.status_code"]) == (name, status)
    assert span.status.status_code is (StatusCode.ERROR if status >= 500 else StatusCode.UNSET)
    known = name.split(maxsplit=1)[0] in ("GET", "POST", "DELETE")
    assert found["http.request.method"] == (name.split(maxsplit=1)[0] if known else "_OTHER")


@pytest.mark.parametrize(
    ("sent", "name"),
    [(HEAD + b"Content-Length: 1\r\n\r\n", "POST /orders"), (b"POST /orders HTTP/1.1\r\n", "HTTP")],
)
async def test_a_request_that_does_not_arrive(spans: Spans, sent: bytes, name: str) -> None:
    """A 408 has a span, whether the head has arrived or not."""
    async with serving(All, read_timeout=0.1) as client:
        answer = await everything(client, sent)

    assert answer.split()[1] == b"408"
    [span] = await ended(spans)
    assert (span.name, attributes(span)["http.response.status_code"]) == (name, 408)


@web.middleware
async def careful(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer, fail, or change what the view has answered."""
    if request.path == "/orders/8":
        return web.Response(status=401)
    if request.path == "/orders/9":
        raise ValueError("tenant")
    response: web.StreamResponse = await handler(request)
    response.set_status(203)
    return response


@pytest.mark.parametrize(
    ("number", "status", "error"), [(7, 203, None), (8, 401, None), (9, 500, "ValueError")]
)
async def test_middlewares_are_inside(
    spans: Spans, number: int, status: int, error: str | None
) -> None:
    """The span has the status that the client gets, whoever has chosen it."""
    async with serving(ByNumber, middlewares=[careful]) as client:
        answer = await client.get(f"/orders/{number}")

    [span] = await ended(spans)
    assert answer.status == status
    assert span.name == "GET /orders/{number}"
    found = attributes(span)
    assert (found["http.response.status_code"], found.get("error.type")) == (status, error)


class Stream(HTTPView):
    """Sends a part, and the rest when the test wants it."""

    routes = ["/stream"]
    go_on: asyncio.Event
    error: Exception | None = None

    async def get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=206)
        await response.prepare(request)
        await response.write(b"a")
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        await response.write(b"b")
        return response


@pytest.fixture
def stream() -> type[Stream]:
    """The view for one test."""
    return type("OwnStream", (Stream,), {"go_on": asyncio.Event()})


async def test_a_stream(spans: Spans, stream: type[Stream]) -> None:
    """Its span ends when the last byte is sent."""
    async with (
        serving(stream) as client,
        ClientSession() as session,
        session.get(f"{client.url}/stream") as response,
    ):
        assert await response.content.readany() == b"a"
        before = spans.names
        stream.go_on.set()
        assert await response.content.read() == b"b"

    assert before == []
    [span] = await ended(spans)
    assert attributes(span)["http.response.status_code"] == 206


async def test_a_stream_that_fails(spans: Spans, stream: type[Stream]) -> None:
    """The client sees its connection end; the span has the error."""

    stream.error = KeyError("customer")
    stream.go_on.set()
    async with serving(stream) as client:
        answer = await everything(client, b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")

    assert b"a" in answer
    [span] = await ended(spans)
    assert attributes(span)["error.type"] == "KeyError"
    assert span.status.status_code is StatusCode.ERROR


async def test_a_client_that_leaves(spans: Spans) -> None:
    """The span ends with the handler; nobody has failed."""

    class Endless(HTTPView):
        routes = ["/endless"]

        async def get(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"a")
                await asyncio.sleep(0)

    async with serving(Endless) as client:
        async with ClientSession() as session, session.get(f"{client.url}/endless") as response:
            assert await response.content.readany()
        [span] = await ended(spans)

    assert span.status.status_code is StatusCode.UNSET
    found = attributes(span)
    assert (found["http.response.status_code"], found.get("error.type")) == (499, None)


class Echo(HTTPView):
    """A WebSocket."""

    routes = ["/echo"]

    async def get(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket


async def test_a_web_socket(spans: Spans) -> None:
    """Its span lasts as long as it is open."""
    async with serving(Echo) as client, ClientSession() as session:
        async with session.ws_connect(f"{client.url}/echo") as socket:
            await socket.send_str("a")
            assert (await socket.receive()).type is WSMsgType.TEXT
            before = spans.names
        await eventually(lambda: spans.all)

    assert before == []
    [span] = await ended(spans)
    assert (span.name, attributes(span)["http.response.status_code"]) == ("GET /echo", 101)


async def test_a_request_that_is_cancelled(spans: Spans) -> None:
    """A process that stops ends the span of a request that it does not answer."""

    class Slow(HTTPView):
        routes = ["/slow"]
        started = asyncio.Event()

        async def get(self) -> None:
            self.started.set()
            await asyncio.Event().wait()

    async with serving(Slow, grace=0.0) as client:
        call = asyncio.create_task(everything(client, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"))
        await Slow.started.wait()
    assert await call == b""

    [span] = await ended(spans)
    assert span.name == "GET /slow"
    assert attributes(span)["error.type"] == "CancelledError"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    "lines",
    [
        b"traceparent: 00-zz-1\r\n",
        b"traceparent: " + b"0" * 5000 + b"\r\n",
        f"traceparent: {TRACEPARENT}\r\ntraceparent: {TRACEPARENT}\r\n".encode(),
        b"traceparent: \xff\xfe\r\nbaggage: \xff=\xff\r\n",
        b"User-Agent: \xff\xed\xa0\x80\r\nbaggage: " + b"a=b," * 1000 + b"\r\n",
    ],
    ids=range(5),
)
async def test_hostile_headers(
    spans: Spans, lines: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """They are no parent, every exporter can encode the span, and no log has them."""
    head = b"GET /orders/7\xff HTTP/1.1\r\nHost: \xff\xfe:99999999\r\n"
    async with serving(All, ByNumber) as client:
        await first_answer(client, head + lines + b"\r\n")

    [span] = await ended(spans)
    assert span.parent is None
    assert [each for each in caplog.records if each.name.startswith("opentelemetry")] == []
    for value in (span.attributes or {}).values():
        str(value).encode()


@pytest.mark.parametrize("sampled", [True, False])
async def test_an_unsampled_request(sampled: bool) -> None:
    """Its trace goes on in what the view publishes; only a client that samples gets a span."""
    flags = "01" if sampled else "00"
    with recorded(ParentBased(ALWAYS_OFF)) as spans:
        async with serving(All) as client:
            headers = {"traceparent": TRACEPARENT[:-2] + flags}
            found = (await client.get("/orders", headers=headers)).json()["traceparent"]
            root = (await client.get("/orders")).json()["traceparent"]

    assert spans.names == ["GET /orders"] * sampled
    assert found.startswith(f"00-{TRACE}-")
    assert PARENT not in found
    assert (found[-2:], root[-2:]) == (flags, "00")


async def test_requests_at_the_same_time(spans: Spans) -> None:
    """Each view sees its own span."""

    class Slow(HTTPView):
        routes = ["/slow/{number}"]
        all_in = asyncio.Barrier(5)

        async def get(self, number: int) -> str:
            await self.all_in.wait()
            return f"{get_current_span().get_span_context().span_id:016x}"

    async with serving(Slow) as client:
        answers = await asyncio.gather(*(client.get(f"/slow/{each}") for each in range(5)))

    found = {f"{each.context.span_id:016x}" for each in await ended(spans, 5) if each.context}
    assert {each.json() for each in answers} == found


class BrokenProcessor(SpanProcessor):
    """A processor of a user that raises."""

    def __init__(self, method: str) -> None:
        self.method = method

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Raise."""
        if self.method == "on_start":
            raise RuntimeError("broken")

    def on_end(self, span: ReadableSpan) -> None:
        """Raise."""
        if self.method == "on_end":
            raise RuntimeError("broken")


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_a_tracer_that_fails(caplog: pytest.LogCaptureFixture, method: str) -> None:
    """Requests are answered, and it is logged once."""
    with recorded() as spans:
        spans.provider.add_span_processor(BrokenProcessor(method))
        async with serving(All) as client:
            statuses = [(await client.get("/orders")).status for _ in range(3)]

    assert statuses == [200] * 3
    ours = [each for each in caplog.records if each.name == "workerkit.tracing.recorder"]
    assert [each.getMessage().partition(":")[0] for each in ours] == ["tracing failed"]


async def test_without_tracing() -> None:
    """Nothing is created, and the class of the connection is the one without spans."""
    classes = set[str]()

    @web.middleware
    async def look(request: web.Request, handler: Any) -> web.StreamResponse:
        classes.add(type(request.protocol).__name__)
        response: web.StreamResponse = await handler(request)
        return response

    with configured(None):
        async with serving(All, middlewares=[look]) as client:
            assert (await client.get("/orders")).json() == {}

    assert classes == {"ClientConnection"}
