"""`etag = True`: a client that has the current representation gets a 304."""

from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import validate
from pydantic import BaseModel

from tests.application import Recorder, container_of, package_of
from tests.serving import NO_BROKER, serving
from workerkit import DeclarationError, HTTPView, Reject, Runner
from workerkit.http.openapi import document


class Item(BaseModel):
    id: int = 1


class Items(HTTPView):
    routes = ["/items"]
    etag = True

    async def get(self, id: int = 1) -> Item | None:
        if id < 0:
            raise Reject("negative")
        return Item(id=id) if id else None

    async def put(self, item: Item) -> Item:
        return item


class Raw(HTTPView):
    routes = ["/raw"]
    etag = True

    async def get(self) -> web.Response:
        return web.Response(text="x")


async def test_a_tag() -> None:
    """It depends on the body alone; HEAD has the same."""
    async with serving(Items) as client:
        first = await client.get("/items")
        again = await client.get("/items")
        other = await client.get("/items", query={"id": "2"})
        head = await client.head("/items")

    tags = [each.headers["ETag"] for each in (first, again, other, head)]
    assert tags[0] == tags[1] == tags[3] != tags[2]
    assert tags[0].startswith('"')
    assert head.body == b""


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ('"a", W/"b", {}', 304),
        ("*", 304),
        ('"a"', 200),
        ("", 200),
        ('"a{}"', 200),
        ("malformed", 200),
        ('"' * 5000, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_if_none_match(method: str, known: str, status: int) -> None:
    """Lists, `*` and weak tags count; a 304 has no body, and the tag again."""
    recorder = Recorder()
    async with serving(Items, recorder=recorder) as client:
        tag = (await client.get("/items")).headers["ETag"]
        headers = {"If-None-Match": known.replace("{}", tag)}
        answer = await client.request(method, "/items", headers=headers)
        next_one = await client.get("/items")

    assert (answer.status, answer.headers["ETag"]) == (status, tag)
    assert (answer.body == b"") == (status == 304 or method == "HEAD")
    assert "Content-Type" not in answer.headers or status == 200
    assert next_one.status == 200
    deliveries: list[Any] = [each.delivery for each in recorder.settled]
    assert [each.status for each in deliveries] == [200, status, 200]
    assert recorder.actions == ["ack"] * 3


async def test_responses_without_a_tag() -> None:
    """Errors, responses without a body, other verbs, and responses that the view creates."""
    everything = {"If-None-Match": "*"}
    async with serving(Items, Raw) as client:
        answers = [
            await client.get("/items", query={"id": "-1"}, headers=everything),
            await client.get("/items", query={"id": "x"}, headers=everything),
            await client.get("/items", query={"id": "0"}, headers=everything),
            await client.put("/items", json=Item(), headers=everything),
            await client.get("/raw", headers=everything),
        ]

    assert [each.status for each in answers] == [422, 422, 204, 200, 200]
    assert not any("ETag" in each.headers for each in answers)


def test_the_document() -> None:
    """It has the header, the parameter, and the 304 of the GET."""
    assembly = Runner(container_of(NO_BROKER), packages=[package_of(Items)]).assemble()
    made = document(assembly.declared)
    validate(made)

    operations = made["paths"]["/items"]
    get = operations["get"]
    assert [each["name"] for each in get["parameters"]] == ["id", "If-None-Match"]
    assert set(get["responses"]) >= {"200", "204", "304", "422"}
    assert "ETag" in get["responses"]["200"]["headers"]
    assert "304" not in operations["put"]["responses"]


def test_another_value() -> None:
    """It is a switch."""

    class View(HTTPView):
        routes = ["/"]
        etag = "weak"  # type: ignore[assignment]

        async def get(self) -> None: ...

    with pytest.raises(DeclarationError, match="etag has to be True or False"):
        Runner(container_of(NO_BROKER), packages=[package_of(View)]).assemble()
