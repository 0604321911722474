"""What the page `/docs` sends to views with forms, `auth`, `etag` and CORS, of a real worker."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browsing import CLIPBOARD, Visit, card, in_background, run_curl, send
from tests.command import running, write_package
from tests.ports import free_port

Visits = Callable[..., Visit]

CONSUMERS = '''
    from enum import Enum
    from typing import Annotated

    from pydantic import BaseModel

    from workerkit import APIKey, Basic, Bearer, Form, HTTPView, Principal, UploadFile

    class User(BaseModel):
        name: str
        scopes: list[str] = []

    def user_of(token: str) -> User | None:
        scopes = {"reader": ["read"], "writer": ["read", "write"]}
        return User(name=token, scopes=scopes[token]) if token in scopes else None

    def known(user: str, password: str) -> str | None:
        return user if password == "pässword:1" else None

    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    class Photos(HTTPView):
        """Photos of a user."""

        routes = ["/photos"]
        auth = Bearer(user_of, scopes=["write"])

        async def post(
            self,
            user: Annotated[User, Principal],
            title: Annotated[str, Form],
            photo: Annotated[UploadFile, Form],
            colour: Annotated[Colour, Form] = Colour.RED,
            tags: Annotated[list[str] | None, Form("tag")] = None,
            details: Annotated[list[UploadFile] | None, Form] = None,
        ) -> dict[str, object]:
            """Store a photo."""
            return {
                "user": user.name,
                "title": title,
                "photo": [photo.filename, photo.size, (await photo.read()).decode()],
                "colour": colour.value,
                "tags": tags,
                "details": [each.filename for each in details or []],
            }

    class Address(BaseModel):
        street: str = "unknown"
        number: int | None = None

    class Addresses(HTTPView):
        routes = ["/addresses"]
        auth = {"post": Basic(known)}

        async def post(
            self, user: Annotated[str, Principal], form: Annotated[Address, Form]
        ) -> dict[str, object]:
            """Store an address."""
            return {"user": user, "address": form}

    class Keys(HTTPView):
        routes = ["/keys"]
        auth = APIKey(user_of)
        etag = True

        async def get(self, user: Annotated[User, Principal]) -> User:
            """Show the user of a key."""
            return user

    class Cookies(HTTPView):
        routes = ["/cookies"]
        auth = APIKey(user_of, cookie="session")

        async def get(self, user: Annotated[User, Principal]) -> User:
            """Show the user of a session."""
            return user

    class QueryKeys(HTTPView):
        routes = ["/query-keys"]
        auth = APIKey(user_of, query="key")

        async def get(self, user: Annotated[User, Principal]) -> User:
            """Show the user of a key in the query."""
            return user
'''


@asynccontextmanager
async def _worker(directory: Path) -> AsyncIterator[str]:
    write_package(directory, consumers=CONSUMERS)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables: Any = {
        "WORKERKIT_HTTP__PORT": str(port),
        "WORKERKIT_HTTP__OPENAPI__SERVERS": json.dumps(["/", url]),
        "WORKERKIT_HTTP__CORS__ORIGINS": json.dumps([f"http://localhost:{port}"]),
    }
    async with running("app", cwd=directory, **variables) as application:
        await application.says("listening")
        yield url


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker."""
    with in_background(_worker(tmp_path_factory.mktemp("worker"))) as url:
        yield url


def authorize(page: Page, **credentials: str) -> None:
    """Enter credentials, by the name of the security scheme."""
    page.get_by_role("button", name="Authorize").click()
    for name, value in credentials.items():
        page.get_by_role("dialog").get_by_label(name.replace("_", "-")).fill(value)
    page.get_by_role("button", name="Done").click()


def test_a_file_and_a_token(worker: str, visit: Visits, tmp_path: Path) -> None:
    """Files of a form and a bearer token reach the view; without its scope it is refused."""
    files = [tmp_path / name for name in ("tea.txt", "it's a cup.txt", "pot.txt")]
    for file in files:
        file.write_text(f"content of {file.name} ü")
    opened = visit(worker, **CLIPBOARD)
    page = opened.open("/docs")

    photos = card(page, "Photos_post")
    photos.get_by_label("title").fill("@Tea; ü")
    photos.get_by_label("photo").set_input_files(files[1])
    photos.get_by_label("colour").select_option("blue")
    photos.get_by_label("tag").fill("green\nhot")
    photos.get_by_label("details").set_input_files([files[0], files[2]])
    anonymous, _ = send(photos)
    authorize(page, bearer="reader")
    refused, problem = send(photos)
    authorize(page, bearer="writer")
    accepted, stored = send(photos)

    assert (anonymous[:3], refused[:3], accepted[:3]) == ("401", "403", "200")
    assert json.loads(problem)["status"] == 403
    assert json.loads(stored) == {
        "user": "writer",
        "title": "@Tea; ü",
        "photo": ["it's a cup.txt", 28, "content of it's a cup.txt ü"],
        "colour": "blue",
        "tags": ["green", "hot"],
        "details": ["tea.txt", "pot.txt"],
    }
    assert json.loads(run_curl(photos, tmp_path)) == json.loads(stored)
    assert "write" in photos.locator("p", has_text="Requires").inner_text()
    without_statuses(opened)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_of_a_model(kind: str, worker: str, visit: Visits, tmp_path: Path) -> None:
    """A form of a model is sent in both content types, also without any field."""
    page = visit(worker, **CLIPBOARD).open("/docs")
    authorize(page, basic="Ada:pässword:1")

    addresses = card(page, "Addresses_post")
    addresses.get_by_label("Content type of the body").select_option(kind)
    addresses.get_by_label("street").fill("")
    _, defaults = send(addresses)
    addresses.get_by_label("street").fill("Tea & Co. = 5%")
    addresses.get_by_label("number").fill("7")
    _, stored = send(addresses)

    assert json.loads(defaults)["address"] == {"street": "unknown", "number": None}
    assert json.loads(stored) == {
        "user": "Ada",
        "address": {"street": "Tea & Co. = 5%", "number": 7},
    }
    assert json.loads(run_curl(addresses, tmp_path)) == json.loads(stored)


def test_keys_and_tags(worker: str, visit: Visits, tmp_path: Path) -> None:
    """A key is sent where its scheme says, and an entity tag gets a 304 that is no error."""
    opened = visit(worker, **CLIPBOARD)
    page = opened.open("/docs")
    authorize(page, X_API_Key="reader", key_query="writer")

    keys = card(page, "Keys_get")
    _, found = send(keys)
    keys.get_by_text("Headers", exact=True).click()
    tag = keys.locator("code", has_text="etag: ").inner_text().removeprefix("etag: ")
    keys.get_by_label("If-None-Match").fill(tag)
    known, nothing = send(keys)
    _, of_query = send(card(page, "QueryKeys_get"))

    assert json.loads(found)["name"] == "reader"
    assert (known[:3], nothing) == ("304", "")
    assert keys.locator("form [role=status]").get_attribute("class") == "good"
    assert json.loads(of_query)["name"] == "writer"
    without_statuses(opened)


def test_a_key_in_a_cookie(worker: str, visit: Visits, tmp_path: Path) -> None:
    """The page says that a browser does not send an entered cookie, which curl does."""
    opened = visit(worker, **CLIPBOARD)
    page = opened.open("/docs")
    authorize(page, session_cookie="reader")

    cookies = card(page, "Cookies_get")
    status, _ = send(cookies)

    assert status.startswith("401")
    assert "A browser sends its own cookies" in cookies.locator("form").inner_text()
    assert json.loads(run_curl(cookies, tmp_path))["name"] == "reader"
    without_statuses(opened)


def test_another_origin(worker: str, visit: Visits, tmp_path: Path) -> None:
    """The page of one origin uses the views of another one that allows it."""
    file = tmp_path / "tea.txt"
    file.write_text("tea")
    opened = visit(worker.replace("127.0.0.1", "localhost"))
    page = opened.open("/docs")
    authorize(page, bearer="writer", X_API_Key="reader")

    photos = card(page, "Photos_post")
    photos.get_by_label("Server").select_option(worker)
    photos.get_by_label("title").fill("Tea")
    photos.get_by_label("photo").set_input_files(file)
    _, stored = send(photos)
    keys = card(page, "Keys_get")
    keys.get_by_label("Server").select_option(worker)
    _, found = send(keys)
    keys.get_by_text("Headers", exact=True).click()

    assert json.loads(stored)["photo"] == ["tea.txt", 3, "tea"]
    assert json.loads(found)["name"] == "reader"
    assert "etag: " in keys.locator("dl", has_text="etag").last.inner_text()
    opened.faults[:] = [each for each in opened.faults if not each.startswith("request to")]


def without_statuses(opened: Visit) -> None:
    """Forget what the browser itself reports: that a status is that of an error."""
    opened.faults[:] = [each for each in opened.faults if "responded with a status" not in each]
