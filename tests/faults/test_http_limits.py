"""Row FH1: a body with many faults takes little time, and its response and its record are short."""

import asyncio
import gzip
import json
import logging
import time
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any

import pytest
from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from yarl import URL

from tests.serving import everything, first_answer, serving
from workerkit import Header, HTTPView
from workerkit.codec import decoder
from workerkit.errors import InvalidBody
from workerkit.logs import JSONFormatter

SIZE = 256 * 1024


class Line(BaseModel):
    id: int
    name: str


class Order(BaseModel):
    lines: list[Line]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: int


class Tree(BaseModel):
    inner: "Tree | None" = None
    id: int


def _echoed(text: str) -> str:
    raise ValueError(f"nothing is called {text}")


class Lists(HTTPView):
    routes = ["/lists"]

    async def post(self, lines: list[Line]) -> None:
        """Take them."""


class Orders(HTTPView):
    routes = ["/orders"]

    async def post(self, order: Order) -> None:
        """Take it."""


class Dicts(HTTPView):
    routes = ["/dicts"]

    async def post(self, lines: dict[str, Line]) -> None:
        """Take them."""


class Extras(HTTPView):
    routes = ["/extras"]

    async def post(self, strict: Strict) -> None:
        """Take it."""


class Trees(HTTPView):
    routes = ["/trees"]

    async def post(self, tree: Tree) -> None:
        """Take it."""


class Names(HTTPView):
    routes = ["/names"]

    async def post(
        self,
        name: dict[str, Annotated[str, AfterValidator(_echoed)]],
        q: list[Annotated[str, AfterValidator(_echoed)]] = [],  # noqa: B006
        x_key: Annotated[list[int], Header] = [],  # noqa: B006
    ) -> None:
        """Take it."""


def repeated(item: bytes, before: bytes = b"[", after: bytes = b"]") -> bytes:
    """Return a large JSON array."""
    count = (SIZE - len(before) - len(after)) // (len(item) + 1)
    return before + b",".join([item] * count) + after


def keyed(value: bytes) -> bytes:
    """Return a large JSON object with many keys."""
    return b"{" + b",".join(b'"%06x":%b' % (n, value) for n in range(SIZE // 14)) + b"}"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/lists", repeated(b"{}"), 2),
        ("/lists", repeated(b"1"), 1),
        ("/orders", repeated(b"{}", b'{"lines":[', b"]}"), 2),
        ("/dicts", keyed(b"1"), 5),
        ("/extras", keyed(b"1"), 5),
        ("/lists", b"[" + b",".join([b"1"] * 900) + b"]", 5),
        ("/names", json.dumps({"a": "x" * SIZE})[:-20].encode() + b'"}', 1),
    ],
)
async def test_fh1_a_body_with_many_faults(
    caplog: pytest.LogCaptureFixture, path: str, body: bytes, named: int
) -> None:
    """FH1: the first faults are named, the others are counted, in the response and in the log."""
    caplog.set_level(logging.DEBUG)
    views = (Lists, Orders, Dicts, Extras, Names)
    async with serving(*views) as client:
        answer = await client.post(path, body=body, headers={"Content-Type": "application/json"})

    found = answer.json()
    assert answer.status == 422
    # Within models, old versions of pydantic name the first five faults.
    assert len(found["errors"]) in ((named, 5) if path == "/orders" else (named,))
    assert len(answer.body) < 16_384
    [record] = [each for each in caplog.records if each.message == "request refused"]
    assert record.levelno == logging.INFO
    assert len(JSONFormatter().format(record)) < 16_384
    if named != 1 or path == "/lists":
        assert found["detail"].count(" more") == 1
        assert vars(record)["error"].count(" more") == 1


async def test_fh1_long_values_in_faults() -> None:
    """FH1: a value that a validator of the user repeats is cut."""
    async with serving(Names) as client:
        answer = await client.post(
            "/names?q=" + "y" * 7_000,
            json={"a": "b"},
            headers={"X-Key": ",".join(["z"] * 3_000)},
        )

    assert answer.status == 422
    assert {each["in"] for each in answer.json()["errors"]} == {"query", "header", "body"}
    assert all(len(each["detail"]) < 1_200 for each in answer.json()["errors"])


async def test_fh1_a_deeply_nested_fault() -> None:
    """FH1: its position is named, and has a limited length."""
    body = b'{"inner":' * 180 + b"1" + b"}" * 180
    async with serving(Trees) as client:
        answer = await client.post(
            "/trees", body=body, headers={"Content-Type": "application/json"}
        )

    assert answer.status in (400, 422)
    assert len(answer.body) < 16_384


def test_fh1_the_time_for_many_faults() -> None:
    """FH1: naming the faults of a large body takes a few times as long as parsing it."""
    body = b"[" + b",".join([b"{}"] * 80_000) + b"]"
    decode, validate = decoder(list[Line]), TypeAdapter(list[Line]).validate_json
    with pytest.raises(InvalidBody):
        decode(body)

    def took(read: Any, error: type[Exception]) -> float:
        began = time.process_time()
        with pytest.raises(error):
            read(body)
        return time.process_time() - began

    ours = min(took(decode, InvalidBody) for _ in range(3))
    assert ours < 3 * min(took(validate, ValidationError) for _ in range(3))


class Files(HTTPView):
    routes = ["/files"]

    async def post(self, request: web.Request) -> int:
        """Read a form."""
        return len(await request.post())


async def test_fh1_a_form_of_too_many_fields_is_a_problem() -> None:
    """aiohttp's limit is reported like the limit of the size."""
    async with serving(Files) as client:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await client.post("/files", body=b"a=1&" * 2_000, headers=headers)

    assert answer.status == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"] == "the form has too many fields"


async def test_fh3_the_rest_of_a_compressed_body_is_not_decompressed() -> None:
    """Of a small body that decompresses to a large one, only a few megabytes are read."""
    asked: list[web.Request] = []

    class Deaf(HTTPView):
        routes = ["/deaf"]

        async def post(self, request: web.Request) -> str:
            asked.append(request)
            return "answered"

    packed = gzip.compress(bytes(1 << 20)) * 256
    head = b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    async with serving(Deaf) as client:
        with suppress(ConnectionResetError):  # It is closed while a part of the body is not read.
            await everything(client, head % len(packed) + packed)

    assert len(asked) == 1
    assert asked[0].content.total_bytes < 32 << 20


async def test_fh3_answered_requests_with_half_a_body_count_as_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their connections are closed for new ones while the rest of the body is due."""
    monkeypatch.setattr("workerkit.http.server.LINGERING", 60.0)
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    async with serving(Lists, max_connections=3) as client, AsyncExitStack() as stack:
        url = URL(client.url)
        for _ in range(3):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            stack.callback(writer.close)
            writer.write(head)
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 404 ")
        answer = await first_answer(client, b"GET /lists HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 405 ")
