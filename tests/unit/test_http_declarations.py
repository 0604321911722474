"""Faults of views: class, file and line, before any socket opens."""

import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest
from aiohttp import web
from dependency_injector import providers
from pydantic import BaseModel, Field

from tests.application import container_of, package_of
from tests.serving import NO_BROKER
from workerkit import AMQPConsumer, Cookie, Header, HTTPView, Runner, StartError, WorkerContainer
from workerkit.app.assembly import Assembly
from workerkit.http.view import HTTPOptions
from workerkit.transport import Declared


class Order(BaseModel):
    id: int


class Frame(msgspec.Struct):
    id: int


class Opaque:
    """A class that no request can contain."""


def assembled(*classes: type[Any], **settings: Any) -> Assembly:
    """Return the application of these classes."""
    return Runner(container_of(NO_BROKER, **settings), packages=[package_of(*classes)]).assemble()


def faults(*classes: type[Any], **settings: Any) -> list[str]:
    """Return the faults of these classes, without their positions."""
    with pytest.raises(StartError) as raised:
        assembled(*classes, **settings)
    found = [
        re.sub(r"\S*\.(\w+)( \([^)]*\))?", r"\1", each, count=1) for each in raised.value.faults
    ]
    return [each.removeprefix("view: ").removeprefix("View: ") for each in found]


def view(method: Any = None, called: str = "get", /, **attributes: Any) -> type[HTTPView]:
    """Return a view with one method."""
    given: dict[str, Any] = {"routes": ["/"], **attributes}
    class_name = str(attributes.get("name", "View"))
    return type(class_name, (HTTPView,), {**given, **({called: method} if method else {})})


async def fine(self: Any) -> None: ...


async def bare(self: Any, x) -> None: ...  # type: ignore[no-untyped-def]


async def opaque(self: Any, x: Opaque) -> None: ...


async def anything(self: Any, x: Any) -> None: ...


async def body(self: Any, order: Order) -> None: ...


async def two_bodies(self: Any, order: Order, other: Order) -> None: ...


async def variadic(self: Any, *values: int) -> None: ...


async def positional(self: Any, x: int, /) -> None: ...


async def model_header(self: Any, x: Annotated[Order, Header]) -> None: ...


async def list_cookie(self: Any, x: Annotated[list[int], Cookie]) -> None: ...


async def mixture(self: Any, x: Order | Frame | None = None) -> None: ...


async def struct_of_opaque(self: Any, x: dict[str, list[Frame | Order]] | None = None) -> None: ...


async def collection(self: Any, x: Collection[str] = ()) -> None: ...


async def list_path(self: Any, x: list[int]) -> None: ...


async def path(self: Any, x: int) -> None: ...


async def field(self: Any, x: int = Field(1, gt=0)) -> None: ...


async def without_self(x: int) -> None: ...


@pytest.mark.parametrize(
    ("class_", "fault"),
    [
        (view(), "needs a method `handle`, or one for a verb: get, post, put, patch, delete, hea"),
        (view(fine, handle=fine), "has both handle and get; keep one form"),
        (view(bare), "bare: parameter 'x' needs a type annotation"),
        (view(opaque), "opaque: parameter 'x' has no provider of its name or of type Opaque; the"),
        (view(anything), "anything: parameter 'x' has no provider of its name or of type Any"),
        (view(body), "body: parameter 'order' is read from the body, and a GET has none; mark it"),
        (view(two_bodies, "post"), "two_bodies: parameter 'other' is read from the body, and so"),
        (view(variadic), "variadic: parameter 'values' cannot be filled; name each parameter"),
        (view(positional), "positional: parameter 'x' must not be positional-only"),
        (view(model_header), "model_header: parameter 'x' has a type that cannot be read from a h"),
        (view(mixture, "put"), "mixture: parameter 'x' has a type that cannot be read from a r"),
        (
            view(struct_of_opaque, "put"),
            "struct_of_opaque: parameter 'x' has a type that cannot be",
        ),
        (view(collection), "collection: parameter 'x' has a type that cannot be read from a re"),
        (view(list_cookie), "list_cookie: parameter 'x' is a list, and a cookie parameter has on"),
        (view(list_path, routes=["/{x}"]), "list_path: parameter 'x' is a list, and a path par"),
        (view(path, routes=["/{x}", "/"]), "path: parameter 'x' needs a default: not every rou"),
        (view(field), "field: parameter 'x' has Field(...) as its default: write Annotated[int, F"),
        (view(staticmethod(without_self)), "without_self: is a staticmethod; write a method, wit"),
        (view(classmethod(path)), "path: is a classmethod; write a method, with self first"),
        (view(fine, routes=["orders"]), "route 'orders': a route has to begin with a slash"),
        (view(fine, routes=["/{x"]), "route '/{x': Invalid path '/{x'"),
        (view(fine, routes=["/", "/"]), "route '/' is listed twice in routes"),
        (
            view(fine, routes="/"),
            "option 'routes' is '/': write a list, such as ['/']",
        ),
        (view(fine, routes=[]), "option 'routes' is []: should have at least 1 item"),
        (type("View", (HTTPView,), {"get": fine}), "option 'routes' is missing: the class has"),
        (view(fine, methods=["GET"]), "methods goes with handle; here each verb has its own meth"),
        (view(fine, "handle", methods=["FETCH"]), "option 'methods' is ['FETCH']: 'FETCH' is not"),
        (view(fine, "handle", methods="GET"), "option 'methods' is 'GET': write a list, such as ["),
        (view(fine, concurrency=3), "a view has no concurrency: requests are not limited"),
        (view(fine, status=99), "status is 99: write 200 to 399"),
        (view(fine, status="201"), "status is '201': write 200 to 399"),
        (view(fine, status={"fetch": 201}), "status has 'fetch', but the view handles GET"),
        (
            view(fine, "handle", methods=["put", "GET"], status={"get": 201, "post": 201}),
            "status has 'post', but the view handles PUT, GET",
        ),
        (view(fine, status={"get": 404}), "status is 404: write 200 to 399"),
        (view(fine, max_body=0), "option 'max_body' is 0: should be greater than 0"),
        (view(fine, timeout=0), "option 'timeout' is 0: should be greater than 0"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_invalid_view(class_: type[HTTPView], fault: str) -> None:
    """Each fault is reported at the start, with what is expected."""
    assert [each[: len(fault)] for each in faults(class_)] == [fault]


def test_a_fault_names_class_file_and_line() -> None:
    """As for every other consumer."""
    with pytest.raises(StartError) as raised:
        assembled(view(bare))

    assert re.match(r"\S+bare \(test_http_declarations.py:\d+\): parameter", str(raised.value))


def test_all_faults_are_reported_together() -> None:
    """Also those of several methods of one class."""
    found = faults(view(bare, post=opaque, status=7), view(fine, routes=["x"], name="Other"))

    assert [each.split(":")[0] for each in found] == ["bare", "opaque", "Other"]


@pytest.mark.parametrize(
    ("first", "second", "claim"),
    [
        (["/orders/{order_id}"], ["/x", "/orders/{id}"], "GET /orders/{}"),
        (["/orders/{order_id:[0-9]+}"], ["/orders/{id:[0-9]+}"], "GET /orders/{:[0-9]+}"),
        (["/"], ["/"], "GET /"),
    ],
)
def test_two_views_of_one_route(first: list[str], second: list[str], claim: str) -> None:
    """The fault names both classes; names of path parameters make no difference."""

    class One(HTTPView):
        routes = first

        async def get(self) -> None: ...

    class Two(HTTPView):
        routes = second
        methods = ["POST", "GET"]

        async def handle(self) -> None: ...

    with pytest.raises(StartError) as raised:
        assembled(One, Two)

    [fault] = raised.value.faults
    assert "Two" in fault
    assert fault.endswith(f" both answer {claim}")
    assert fault.index("Two") < fault.index("One")


def test_views_that_share_a_route() -> None:
    """Different verbs, or another regular expression, are no conflict."""
    first = view(fine, routes=["/x"], name="first")
    second = view(fine, "post", routes=["/x"], name="second")
    third = view(fine, routes=["/{name}"], name="third")

    assert len(assembled(first, second, third).declared) == 3


def declared(class_: type[HTTPView], **settings: Any) -> tuple[Declared, HTTPOptions]:
    [found] = assembled(class_, **settings).declared
    assert isinstance(found.options, HTTPOptions)
    return found, found.options


def test_the_options_of_a_view() -> None:
    """No concurrency, and a timeout of a minute."""
    _, options = declared(view(fine))

    assert options.timeout == 60.0
    assert sorted(options.sources) == [
        *("max_body", "methods", "name", "publishes", "routes", "timeout")
    ]


def test_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any option of a view can be set there, and the method follows the routes."""
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__ORDER_VIEW__TIMEOUT", "5")
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__ORDER_VIEW__ROUTES", "/a/{x},/b/{x}")
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__ORDER_VIEW__MAX_BODY", "10")

    found, options = declared(view(path, name="OrderView"))

    signature: Any = found.signatures["get"]
    assert (options.timeout, options.max_body) == (5.0, 10)
    assert options.routes == ("/a/{x}", "/b/{x}")
    assert [(each.part, each.required) for each in signature.parameters] == [("path", True)]


def test_concurrency_is_not_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who sets it gets a fault."""
    monkeypatch.setenv("TESTS_ONLY_CONSUMERS__ORDER_VIEW__CONCURRENCY", "5")

    [fault] = faults(view(fine, name="OrderView"))

    assert "CONCURRENCY: no option of that name" in fault


def test_settings_are_never_read_from_a_body() -> None:
    """A model of settings is provided by the container, although it is a model."""

    class View(HTTPView):
        routes = ["/"]

        async def post(self, settings: WorkerContainer.settings.cls) -> None: ...  # type: ignore[name-defined]

    found, _ = declared(View)
    signature: Any = found.signatures["post"]

    assert (signature.body, signature.provides) == (None, True)


def test_defaults_and_the_container() -> None:
    """A default replaces a missing provider of a class, but not a value of the client."""

    class View(HTTPView):
        routes = ["/"]

        async def get(
            self,
            opaque: Opaque | None = None,
            several: list[Opaque] | None = None,
            clock: Callable[[], Frame] | None = None,
            secret: bytes = b"",
        ) -> None: ...

    container = container_of(NO_BROKER)
    container.set_provider("secret", providers.Object(b"s"))
    [found] = Runner(container, packages=[package_of(View)]).assemble().declared
    signature: Any = found.signatures["get"]

    assert (signature.parameters, signature.provides) == ([], True)


def test_a_view_and_other_consumers() -> None:
    """Each kind has its own transport."""

    class Queue(AMQPConsumer):
        queues = ["q"]

        async def handle(self, body: bytes, request: web.Request) -> None: ...

    container = container_of(NO_BROKER)
    container.set_provider("request", providers.Object(None))
    package = package_of(Queue, view(fine))

    transports = Runner(container, packages=[package]).assemble().transports

    assert sorted(transport.kind for transport, _ in transports) == ["amqp", "http"]


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("returned", "fault"),
    [
        (tuple[int, str], "returns tuple[int, str]: write tuple[body, int], or a list"),
        (tuple[int, ...], "returns tuple[int, ...]: write tuple[body, int], or a list"),
        (tuple[Order, int, dict[str, str]], "returns tuple[Order, int, dict[str, str]]: write"),
        (tuple[Order], "returns tuple[Order]: write tuple[body, int], or a list"),
        (tuple[Order, bool], "returns tuple[Order, bool]: write"),
        (tuple[Order, Literal[True]], "returns tuple[Order, Literal[True]]: write"),
        (tuple[Order, Literal[42]], "returns tuple[Order, Literal[42]]: 42 is not a status"),
        (Order | tuple[Order, str], "returns tuple[Order, str]: write tuple[body, int]"),
        (Annotated[tuple[Order, str], 1], "returns tuple[Order, str]: write tuple[body, int]"),
    ],
)
def test_fh7_an_invalid_tuple(returned: Any, fault: str) -> None:
    """FH7: it is a fault of the class."""

    async def get(self: Any) -> None: ...

    get.__annotations__["return"] = returned
    [found] = faults(view(get))
    assert fault in found


@pytest.mark.parametrize(
    "returned",
    [
        tuple[Order, int],
        tuple[Order, Literal[202]],
        tuple[Order, Literal[202, 203]] | None,
        tuple[tuple[int, int], int],
        Point,
        list[tuple[int, int]],
        tuple,
        Any,
    ],
)
def test_fh7_a_valid_tuple(returned: Any) -> None:
    """FH7: a body with its status, a named tuple, and a tuple in a list."""

    async def get(self: Any) -> None: ...

    get.__annotations__["return"] = returned
    assert len(assembled(view(get)).declared) == 1
