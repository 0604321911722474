"""Arguments of a view's method from a request, and responses from its return value."""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from time import perf_counter
from typing import Annotated, Any, Literal, TypedDict
from uuid import UUID

import msgspec
import pytest
from aiohttp import web
from dependency_injector import providers
from dependency_injector.wiring import Provide
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from tests.application import Recorder
from tests.serving import serving
from workerkit import Cookie, Header, HTTPView
from workerkit.testing.http_client import HTTPAnswer


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    LARGE = 3


class Level(Enum):
    LOW = 1
    NONE = "none"


Number = TypeAliasType("Number", Literal[1, 2])
Named = TypeAliasType("Named", Number | Level)


class Order(BaseModel):
    id: int
    item: str = "tea"


@dataclass
class Point:
    x: int
    y: int = 0


class Row(TypedDict):
    id: int


class Frame(msgspec.Struct):
    id: int


class Circle(msgspec.Struct, tag=True):
    radius: int


class Square(msgspec.Struct, tag=True):
    side: int


def taking(type_: Any, default: Any = ...) -> type[HTTPView]:
    """Return a view that answers with the repr of its parameter `value`."""

    async def handle(self: HTTPView, value: Any) -> str:
        return repr(value)

    handle.__annotations__["value"] = type_
    if default is not ...:
        handle.__defaults__ = (default,)
    attributes = {"routes": ["/{value}", "/"], "handle": handle}
    return type("Taking", (HTTPView,), attributes)


def reading(type_: Any, default: Any = ...) -> type[HTTPView]:
    """Return the same for a POST without path parameters."""
    view = taking(type_, default)
    view.routes, view.methods = ["/"], ["POST"]
    return view


@pytest.mark.parametrize(
    ("type_", "query", "expected"),
    [
        (str, "value=a%20b", "'a b'"),
        (str, "value=", "''"),
        (int, "value=3", "3"),
        (float, "value=1.5", "1.5"),
        (bool, "value=true", "True"),
        (bool, "value=0", "False"),
        (Decimal, "value=1.50", "Decimal('1.50')"),
        (date, "value=2026-01-31", "datetime.date(2026, 1, 31)"),
        (UUID, f"value={UUID(int=1)}", repr(UUID(int=1))),
        (Colour, "value=red", "<Colour.RED: 'red'>"),
        (Size, "value=3", "<Size.LARGE: 3>"),
        (Literal["a", "b"], "value=b", "'b'"),
        (Literal[10, 20], "value=20", "20"),
        (Literal[10, "10"], "value=10", "'10'"),
        (Literal[1, True, None, "a"], "value=true", "True"),
        (Literal[1, True, None, "a"], "value=null", "None"),
        (Literal[True, "a"], "value=1", "True"),
        (Literal[Level.LOW], "value=1", "<Level.LOW: 1>"),
        (Literal[1, 2] | None, "value=2", "2"),
        (Literal[1] | str, "value=1", "1"),
        (Annotated[Literal[10, 20], Field(gt=10)], "value=20", "20"),
        (Level, "value=1", "<Level.LOW: 1>"),
        (int | str, "value=3", "3"),
        (int | None, "value=3", "3"),
        (int | None, "", "None"),
        (Annotated[int, Field(gt=2)], "value=3", "3"),
        (list[int], "value=1&value=2", "[1, 2]"),
        (set[str], "value=a&value=a", "{'a'}"),
        (list[Colour] | None, "value=red", "[<Colour.RED: 'red'>]"),
        (list[int] | None, "", "None"),
        (list[Literal[1, 2]], "value=2&value=1", "[2, 1]"),
        (tuple[Level, Level], "value=1&value=none", "(<Level.LOW: 1>, <Level.NONE: 'none'>)"),
        (list[int | str], "value=3&value=x", "[3, 'x']"),
        (list[Named] | Annotated[list[Named], "again"] | set[Number], "value=1&value=2", "[1, 2]"),
        (list[UUID | str], f"value={UUID(int=1)}", f"[{UUID(int=1)!r}]"),
    ],
)
async def test_a_value_of_the_query(type_: Any, query: str, expected: str) -> None:
    """A scalar, or a list of scalars, is read from the query."""
    view = taking(type_)
    view.routes = ["/"]

    async with serving(view) as client:
        answer = await client.get(f"/?{query}")

    assert (answer.status, answer.json()) == (200, expected)


@pytest.mark.parametrize(
    ("type_", "default", "query", "expected"),
    [
        (int, 5, "", "5"),
        (int, 5, "value=6", "6"),
        (bool, False, "", "False"),
        (list[int], (), "", "()"),
        (Colour, Colour.RED, "", "<Colour.RED: 'red'>"),
        (bytes, b"", "value=a", "b'a'"),
        (bytes, b"", "", "b''"),
        (Any, None, "value=a", "'a'"),
        (object, 3, "value=a", "'a'"),
    ],
)
async def test_a_default(type_: Any, default: Any, query: str, expected: str) -> None:
    """A parameter with a default may be missing."""
    view = taking(type_, default)
    view.routes = ["/"]

    async with serving(view) as client:
        assert (await client.get(f"/?{query}")).json() == expected


@pytest.mark.parametrize(
    ("type_", "path", "expected"),
    [
        (str, "a%20b", "'a b'"),
        (int, "3", "3"),
        (Colour, "red", "<Colour.RED: 'red'>"),
        (UUID, str(UUID(int=1)), repr(UUID(int=1))),
        (Literal[10, 20], "10", "10"),
    ],
)
async def test_a_path_parameter(type_: Any, path: str, expected: str) -> None:
    """A parameter with its name takes it; other routes may not have it."""
    async with serving(taking(type_, None)) as client:
        answer, without = await client.get(f"/{path}"), await client.get("/")

    assert (answer.json(), without.json()) == (expected, "None")


async def test_headers_and_cookies() -> None:
    """They have a marker; the name is that of the parameter, or of the marker."""

    class Marked(HTTPView):
        routes = ["/{token}"]

        async def get(
            self,
            token: Annotated[str, Header],
            x_request_count: Annotated[int, Header],
            other: Annotated[str, Header("If-Match")] | None,
            forwarded: Annotated[list[str], Header()],
            theme: Annotated[str, Cookie],
            session: Annotated[str, Cookie("sid")] = "none",
        ) -> list[Any]:
            return [token, x_request_count, other, forwarded, theme, session]

    async with serving(Marked) as client:
        answer = await client.get(
            "/x",
            headers={"Token": "t", "X-Request-Count": "3", "Forwarded": "a"},
            cookies={"theme": "dark", "sid": "1"},
        )

    assert answer.json() == ["t", 3, None, ["a"], "dark", "1"]


async def test_markers_as_defaults() -> None:
    """They mean the same as in the annotation, and are no default values."""

    class Marked(HTTPView):
        routes = ["/"]

        async def get(
            self,
            key: str = Header("X-Key"),  # type: ignore[assignment]
            sid: int | None = Cookie(),  # type: ignore[assignment]
        ) -> list[Any]:
            return [key, sid]

    async with serving(Marked) as client:
        good = await client.get("/", headers={"X-Key": "k"}, cookies={"sid": "1"})
        fewer = await client.get("/", headers={"X-Key": "k"})
        bad = await client.get("/?key=k")

    assert (good.json(), fewer.json()) == (["k", 1], ["k", None])
    assert bad.json()["errors"] == [{"in": "header", "name": "X-Key", "detail": "is missing"}]


@pytest.mark.parametrize(("sent", "expected"), [("1,,2", [1, 2]), ("", []), (" , 3 ,", [3])])
async def test_empty_elements_of_a_header(sent: str, expected: list[int]) -> None:
    """They are ignored, as in RFC 9110."""

    class Counting(HTTPView):
        routes = ["/"]

        async def get(self, n: Annotated[list[int], Header("X-N")]) -> list[int]:
            return n

    async with serving(Counting) as client:
        answer = await client.get("/", headers={"X-N": sent})

    assert (answer.status, answer.json()) == (200, expected)


async def test_literals_of_headers_and_cookies() -> None:
    """They are read as in a query, and a fault says what is expected."""

    class Choosing(HTTPView):
        routes = ["/"]

        async def get(
            self, size: Annotated[Literal[1, 2], Cookie], n: Annotated[list[Literal[3, 4]], Header]
        ) -> list[Any]:
            return [size, *n]

    async with serving(Choosing) as client:
        good = await client.get("/", headers={"N": "4, 3"}, cookies={"size": "2"})
        bad = await client.get("/", headers={"N": "4, 5"}, cookies={"size": "0"})

    assert (good.status, good.json()) == (200, [2, 4, 3])
    assert [each["detail"] for each in bad.json()["errors"]] == [
        "Input should be 1 or 2",
        "Input should be 3 or 4",
    ]


async def test_a_value_is_not_quoted() -> None:
    """Not even one character of it, as pydantic does for a UUID."""

    class Finding(HTTPView):
        routes = ["/"]

        async def get(self, id: UUID) -> None:
            """Nothing."""

    async with serving(Finding) as client:
        answer = await client.get("/?id=zz")

    assert answer.json()["errors"][0]["detail"] == "Input should be a valid UUID"


@pytest.mark.parametrize(
    ("type_", "body", "expected"),
    [
        (Order, {"id": 1}, "Order(id=1, item='tea')"),
        (Point, {"x": 1}, "Point(x=1, y=0)"),
        (Row, {"id": 1}, "{'id': 1}"),
        (Frame, {"id": 1}, "Frame(id=1)"),
        (Frame | None, {"id": 1}, "Frame(id=1)"),
        (list[Frame], [{"id": 1}], "[Frame(id=1)]"),
        (Annotated[dict[str, Frame], "frames"], {"a": {"id": 1}}, "{'a': Frame(id=1)}"),
        (Circle | Square, {"type": "Square", "side": 1}, "Square(side=1)"),
        (list[Order], [{"id": 1}], "[Order(id=1, item='tea')]"),
        (dict[str, int], {"a": 1}, "{'a': 1}"),
        (Order | Point, {"x": 1}, "Point(x=1, y=0)"),
    ],
)
async def test_a_body(type_: Any, body: Any, expected: str) -> None:
    """A model, or a list of models, is read from the JSON body."""
    async with serving(reading(type_)) as client:
        answer = await client.post("/", json=body)
        again = await client.post(
            "/",
            body=msgspec.json.encode(body),
            headers={"Content-Type": "application/vnd.order+json; charset=utf-8"},
        )

    assert (answer.json(), again.json()) == (expected, expected)


async def test_an_optional_body() -> None:
    """Without a body, the parameter gets its default, or None if its type allows it."""
    async with serving(reading(Order, None)) as client:
        with_default = await client.post("/")
    async with serving(reading(Order | None)) as client:
        optional = await client.post("/")

    async with serving(reading(list[Frame] | None, None)) as client:
        frames, bad = await client.post("/"), await client.post("/", json=[{"id": "x"}])

    assert (with_default.json(), optional.json(), frames.json()) == ("None", "None", "None")
    assert bad.status == 422


async def test_parameters_from_the_container() -> None:
    """Other parameters are provided by the container; a session is entered and exited."""
    seen: list[str] = []

    class Settings(BaseModel):
        colour: str = "red"

    class Store:
        name = "store"

    @asynccontextmanager
    async def session() -> AsyncIterator[str]:
        seen.append("entered")
        try:
            yield "session"
        except KeyError:
            seen.append("rolled back")
            raise
        seen.append("left")

    class Providing(HTTPView):
        routes = ["/{colour}"]

        def __init__(self, store: Store) -> None:
            self.store = store

        async def get(
            self,
            colour: str,
            store: Store,
            request: web.Request,
            session: Annotated[str, Provide["session"]],
            chosen: Annotated[Settings, Provide["settings_of_colour"]],
        ) -> list[Any]:
            assert store is self.store
            if colour == "none":
                raise KeyError(colour)
            return [colour, store.name, request.path, session, chosen]

    provided = {
        "store": Store(),
        "settings_of_colour": Settings(),
        "session": providers.Factory(session),
    }
    async with serving(Providing, provided=provided) as client:
        good, bad = await client.get("/blue"), await client.get("/none")

    assert good.json() == ["blue", "store", "/blue", "session", {"colour": "red"}]
    assert bad.status == 500
    assert seen == ["entered", "left", "entered", "rolled back"]


async def response_of(value: Any, **attributes: Any) -> HTTPAnswer:
    """Return the response of a view that returns this value."""

    async def get(self: HTTPView) -> Any:
        return value

    view = type("Answering", (HTTPView,), {"routes": ["/"], "get": get, **attributes})
    async with serving(view) as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("value", "attributes", "status", "body"),
    [
        (Order(id=1), {}, 200, b'{"id":1,"item":"tea"}'),
        (Point(1), {}, 200, b'{"x":1,"y":0}'),
        (Frame(1), {}, 200, b'{"id":1}'),
        ([Order(id=1)], {}, 200, b'[{"id":1,"item":"tea"}]'),
        ([Frame(1)], {}, 200, b'[{"id":1}]'),
        ({"a": Frame(1), "b": Order(id=1)}, {}, 200, b'{"a":{"id":1},"b":{"id":1,"item":"tea"}}'),
        ({"day": date(2026, 1, 31)}, {}, 200, b'{"day":"2026-01-31"}'),
        ("text", {}, 200, b'"text"'),
        (3, {}, 200, b"3"),
        ([], {}, 200, b"[]"),
        (None, {}, 204, b""),
        (None, {"status": 202}, 202, b""),
        ((None, 202), {}, 202, b""),
        ((Order(id=1), 201), {}, 201, b'{"id":1,"item":"tea"}'),
        ([1, 2], {}, 200, b"[1,2]"),
        ((Order(id=1), 204), {}, 204, b""),
        (Order(id=1), {"status": 205}, 205, b""),
        ("text", {"status": 304}, 304, b""),
        (Order(id=1), {"status": 201}, 201, b'{"id":1,"item":"tea"}'),
        (Order(id=1), {"status": {"get": 203}}, 203, b'{"id":1,"item":"tea"}'),
        (Order(id=1), {"status": {}}, 200, b'{"id":1,"item":"tea"}'),
    ],
)
async def test_a_response(value: Any, attributes: Any, status: int, body: bytes) -> None:
    """The value becomes JSON; the class, or a tuple, sets another status than 200."""
    answer = await response_of(value, **attributes)

    assert (answer.status, answer.body) == (status, body)
    assert answer.headers.get("Content-Type") == ("application/json" if body else None)


async def test_bytes_are_sent_unchanged() -> None:
    """They are not JSON, and have another content type."""
    answer = await response_of(b"\xff\x00")

    assert (answer.body, answer.headers["Content-Type"]) == (
        b"\xff\x00",
        "application/octet-stream",
    )


async def test_a_response_object_is_sent_unchanged() -> None:
    """With its status, headers and cookies; also without a parameter for the request."""
    response = web.Response(text="hello", status=201, headers={"X-Mine": "1"})
    response.set_cookie("theme", "dark")

    answer = await response_of(response)

    assert (answer.status, answer.text, answer.headers["X-Mine"]) == (201, "hello", "1")
    assert answer.headers["Set-Cookie"] == "theme=dark; Path=/"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_one_method_for_each_verb() -> None:
    """`OPTIONS` and `HEAD` may be methods as well; verbs may be missing."""
    recorder = Recorder()

    class Verbs(HTTPView):
        routes = ["/", "/again"]

        async def get(self) -> str:
            return "get"

        async def post(self) -> str:
            return "post"

        async def put(self) -> str:
            return "put"

        async def patch(self) -> str:
            return "patch"

        def delete(self) -> str:
            return "delete"

        async def head(self) -> web.Response:
            return web.Response(headers={"X-Mine": "head"})

        async def options(self) -> str:
            return "options"

    async with serving(Verbs, recorder=recorder) as client:
        verbs = ["get", "post", "put", "patch", "delete", "options"]
        answers = [await getattr(client, verb)("/again") for verb in verbs]
        head = await client.head("/")

    assert [answer.json() for answer in answers] == verbs
    assert head.headers["X-Mine"] == "head"
    methods = [getattr(each.delivery, "method", "") for each in recorder.settled]
    assert methods == [*(verb.upper() for verb in verbs), "HEAD"]


async def test_get_answers_head() -> None:
    """Without a `head`, the response has the headers but no body."""

    class Only(HTTPView):
        routes = ["/"]

        async def get(self) -> Order:
            return Order(id=1)

    async with serving(Only) as client:
        head = await client.head("/")

    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "21")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_handle_answers_its_methods(method: str) -> None:
    """`handle` answers the verbs in `methods`, on every route."""

    class Hello(HTTPView):
        routes = ["/", "/hello"]
        methods = ["get", "POST"]

        async def handle(self, request: web.Request) -> web.Response:
            return web.Response(body=f"Hello {request.method}")

    async with serving(Hello) as client:
        found = [await client.request(method, route) for route in Hello.routes]
        wrong = await client.put("/")

    assert [each.text for each in found] == [f"Hello {method}"] * 2
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, OPTIONS, POST")


async def test_the_statuses_of_handle() -> None:
    """They depend on the verb; a HEAD is a GET without a body."""

    class Shared(HTTPView):
        routes = ["/"]
        methods = ["GET", "POST", "PUT"]
        status = {"post": 201, "GET": 203}

        async def handle(self) -> str:
            return "done"

    async with serving(Shared) as client:
        answers = [await client.request(verb, "/") for verb in ("GET", "HEAD", "POST", "PUT")]

    assert [each.status for each in answers] == [203, 203, 201, 200]


async def test_the_request_and_the_body() -> None:
    """A method may take both, and may read the body again."""

    class Both(HTTPView):
        routes = ["/"]

        async def post(self, order: Order, request: web.Request) -> list[Any]:
            return [order.id, await request.text()]

    async with serving(Both) as client:
        answer = await client.post("/", json={"id": 1})

    assert answer.json() == [1, '{"id":1}']


async def test_records_for_observers() -> None:
    """One for each request, with the declared route, status and sizes."""
    recorder = Recorder()

    class Orders(HTTPView):
        routes = ["/orders/{order_id:[0-9]+}"]
        name = "orders"

        async def put(self, order_id: int, order: Order) -> Order:
            return order

    began = perf_counter()
    async with serving(Orders, recorder=recorder) as client:
        await client.put("/orders/7", json={"id": 1})
        await client.put("/orders/7", json={})
    took = perf_counter() - began

    good, bad = recorder.settled
    delivery: Any = good.delivery
    assert (good.consumer, good.source, good.action) == ("orders", "/orders/{order_id}", "ack")
    assert (delivery.method, delivery.status, delivery.body) == ("PUT", 200, Order(id=1))
    assert (delivery.request_size, delivery.response_size) == (8, 21)
    assert bad.action == "reject"
    assert 0 < good.seconds < took


def counted(method: Any) -> Any:
    """Decorate a method; the decorator sees the signature of the method."""

    @functools.wraps(method)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert list(inspect.signature(method).parameters) == ["self", "order_id"]
        return [await method(self, *args, **kwargs)]

    return wrapper


async def test_a_decorated_method() -> None:
    """It has the parameters of the wrapped method."""

    class Decorated(HTTPView):
        routes = ["/{order_id}"]

        @counted
        async def get(self, order_id: int) -> int:
            return order_id

    async with serving(Decorated) as client:
        assert (await client.get("/7")).json() == [7]


async def test_methods_that_are_not_async() -> None:
    """They run in threads, many at the same time."""
    arrived = threading.Barrier(8, timeout=5.0)

    class Blocking(HTTPView):
        routes = ["/"]

        def get(self) -> str:
            arrived.wait()
            return threading.current_thread().name

    async with serving(Blocking) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(8)))

    names = {answer.json() for answer in answers}
    assert len(names) == 8
    assert all(name.startswith("workerkit-Blocking-") for name in names)


async def test_hooks_are_called_once() -> None:
    """A view with several methods is one consumer."""
    called: list[str] = []

    class Hooked(HTTPView):
        routes = ["/"]

        async def get(self) -> None: ...

        async def put(self) -> None: ...

        async def on_start(self) -> None:
            called.append("start")

        async def on_stop(self) -> None:
            called.append("stop")

    async with serving(Hooked) as client:
        await client.get("/")
        assert called == ["start"]

    assert called == ["start", "stop"]


async def test_the_limit_of_a_body() -> None:
    """`max_body` of the class precedes the setting, also if the method reads the body."""

    class Upload(HTTPView):
        routes = ["/upload"]
        max_body = 100

        async def put(self, request: web.Request) -> int:
            return len(await request.read())

    class Other(HTTPView):
        routes = ["/other"]

        async def put(self, request: web.Request) -> int:
            return len(await request.read())

    async with serving(Upload, Other, max_body=10) as client:
        routes = ["/upload", "/other"]
        fitting = [await client.put("/upload", body=b"x" * 99), await client.put("/other")]
        larger = [await client.put(route, body=b"x" * 101) for route in routes]

    assert [each.status for each in (*fitting, *larger)] == [200, 200, 413, 413]


async def test_an_observer_that_raises() -> None:
    """The response is the same."""

    def failing(record: Any) -> None:
        raise KeyError("observer")

    recorder: Any = failing

    class Hello(HTTPView):
        routes = ["/"]

        async def get(self) -> str:
            return "hello"

    async with serving(Hello, recorder=recorder) as client:
        assert (await client.get("/")).json() == "hello"
