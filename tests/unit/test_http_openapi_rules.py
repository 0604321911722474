"""The OpenAPI document follows the recommended rules of redocly, an independent linter."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from aiohttp import web
from pydantic import BaseModel

from tests.application import container_of, package_of
from tests.serving import NO_BROKER
from workerkit import APIKey, Basic, Bearer, Cookie, Form, Header, HTTPView, Runner, UploadFile
from workerkit.http.openapi import document

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "app_template"
INFO = {
    "title": "Shop",
    "version": "1.0",
    "license": "MIT",
    "servers": ["https://shop.acme.org"],
}


class Order(BaseModel):
    id: int
    note: str | None = None
    parts: list["Order"] = []


def user_of(token: str) -> str | None:
    """Return the user with a token."""
    return token or None


async def login(user: str, password: str) -> str | None:
    """Return the user with a password."""
    return user if password else None


class Orders(HTTPView):
    """Orders."""

    routes = ["/orders", "/shops/{shop:[a-z]+}/orders"]
    auth = {"get": Bearer(user_of, format="JWT"), "post": APIKey(user_of), "put": None}
    etag = True
    status = {"post": 201}

    async def get(
        self, shop: str = "", limit: int = 10, if_match: Annotated[str | None, Header] = None
    ) -> list[Order]:
        """List them."""
        return []

    async def post(self, order: Order, sid: Annotated[str, Cookie]) -> Order:
        """Add one."""
        return order

    async def put(self) -> tuple[Order, Literal[202]] | None:
        """Reorder them."""

    async def delete(self) -> web.Response:
        """Remove all."""
        return web.Response()


class Photos(HTTPView):
    """Photos of orders."""

    routes = ["/photos/{order_id}"]
    auth = Basic(login)

    async def post(
        self,
        order_id: int,
        title: Annotated[str, Form],
        photos: Annotated[list[UploadFile], Form],
    ) -> None:
        """Add photos."""

    async def get(self, order_id: int) -> bytes:
        """Show one."""
        return b""


class Bare(HTTPView):
    routes = ["/bare"]

    async def get(self):  # type: ignore[no-untyped-def]
        return 1

    async def post(self, note: Annotated[str, Form]) -> None: ...


def described(*views: type[HTTPView], **openapi: Any) -> dict[str, Any]:
    """Return the document of these views."""
    container = container_of(NO_BROKER, http={"openapi": openapi})
    assembly = Runner(container, packages=[package_of(*views)]).assemble()
    return document(assembly.declared, assembly.settings.http.openapi)


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Return the document of the template's application."""
    monkeypatch.syspath_prepend(str(TEMPLATE))
    container = importlib.import_module("shop.container").Container()
    assembly = Runner(container, packages=["shop"]).assemble()
    views = [each for each in assembly.declared if issubclass(each.consumer, HTTPView)]
    yield document(views, assembly.settings.http.openapi.model_copy(update={"license": "MIT"}))
    for name in [each for each in sys.modules if each.partition(".")[0] == "shop"]:
        del sys.modules[name]


def test_the_recommended_rules(template: dict[str, Any]) -> None:
    """There is neither an error nor a warning, except for classes that say nothing."""
    rich, bare = described(Orders, Photos, **INFO), described(Bare)
    found = subprocess.run(
        ["node", ".ci/node/lint_openapi.js"],
        cwd=ROOT,
        input=json.dumps([rich, template, bare, {**rich, "security": None, "servers": []}]),
        capture_output=True,
        text=True,
        check=True,
        timeout=120.0,
    )

    of_rich, of_template, of_bare, of_broken = json.loads(found.stdout)
    assert of_rich == []
    assert of_template == []
    rules = {tuple(each.split()[:2]) for each in of_bare}
    assert rules == {("warn", "info-license"), ("warn", "tag-description")}
    assert {each.split()[1] for each in of_broken} >= {"struct", "no-empty-servers"}
