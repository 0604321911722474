"""The pages `/docs` and the root of the ops server, as a browser displays and runs them."""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urljoin
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.sync_api import Error, expect
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from tests.browsing import CLIPBOARD, Visit, card, in_background, run_curl, send
from tests.command import running, write_package
from tests.ports import free_port
from workerkit.http import page as docs

Visits = Callable[..., Visit]

CONSUMERS = '''
    from datetime import date
    from enum import Enum
    from typing import Annotated

    import asyncio
    from aiohttp import web
    from pydantic import BaseModel, Field

    from workerkit import AMQPConsumer, Destination, Header, HTTPView, PeriodicTask, RetryPolicy

    HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"

    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    class Line(BaseModel):
        item: Annotated[str, Field(min_length=1, max_length=50)]
        colour: Colour = Colour.RED

    class Order(BaseModel):
        """An order of a customer."""

        id: int
        customer: str = Field(examples=["Ada"], description=HOSTILE)
        due: date | None = None
        lines: list[Line]
        parent: "Order | None" = None

    class Orders(HTTPView):
        """Orders of customers."""

        routes = ["/orders"]
        security = {"post": ["token", "key"]}

        async def get(self, colours: list[Colour] = [], text: str = "") -> dict[str, object]:
            """List the orders."""
            names = [each.value for each in colours]
            return {"colours": names, "text": text, "big": 12345678901234567890}

        async def post(self, request: web.Request, order: Order) -> dict[str, object]:
            """Place an order."""
            names = {"Authorization", "X-Key"} & request.headers.keys()
            return {"order": order, "headers": {each: request.headers[each] for each in names}}

    class OneOrder(HTTPView):
        routes = ["/orders/{order_id}"]

        async def get(
            self, order_id: str, x_tenant: Annotated[str, Header] = "main"
        ) -> dict[str, str]:
            """Show one order."""
            return {"order_id": order_id, "tenant": x_tenant}

        async def delete(self, order_id: str) -> None:
            """Delete one order."""

    class Ticks(HTTPView):
        routes = ["/ticks"]
        timeout = None

        async def get(self, request: web.Request) -> web.StreamResponse:
            """Stream ticks without an end."""
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            while True:
                await response.write(b"data: tick\\n\\n")
                await asyncio.sleep(0.05)

    class Booking(AMQPConsumer):
        """Books orders."""

        queues = ["orders", HOSTILE + "{x}#"]
        retry = RetryPolicy(delays=(0, 5))
        publishes = {"booked": Order, Destination("order.{region}.booked", "shop"): Order}

        async def handle(self, order: Order) -> Line: ...

    class Report(PeriodicTask):
        every = 3600
        publishes = {"reports": str}

        async def handle(self) -> None: ...
'''
SCHEMES = {
    "token": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
}


@dataclass(frozen=True)
class Addresses:
    """The addresses of a running worker."""

    http: str
    ops: str


@asynccontextmanager
async def _worker(directory: Path) -> AsyncIterator[Addresses]:
    write_package(directory, consumers=CONSUMERS)
    http, ops = free_port(), free_port()
    variables: Any = {
        "WORKERKIT_HTTP__PORT": str(http),
        "WORKERKIT_HTTP__OPENAPI__TITLE": "Shop",
        "WORKERKIT_HTTP__OPENAPI__SECURITY_SCHEMES": json.dumps(SCHEMES),
        "WORKERKIT_OPS__ENABLED": "true",
        "WORKERKIT_OPS__CONSOLE": "off",
        "WORKERKIT_OPS__PORT": str(ops),
        "WORKERKIT_AMQP__DEFAULT__URL": "amqp://guest:secret@127.0.0.1:1/",
    }
    async with running("app", cwd=directory, **variables) as application:
        await application.says("listening")
        yield Addresses(f"http://127.0.0.1:{http}", f"http://127.0.0.1:{ops}")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A worker without a broker."""
    with in_background(_worker(tmp_path_factory.mktemp("worker"))) as addresses:
        yield addresses


@asynccontextmanager
async def _served(document: Mapping[str, Any]) -> AsyncIterator[str]:
    """Serve a page of any document, and a form that returns what it was sent."""

    async def receive(request: web.Request) -> web.Response:
        form = await request.post()
        sent: list[Any] = []
        for name, value in form.items():
            if isinstance(value, web.FileField):
                sent.append([name, [value.filename, value.file.read().decode()]])
            else:
                sent.append([name, value])
        return web.json_response(sent)

    application = web.Application()
    application.router.add_post("/form", receive)
    docs.add_routes(application, document)
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


ODD = """it's "$HOME" `id` \\ & | ; < > % ü 💥 {a} [b] @c"""

SEGMENT = "a/b?" + ODD.translate({ord("{"): None, ord("}"): None})  # aiohttp allows no braces.


def test_try_it_out(worker: Addresses, visit: Visits, tmp_path: Path) -> None:
    """A request with values of all places reaches the worker; as curl it gives the same answer."""
    page = visit(worker.http, **CLIPBOARD).open("/docs")

    orders = card(page, "Orders_get")
    orders.get_by_label("colours").fill("red\nblue")
    orders.get_by_label("text").fill(ODD)
    status, listed = send(orders)
    one = card(page, "OneOrder_get")
    one.get_by_label("order_id").fill(SEGMENT)
    one.get_by_label("X-Tenant").fill("it's \\ $HOME")
    _, found = send(one)

    assert re.fullmatch(r"200 OK · \d+ ms · \d+ bytes", status)
    assert json.loads(listed) == {
        "colours": ["red", "blue"],
        "text": ODD,
        "big": 12345678901234567890,
    }
    assert "\n  " in listed
    assert json.loads(found) == {"order_id": SEGMENT, "tenant": "it's \\ $HOME"}
    assert json.loads(run_curl(orders, tmp_path)) == json.loads(listed)
    assert json.loads(run_curl(one, tmp_path)) == json.loads(found)


def test_bodies_and_authorization(worker: Addresses, visit: Visits, tmp_path: Path) -> None:
    """A body is prefilled with a valid example; credentials are sent, and not stored."""
    page = visit(worker.http, **CLIPBOARD).open("/docs")
    page.get_by_role("button", name="Authorize").click()
    page.get_by_label("token").fill("it's secret")
    page.get_by_role("button", name="Done").click()

    orders = card(page, "Orders_post")
    status, first = send(orders)
    body = json.loads(orders.get_by_role("textbox", name="body").input_value())
    orders.get_by_role("textbox", name="body").fill(
        json.dumps({**body, "customer": ODD + "\n@"}, indent=1)
    )
    _, second = send(orders)
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")

    assert status.startswith("200 OK")
    assert body["customer"] == "Ada"
    assert json.loads(first)["headers"] == {"Authorization": "Bearer it's secret"}
    assert json.loads(second)["order"]["customer"] == ODD + "\n@"
    assert json.loads(run_curl(orders, tmp_path)) == json.loads(second)
    assert "secret" not in stored


def test_errors_and_empty_answers(worker: Addresses, visit: Visits) -> None:
    """An error is displayed with its problem, and an answer without a body as well."""
    opened = visit(worker.http)
    page = opened.open("/docs")

    orders = card(page, "Orders_post")
    orders.get_by_role("textbox", name="body").fill("{}")
    status, problem = send(orders)
    deleted, nothing = send(card(page, "OneOrder_delete"))

    assert status.startswith("422 ")
    assert json.loads(problem)["status"] == 422
    assert (deleted[:14], nothing) == ("204 No Content", "")
    # The browser itself reports a status of an error.
    opened.faults[:] = [each for each in opened.faults if "status of 422" not in each]


def test_a_stream_is_displayed_until_it_is_stopped(worker: Addresses, visit: Visits) -> None:
    """Events appear while the response goes on, and the user ends it."""
    page = visit(worker.http).open("/docs")

    ticks = card(page, "Ticks_get")
    ticks.get_by_role("button", name="Send").click()
    expect(ticks.locator("form pre").last).to_contain_text("data: tick\n\ndata: tick")
    ticks.get_by_role("button", name="Stop").click()

    expect(ticks.locator("form [role=status]")).to_contain_text("stopped")
    expect(ticks.get_by_role("button", name="Send")).to_be_enabled()


@pytest.mark.parametrize("kind", ["multipart/form-data", "application/x-www-form-urlencoded"])
def test_forms(kind: str, visit: Visits, tmp_path: Path) -> None:
    """A form has a field for each property, and one that takes a file sends it."""
    file = tmp_path / "it's a file.txt"
    file.write_text("content")
    properties: dict[str, Any] = {"name": {"type": "string"}, "count": {"type": "integer"}}
    if kind.startswith("multipart"):
        properties["file"] = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": ["name"], "properties": properties}
    document = _document({"/form": {"post": _operation("form", {kind: {"schema": schema}})}})

    with in_background(_served(document)) as url:
        form = card(visit(url, **CLIPBOARD).open("/docs"), "form")
        form.get_by_label("name").fill("@" + ODD)
        form.get_by_label("count").fill("3")
        if "file" in properties:
            form.get_by_label("file").set_input_files(file)
        _, sent = send(form)
        by_curl = run_curl(form, tmp_path)

    uploaded = [["file", [file.name, "content"]]] if "file" in properties else []
    assert json.loads(sent) == [["name", "@" + ODD], ["count", "3"], *uploaded]
    assert json.loads(by_curl) == json.loads(sent)


def test_search_and_links(worker: Addresses, visit: Visits) -> None:
    """The search filters operations, and each has an address that opens it."""
    page = visit(worker.http).open("/docs")
    shown = page.locator(".card:visible > summary > code")

    page.keyboard.press("/")
    page.keyboard.type("delete order")
    filtered = shown.all_inner_texts()
    counted = page.locator("#count").inner_text()
    page.get_by_label("Search").fill("")
    card(page, "OneOrder_get")
    page.wait_for_url("**#OneOrder_get")
    address = page.url
    page.goto("about:blank")
    page.goto(address)

    assert (filtered, counted) == (["/orders/{order_id}"], "1 found")
    assert address == f"{worker.http}/docs#OneOrder_get"
    expect(page.locator(".card[open]")).to_have_count(1)
    expect(page.locator("[id=OneOrder_get] form")).to_be_in_viewport()
    expect(page.locator("[id=OneOrder_get] > summary")).to_be_focused()


def test_keyboard(worker: Addresses, visit: Visits) -> None:
    """An operation is opened, filled and sent without a mouse."""
    page = visit(worker.http).open("/docs")

    page.locator("[id=OneOrder_get] > summary").focus()
    page.keyboard.press("Enter")
    page.get_by_label("order_id").focus()
    page.keyboard.type("7")
    page.keyboard.press("Enter")

    expect(page.locator("[id=OneOrder_get] form pre").last).to_contain_text('"order_id": "string7"')


# The contrast of each text with what is behind it, where it is too low (WCAG 2.2, 1.4.3: AA), and
# each control without a name.
BARRIERS = """() => {
  const found = [];
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!text || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
    const colours = [getComputedStyle(element).color, behind(element)];
    const [low, high] = colours.map(light).sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName} ${element.className} ${ratio.toFixed(2)}`);
  }
  for (const each of document.querySelectorAll("input, select, textarea, button")) {
    const text = each.tagName === "BUTTON" && each.textContent.trim();
    const named = text || each.labels?.length || each.getAttribute("aria-label");
    if (!named) found.push(each.outerHTML);
  }
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  if (new Set(ids).size !== ids.length) found.push("an id exists twice");
  return [...new Set(found)];
}"""
OPEN_ALL = """() => new Promise((resolve) => {
  const pass = (left) => {
    const closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
    if (!closed.length || !left) return resolve();
    requestAnimationFrame(() => requestAnimationFrame(() => pass(left - 1)));
  };
  pass(4);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", ["views", "messages", "index"])
def test_no_barriers(place: str, scheme: str, worker: Addresses, visit: Visits) -> None:
    """Contrast is enough, controls have names, and 360 pixels are enough, with all parts open."""
    url, path = {
        "views": (worker.http, "/docs"),
        "messages": (worker.ops, "/docs"),
        "index": (worker.ops, "/"),
    }[place]
    page = visit(url, color_scheme=scheme, viewport={"width": 360, "height": 800}).open(path)

    page.evaluate(OPEN_ALL)

    assert page.evaluate(BARRIERS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_mode(worker: Addresses, visit: Visits) -> None:
    """The theme is that of the system until the user chooses one, which is kept."""
    page = visit(worker.http, color_scheme="dark").open("/docs")
    background = "getComputedStyle(document.body).backgroundColor"

    of_system = page.evaluate(background)
    page.get_by_role("button", name="Theme").click()
    chosen = page.evaluate(background)
    page.reload()
    page.locator("main h1").wait_for()

    assert of_system == "rgb(17, 22, 29)"
    assert (chosen, page.evaluate(background)) == ("rgb(255, 255, 255)", "rgb(255, 255, 255)")


class Kind(Enum):
    """A kind."""

    ONE = "one"
    TWO = 2


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    friends: "list[Cat | Dog]"


class Anything(BaseModel):
    """One field for each kind of schema."""

    text: Annotated[str, Field(min_length=9, max_length=12)]
    short: Annotated[str, Field(max_length=3)]
    above: Annotated[int, Field(gt=10, multiple_of=7)]
    below: Annotated[float, Field(lt=-5)]
    between: Annotated[Decimal, Field(ge=2, le=3)]
    kind: Kind
    literal: Literal["a", 1]
    nothing: None
    maybe: int | None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pair: tuple[int, Cat]
    many: Annotated[list[Cat], Field(min_length=3)]
    names: dict[str, Cat]
    when: datetime
    day: date
    id: UUID
    address: IPv4Address | bool
    again: "Anything | None"
    plain: Any
    made: Annotated[str, Field(examples=["an example"])]


def test_examples_fit_their_schemas(visit: Visits) -> None:
    """What a form is filled with is valid."""
    _, definitions = models_json_schema(
        [(Anything, "validation"), (Dog, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    document = {**_document({}), "components": {"schemas": definitions["$defs"]}}

    with in_background(_served(document)) as url:
        page = visit(url).open("/docs")
        anything, dog = (
            page.evaluate("(name) => example({ $ref: '#/components/schemas/' + name })", name)
            for name in ("Anything", "Dog")
        )

    assert Anything.model_validate(anything).made == "an example"
    Dog.model_validate(dog)


HOSTILE = "</script><img src=x onerror=alert(1)><svg onload=alert(2)>`<b>`javascript:alert(3)"


def test_hostile_documents(visit: Visits) -> None:
    """No text of a document becomes an element or a link, and no schema stops the page."""
    recursive = {"type": "object", "properties": {"again": {"$ref": "#/components/schemas/Loop"}}}
    schemas: dict[str, Any] = {
        "Loop": recursive,
        "Itself": {"$ref": "#/components/schemas/Itself"},
        "Both": {"allOf": [{"$ref": "#/components/schemas/Both"}, {"$ref": "#/nowhere"}]},
        "Wide": {"anyOf": [{"$ref": f"#/components/schemas/Wide{n % 2 or ''}"} for n in range(60)]},
        "Wide1": {"anyOf": [{"$ref": "#/components/schemas/Wide"}, {"type": "null"}]},
        "Huge": {"type": "object", "properties": {f"p{n}": recursive for n in range(1_000)}},
        HOSTILE: {"type": "object", "description": HOSTILE, "properties": {HOSTILE: True}},
        "__proto__": {"enum": [HOSTILE, None, 1]},
        "Values": {"type": "string", "default": HOSTILE, "pattern": HOSTILE, "examples": [HOSTILE]},
        "Odd": {"type": 7, "properties": [], "required": "x", "enum": "y", "anyOf": "z"},
    }
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Loop"}}}
    operation = {
        **_operation("constructor", content),
        "summary": HOSTILE,
        "description": HOSTILE,
        "parameters": [{"name": HOSTILE, "in": "query", "schema": {"type": "string"}}],
    }
    document = _document(
        {"/form": {"post": operation}, "/" + HOSTILE: {"get": _operation("main", {})}}
    )
    document["info"] = {"title": HOSTILE, "version": HOSTILE, "description": HOSTILE}
    document["servers"] = [{"url": "javascript:alert(4)"}, {"url": "/"}]
    document["tags"] = [{"name": HOSTILE, "description": HOSTILE}]
    document["components"] = {"schemas": schemas}

    with in_background(_served(document)) as url:
        opened = visit(url)
        page = opened.open("/docs")
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.locator("main > section").last.wait_for()
        page.evaluate(OPEN_ALL)
        elements = page.evaluate("document.querySelectorAll('img, svg, iframe').length")
        links = page.evaluate("[...document.links].map((each) => each.protocol)")
        scripts = page.evaluate("document.scripts.length")
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = ''")
        opened.faults[:] = [each for each in opened.faults if "TrustedHTML" not in each]

    assert (elements, set(links), scripts) == (0, {"http:"}, 1)


def test_the_page_is_small_and_has_a_strict_policy(worker: Addresses, visit: Visits) -> None:
    """It has less than 44 KiB, and runs only its own script."""
    response = visit(worker.http).page.request.get(worker.http + "/docs")
    policy = response.headers["content-security-policy"]

    assert len(response.body()) <= 44 * 1024
    assert "unsafe" not in policy
    assert {"default-src 'none'", "connect-src 'self'"} <= set(policy.split("; "))


def test_messages(worker: Addresses, visit: Visits) -> None:
    """The ops server shows what is received and published, without credentials."""
    opened = visit(worker.ops)
    page = opened.open("/docs")

    booking = card(page, "Booking.orders")
    text = booking.inner_text()
    page.get_by_label("Search").fill("reports")
    found = page.locator(".card:visible > summary").all_inner_texts()

    for part in (
        "amqp://127.0.0.1:1",
        "orders.dlq",
        "0 s, 5 s",
        "An order of a customer.",
        "REPLY",
    ):
        assert part in text
    assert [each.split() for each in found] == [["SEND", "reports", "Report"]]
    assert "secret" not in page.request.get(worker.ops + "/asyncapi.json").text()


def test_index(worker: Addresses, visit: Visits) -> None:
    """The root of the ops server links to what exists: for browsers a page, for others JSON."""
    page = visit(worker.ops).open("/")

    links = [each.get_attribute("href") or "" for each in page.locator("main a").all()]
    answers = {each: page.request.get(urljoin(worker.ops, each)).status for each in links}
    as_json = page.request.get(worker.ops + "/", headers={"Accept": "application/json"}).json()

    # Without a broker the consumer is not ready.
    assert {each for each, status in answers.items() if status != 200} == {
        "/health/ready",
        "/health/startup",
    }
    assert {"/metrics", "/docs", "/debug/tasks", f"{worker.http}/docs"} <= set(links)
    assert (as_json["status"], list(as_json["links"])) == ("not ready", links)


def _document(paths: Mapping[str, Any]) -> dict[str, Any]:
    return {"openapi": "3.1.0", "info": {"title": "T", "version": "1"}, "paths": paths}


def _operation(id_: str, content: Mapping[str, Any]) -> dict[str, Any]:
    body = {"requestBody": {"content": content}} if content else {}
    return {"operationId": id_, "responses": {"200": {"description": "Done"}}, **body}
