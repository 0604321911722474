"""The OpenAPI document: it is valid, and corresponds to the signatures."""

from dataclasses import dataclass
from enum import Enum
from inspect import Parameter
from typing import Annotated, Any, Literal

import msgspec
import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from tests.application import container_of, package_of
from tests.serving import NO_BROKER, serving
from workerkit import Cookie, Header, HTTPView, Runner
from workerkit.http.openapi import document


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    item: str
    colour: Colour = Colour.RED


class Order(BaseModel):
    id: int
    lines: list[Line] = []


class Tree(BaseModel):
    children: list["Tree"] = []


@dataclass
class Point:
    x: int


class Frame(msgspec.Struct):
    id: int
    point: str = ""


def described(*views: type[HTTPView]) -> dict[str, Any]:
    """Return the document of these views after a validation."""
    runner = Runner(container_of(NO_BROKER), packages=[package_of(*views)])
    made = document(runner.assemble().declared)
    assert not list(OpenAPIV31SpecValidator(made).iter_errors())
    return made


def responses_of(returns: Any, **attributes: Any) -> dict[str, Any]:
    """Return the responses of a view with this return annotation, without the problems."""

    async def post(self: HTTPView) -> Any: ...

    post.__annotations__["return"] = returns
    view = type("View", (HTTPView,), {"routes": ["/"], "post": post, **attributes})
    found: dict[str, Any] = described(view)["paths"]["/"]["post"]["responses"]
    return {
        status: each
        for status, each in found.items()
        if "application/problem+json" not in each.get("content", {}) and status != "4XX"
    }


def schemas_of(returns: Any, **attributes: Any) -> dict[str, Any]:
    """Return the schemas of the responses of a view with this return annotation."""
    media = {
        status: each.get("content", {})
        for status, each in responses_of(returns, **attributes).items()
    }
    return {
        status: each.get("application/json", {}).get("schema") for status, each in media.items()
    }


def test_an_operation() -> None:
    """It has docstrings, parameters with defaults and schemas, the body, and the responses."""

    class OrderView(HTTPView):
        """Orders.

        All of them.
        """

        routes = ["/shops/{shop:[a-z]+}/orders/{order_id}"]

        async def put(
            self,
            shop: str,
            order_id: int,
            order: Order,
            x_token: Annotated[str, Header],
            colours: list[Colour],
            verbose: bool = False,
            sid: Annotated[str | None, Cookie] = None,
        ) -> Order:
            """Change an order.

            Or make it.
            """
            return order

    made = described(OrderView)

    [path] = made["paths"]
    operation = made["paths"][path]["put"]
    assert path == "/shops/{shop}/orders/{order_id}"
    assert (operation["summary"], operation["description"]) == ("Change an order.", "Or make it.")
    assert (operation["operationId"], operation["tags"]) == ("OrderView_put", ["OrderView"])
    assert made["tags"] == [{"name": "OrderView", "description": "Orders.\n\nAll of them."}]
    parameters = {each.pop("name"): each for each in operation["parameters"]}
    assert parameters["shop"]["schema"] == {"type": "string", "pattern": "^(?:[a-z]+)$"}
    assert parameters["order_id"] == {"in": "path", "required": True, "schema": {"type": "integer"}}
    assert parameters["x-token"]["in"] == "header"
    assert parameters["colours"]["schema"]["items"] == {"$ref": "#/components/schemas/Colour"}
    assert parameters["verbose"]["schema"] == {"type": "boolean", "default": False}
    assert (parameters["sid"]["in"], parameters["sid"]["required"]) == ("cookie", False)
    body = operation["requestBody"]
    assert body["required"]
    schema = {"$ref": "#/components/schemas/Order"}
    assert body["content"] == {"application/json": {"schema": schema}}
    assert sorted(operation["responses"]) == ["200", "400", "408", "413", "415", "422", "default"]
    assert sorted(made["components"]["schemas"]) == ["Colour", "Line", "Order", "problem-json"]


@pytest.mark.parametrize(
    ("returns", "attributes", "expected"),
    [
        (Point, {}, {"200": {"$ref": "#/components/schemas/Point"}}),
        (Tree, {}, {"200": {"$ref": "#/components/schemas/Tree"}}),
        (Frame, {}, {"200": {"$ref": "#/components/schemas/Frame"}}),
        (
            list[Frame],
            {},
            {"200": {"type": "array", "items": {"$ref": "#/components/schemas/Frame"}}},
        ),
        (
            tuple[dict[str, Frame] | None, Literal[201]],
            {},
            {
                "201": {
                    "type": "object",
                    "additionalProperties": {"$ref": "#/components/schemas/Frame"},
                }
            },
        ),
        (Frame | Order, {}, {"200": None, "default": None}),
        (list[int], {}, {"200": {"type": "array", "items": {"type": "integer"}}}),
        (str, {}, {"200": {"type": "string"}}),
        (None, {}, {"204": None}),
        (None, {"status": 202}, {"202": None}),
        (int, {"status": {"post": 201}}, {"201": {"type": "integer"}}),
        (int | None, {}, {"200": {"type": "integer"}, "204": None}),
        (int | str, {}, {"200": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}),
        (
            tuple[int, Literal[201, 202]],
            {},
            {"201": {"type": "integer"}, "202": {"type": "integer"}},
        ),
        (tuple[int, int], {}, {"2XX": {"type": "integer"}}),
        (tuple[None, Literal[202]] | int, {}, {"202": None, "200": {"type": "integer"}}),
        (web.Response, {}, {"default": None}),
        (Any, {}, {"default": None}),
        (int | web.Response, {}, {"200": {"type": "integer"}, "default": None}),
    ],
)
def test_responses(returns: Any, attributes: dict[str, Any], expected: dict[str, Any]) -> None:
    """They are those of the annotation and the class; without an annotation any is allowed."""
    assert schemas_of(returns, **attributes) == expected


@pytest.mark.parametrize(
    ("returns", "attributes", "expected"),
    [
        (bytes, {}, {"200": ["application/octet-stream"]}),
        (Annotated[bytearray, "raw"] | None, {}, {"200": ["application/octet-stream"], "204": []}),
        (
            tuple[bytes, Literal[201]] | Order,
            {},
            {"201": ["application/octet-stream"], "200": ["application/json"]},
        ),
        (bytes | str, {}, {"200": ["application/octet-stream", "application/json"]}),
        (str, {}, {"200": ["application/json"]}),
        (Order, {"status": 204}, {"204": []}),
        (tuple[Order, Literal[205, 304]], {}, {"205": [], "304": []}),
    ],
)
def test_content_types(returns: Any, attributes: dict[str, Any], expected: dict[str, Any]) -> None:
    """Text is JSON, bytes are not, and some statuses have no body."""
    found = responses_of(returns, **attributes)

    assert {status: list(each.get("content", {})) for status, each in found.items()} == expected


@pytest.mark.parametrize("returns", [web.Response, web.StreamResponse, Parameter.empty, Any])
def test_problems_of_a_view_with_any_response(returns: Any) -> None:
    """The responses of workerkit itself are documented."""

    async def post(self: HTTPView, n: int, order: Order) -> Any: ...

    post.__annotations__["return"] = returns
    if returns is Parameter.empty:
        del post.__annotations__["return"]
    made = described(type("View", (HTTPView,), {"routes": ["/"], "post": post}))

    found = made["paths"]["/"]["post"]["responses"]
    problems = [
        status for status in found if "application/problem+json" in found[status].get("content", {})
    ]
    assert problems == ["400", "408", "413", "415", "422"]
    assert found["default"] == {"description": "Any other response of the view"}


def test_the_statuses_of_handle() -> None:
    """Each verb has its own."""

    class View(HTTPView):
        routes = ["/"]
        methods = ["GET", "POST"]
        status = {"post": 201}

        async def handle(self) -> int:
            return 1

    path = described(View)["paths"]["/"]

    assert [next(iter(path[verb]["responses"])) for verb in ("get", "post")] == ["200", "201"]


def test_a_struct_as_a_body() -> None:
    """Its schema comes from msgspec."""

    class View(HTTPView):
        routes = ["/", "/again"]

        async def post(self, frame: Frame) -> Order:
            return Order(id=frame.id)

    made = described(View)

    assert made["components"]["schemas"]["Frame"]["required"] == ["id"]
    ids = [path["post"]["operationId"] for path in made["paths"].values()]
    assert ids == ["View_post", "View_post_2"]


def test_paths_that_differ_only_in_names() -> None:
    """They are one path of the document, with the names of the first one."""

    class One(HTTPView):
        routes = ["/x/{id}/{part:[a-z]+}"]

        async def get(self, id: int) -> int:
            return id

    class Two(HTTPView):
        routes = ["/x/{name}/{id:[0-9]+}"]

        async def put(self, name: str, id: int) -> None:
            """Nothing."""

    [[path, item]] = described(One, Two)["paths"].items()

    assert path == "/x/{id}/{part}"
    parameters = {verb: item[verb]["parameters"] for verb in ("get", "put")}
    assert [each["name"] for each in parameters["get"]] == ["id", "part"]
    assert [(each["name"], each["schema"]) for each in parameters["put"]] == [
        ("id", {"type": "string"}),
        ("part", {"type": "integer"}),
    ]


def test_paths_that_differ_only_in_patterns() -> None:
    """OpenAPI cannot have both, so the first one mentions the second."""

    class Numbers(HTTPView):
        routes = ["/y/{id:[0-9]+}"]

        async def get(self, id: int) -> int:
            """Find by number.

            Quickly.
            """
            return id

    class Words(HTTPView):
        routes = ["/y/{word:[a-z]+}", "/y/{word:[A-Z]+}"]

        async def get(self, word: str) -> str:
            """Find by word."""
            return word

        async def delete(self, word: str) -> None: ...

    [[path, item]] = described(Numbers, Words)["paths"].items()

    assert (path, list(item)) == ("/y/{id}", ["get", "delete"])
    assert item["get"]["operationId"] == "Numbers_get"
    assert item["get"]["description"] == (
        "Quickly.\n\n"
        "A path that matches `/y/{word:[a-z]+}` is handled by Words_get: Find by word.\n\n"
        "A path that matches `/y/{word:[A-Z]+}` is handled by Words_get_2: Find by word."
    )
    assert item["delete"]["parameters"][0]["name"] == "id"


def test_a_view_that_takes_the_request() -> None:
    """Only its path is known."""

    class Raw(HTTPView):
        """Says hello."""

        routes = ["/{name}/{rest:.*}"]
        methods = ["GET", "POST"]

        async def handle(self, request: web.Request) -> web.StreamResponse:
            return web.Response()

    path = described(Raw)["paths"]["/{name}/{rest}"]

    assert sorted(path) == ["get", "post"]
    assert path["get"]["summary"] == "Says hello."
    assert [each["name"] for each in path["get"]["parameters"]] == ["name", "rest"]


async def test_the_document_is_served() -> None:
    """Also a page that needs no other server."""

    class View(HTTPView):
        routes = ["/"]

        async def get(self) -> None: ...

    async with serving(View) as client:
        found, page = await client.get("/openapi.json"), await client.get("/docs")

    assert found.json()["openapi"] == "3.1.0"
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "://" not in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


async def test_the_document_can_be_disabled() -> None:
    """Neither the document nor the page is served."""

    class View(HTTPView):
        routes = ["/"]

        async def get(self) -> None: ...

    async with serving(View, openapi=False) as client:
        found = [await client.get("/openapi.json"), await client.get("/docs")]

    assert [each.status for each in found] == [404, 404]


async def test_a_view_with_the_same_route() -> None:
    """The view of the user is served."""

    class Docs(HTTPView):
        routes = ["/docs"]

        async def get(self) -> str:
            return "mine"

    async with serving(Docs) as client:
        assert (await client.get("/docs")).json() == "mine"
