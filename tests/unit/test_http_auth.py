"""`auth` of a view: who gets in, with which answer, and what the document says about it."""

import asyncio
import functools
import logging
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from aiohttp import web
from dependency_injector import providers
from openapi_spec_validator import validate
from pydantic import BaseModel, SecretStr

from tests.application import container_of, package_of
from tests.serving import NO_BROKER, first_answer, serving
from workerkit import (
    APIKey,
    Basic,
    Bearer,
    DeclarationError,
    HTTPView,
    Principal,
    Retry,
    Runner,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.http.openapi import document
from workerkit.testing import override, running

TOKEN = "token-of-ada"


@dataclass
class User:
    name: str
    scopes: list[str] = field(default_factory=list)


class Users:
    """The users, as a provider of the container."""

    def __init__(self) -> None:
        self.closed = 0

    async def find(self, token: str) -> User | None:
        if token == "slow":
            await asyncio.sleep(60.0)
        if token == "broken":
            raise ConnectionError(f"no database for {token}")
        if token == "later":
            raise Retry(after=7)
        if token == "forbidden":
            raise web.HTTPForbidden(reason="your account is closed")
        if token == "expired":
            raise web.HTTPUnauthorized(reason="the token has expired")
        if token == "exits":
            raise SystemExit(3)
        return User("Ada", ["orders:read"]) if token == TOKEN else None

    @asynccontextmanager
    async def session(self) -> AsyncIterator["Users"]:
        yield self
        self.closed += 1


async def user_of(token: str, session: Users) -> User | None:
    """Return the user with a token."""
    return await session.find(token)


def in_thread(token: str) -> User | None:
    """Return the user, from a thread."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    return User("Ada") if token == TOKEN else None


class Orders(HTTPView):
    routes = ["/orders"]
    auth = Bearer(user_of)

    async def get(self, user: Annotated[User, Principal]) -> str:
        return user.name

    async def post(self, order: dict[str, int], user: Annotated[User, Principal]) -> str:
        return user.name


def users() -> dict[str, Any]:
    """Return the providers of the application."""
    found = Users()
    return {"users": found, "session": providers.Factory(found.session)}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_valid_token() -> None:
    """The view gets the principal; a session of the verifier is closed after it."""
    provided = users()
    async with serving(Orders, provided=provided) as client:
        read = await client.get("/orders", headers=bearer(TOKEN))
        written = await client.post("/orders", json={"id": 1}, headers=bearer(TOKEN))
        lower = await client.get("/orders", headers={"Authorization": f"bearer {TOKEN}"})

    assert [(each.status, each.json()) for each in (read, written, lower)] == [(200, "Ada")] * 3
    assert provided["users"].closed == 3


@pytest.mark.parametrize(
    ("headers", "status", "challenge"),
    [
        ({}, 401, 'Bearer realm="{}"'),
        ({"Authorization": "Basic YTpi"}, 401, 'Bearer realm="{}"'),
        ({"Authorization": "Bearer"}, 401, 'Bearer realm="{}", error="invalid_token"'),
        ({"Authorization": "Bearer a b"}, 401, 'Bearer realm="{}", error="invalid_token"'),
        (bearer("unknown"), 401, 'Bearer realm="{}", error="invalid_token"'),
        (bearer("expired"), 401, 'Bearer realm="{}", error="invalid_token"'),
        (bearer("forbidden"), 403, None),
        (bearer("later"), 503, None),
        (bearer("broken"), 500, None),
        (bearer("exits"), 500, None),
    ],
)
async def test_other_tokens(
    headers: dict[str, str],
    status: int,
    challenge: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each answer is a problem; a 401 has the challenge of RFC 6750; a failure is no 401."""
    caplog.set_level(logging.DEBUG)
    async with serving(Orders, provided=users()) as client:
        answer = await client.post("/orders", json={"id": 1}, headers=headers)

    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    expected = None if challenge is None else challenge.format(Orders.__module__)
    assert answer.headers.get("WWW-Authenticate") == expected
    assert answer.json()["status"] == status


async def test_a_slow_verifier() -> None:
    """It has the timeout of the view."""

    class Fast(Orders):
        routes = ["/fast"]
        timeout = 0.05

    async with serving(Fast, provided=users()) as client:
        assert (await client.get("/fast", headers=bearer("slow"))).status == 504


async def test_a_verifier_in_a_thread() -> None:
    """One that is not `async` does not block the event loop."""

    class View(HTTPView):
        routes = ["/"]
        auth = Bearer(in_thread)

        async def get(self, user: Annotated[User | None, Principal]) -> str:
            return user.name if user else ""

    async with serving(View) as client:
        answers = [await client.get("/", headers=bearer(each)) for each in (TOKEN, "other")]

    assert [each.status for each in answers] == [200, 401]


class Verifies:
    """A verifier that is an object."""

    async def __call__(self, token: str) -> User | None:
        return User("Ada") if token == TOKEN else None


async def with_prefix(prefix: str, token: str) -> User | None:
    """Return the user with a prefix in its name."""
    return User(f"{prefix}Ada") if token == TOKEN else None


@pytest.mark.parametrize(
    ("verify", "name"),
    [(Verifies(), "Ada"), (functools.partial(with_prefix, "Dr. "), "Dr. Ada")],
)
async def test_other_callables(verify: Any, name: str) -> None:
    """Objects and partial functions verify as well."""

    class View(HTTPView):
        routes = ["/"]
        auth = Bearer(verify)

        async def get(self, user: Annotated[User, Principal]) -> str:
            return user.name

    async with serving(View) as client:
        answers = [await client.get("/", headers=bearer(each)) for each in (TOKEN, "other")]

    assert [each.status for each in answers] == [200, 401]
    assert answers[0].json() == name


async def test_the_body_is_not_read_before() -> None:
    """A client without a token gets its 401 although its body has not arrived."""
    head = (
        b"POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000000\r\n\r\n"
    )
    async with serving(Orders, provided=users(), read_timeout=60.0) as client:
        answer = await first_answer(client, head)

    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("twice", ["Authorization: Bearer a", "X-API-Key: a"])
async def test_credentials_that_are_sent_twice(twice: str) -> None:
    """It is not certain which ones another server would have verified: 400."""

    class Keyed(HTTPView):
        routes = ["/keyed"]
        auth = APIKey(in_thread)

        async def get(self) -> None: ...

    path = "/keyed" if twice.startswith("X") else "/orders"
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\n{twice}\r\n{twice}\r\n\r\n"
    async with serving(Orders, Keyed, provided=users()) as client:
        assert (await first_answer(client, request.encode())).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("open_head", "status"), [(False, 401), (True, 200)])
async def test_a_head_of_its_own(open_head: bool, status: int) -> None:
    """A view with its own `head` requires the same for it as for `get`, unless it says so."""

    class Own(HTTPView):
        routes = ["/own"]
        auth = {"get": Bearer(user_of), **({"head": None} if open_head else {})}

        async def get(self) -> str:
            return "secret"

        async def head(self) -> str:
            return "secret"

    class Both(HTTPView):
        routes = ["/both"]
        methods = ["HEAD", "GET"]
        auth = Own.auth

        async def handle(self) -> str:
            return "secret"

    async with serving(Own, Both, provided=users()) as client:
        answers = [await client.head(path) for path in ("/own", "/both")]

    assert [each.status for each in answers] == [status, status]


async def test_scopes() -> None:
    """A principal without one of them gets a 403 that names it."""

    class Reads(HTTPView):
        routes = ["/reads"]
        auth = {
            "get": Bearer(user_of, scopes=["orders:read"]),
            "put": Bearer(user_of, scopes=["orders:read", "orders:write"]),
        }

        async def get(self) -> None: ...

        async def put(self) -> None: ...

        async def delete(self, user: Annotated[User | None, Principal]) -> str:
            return repr(user)

    async with serving(Reads, provided=users()) as client:
        read = await client.get("/reads", headers=bearer(TOKEN))
        head = await client.head("/reads")
        write = await client.put("/reads", headers=bearer(TOKEN))
        unprotected = await client.delete("/reads")

    assert (read.status, head.status, write.status, unprotected.json()) == (204, 401, 403, "None")
    assert write.json()["detail"] == "scope orders:write is required"
    challenge = write.headers["WWW-Authenticate"]
    assert 'error="insufficient_scope", scope="orders:read orders:write"' in challenge


@pytest.mark.parametrize(
    ("auth", "sent", "status"),
    [
        (APIKey(in_thread), {"headers": {"X-API-Key": TOKEN}}, 204),
        (APIKey(in_thread, header="X-Key"), {"headers": {"X-Key": TOKEN}}, 204),
        (APIKey(in_thread, header="X-Key"), {"headers": {"X-API-Key": TOKEN}}, 401),
        (APIKey(in_thread, query="key"), {"query": {"key": TOKEN}}, 204),
        (APIKey(in_thread, query="key"), {"query": {"key": ""}}, 401),
        (APIKey(in_thread, cookie="sid"), {"cookies": {"sid": TOKEN}}, 204),
        (APIKey(in_thread, cookie="sid"), {"cookies": {"other": TOKEN}}, 401),
    ],
)
async def test_api_keys(auth: APIKey, sent: dict[str, Any], status: int) -> None:
    """A key comes from a header, the query or a cookie."""

    class View(HTTPView):
        routes = ["/"]

        async def get(self) -> None: ...

    View.auth = auth
    async with serving(View) as client:
        answer = await client.get("/", **sent)

    assert answer.status == status
    assert answer.headers.get("WWW-Authenticate", "ApiKey").startswith("ApiKey")


@pytest.mark.parametrize(
    ("sent", "status"),
    [("ada:pa:ss", 200), ("ada:other", 401), ("ada", 401), ("é:ü", 401), (b"\xff:\xff", 401)],
)
async def test_basic(sent: str | bytes, status: int) -> None:
    """User and password; only the first colon separates them."""

    async def login(user: str, password: str) -> User | None:
        return User(user) if (user, password) == ("ada", "pa:ss") else None

    class View(HTTPView):
        routes = ["/"]
        auth = Basic(login)

        async def get(self, user: Annotated[User, Principal]) -> str:
            return user.name

    raw = sent.encode() if isinstance(sent, str) else sent
    async with serving(View) as client:
        headers = {"Authorization": f"Basic {b64encode(raw).decode()}"}
        answer = await client.get("/", headers=headers)
        malformed = await client.get("/", headers={"Authorization": "Basic ?"})

    assert (answer.status, malformed.status) == (status, 401)


class KeySettings(WorkerSettings):
    api_key: SecretStr | None = None
    api_keys: list[SecretStr] = []
    number: int = 1


def with_settings(**values: Any) -> WorkerContainer:
    """Return a container with these settings."""
    container = WorkerContainer()
    container.settings.override(providers.Object(KeySettings(**values)))
    return container


class Admin(HTTPView):
    routes = ["/admin"]
    auth = {"get": APIKey(setting="api_key"), "put": Bearer(setting="api_keys")}

    async def get(self) -> None: ...

    async def put(self) -> None: ...


async def test_keys_in_the_settings() -> None:
    """One key, or several, so that keys can be replaced one after the other."""
    container = with_settings(api_key=SecretStr("k-1"), api_keys=["ä", SecretStr("k-2")])
    async with running(container, packages=[package_of(Admin)]) as app:
        single = [
            (await app.http.get("/admin", headers={"X-API-Key": key})).status
            for key in ("k-1", "k-2", "")
        ]
        many = [(await app.http.put("/admin", headers=bearer(key))).status for key in ("k-2", "x")]

    assert (single, many) == ([204, 401, 401], [204, 401])


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "auth uses WORKERKIT_API_KEY, which is not set"),
        ({"api_key": ""}, "auth uses WORKERKIT_API_KEY, which is or contains an empty text"),
        ({"api_key": "a", "api_keys": ["a", ""]}, "WORKERKIT_API_KEYS, which is or contains an"),
    ],
)
def test_missing_keys(settings: dict[str, Any], fault: str) -> None:
    """Without a key nothing starts: an empty one would let everybody in."""
    with pytest.raises(DeclarationError, match=fault):
        Runner(with_settings(**settings), packages=[package_of(Admin)]).assemble()


async def test_a_fake_in_a_test() -> None:
    """A test replaces what the verifier takes from the container."""

    class Fake(Users):
        async def find(self, token: str) -> User | None:
            return User(token)

    class Container(WorkerContainer):
        session = providers.Singleton(Users)

    container = Container()
    with override(container, session=Fake()):
        async with running(container, packages=[package_of(Orders)]) as app:
            answer = await app.http.get("/orders", headers=bearer("Bob"))

    assert answer.json() == "Bob"


def faults_of(auth: Any, taking: Any = None, **provided: Any) -> str:
    """Return the faults of a view with this `auth` whose method takes this principal."""

    class View(HTTPView):
        routes = ["/"]

        async def get(self, user: Any) -> None: ...

    View.get.__annotations__["user"] = str if taking is None else Annotated[taking, Principal]
    View.auth = auth
    container = container_of(NO_BROKER)
    with pytest.raises(DeclarationError) as raised:
        Runner(container, packages=[package_of(View)]).assemble()
    return str(raised.value)


class Closed(BaseModel):
    name: str


def without_scopes(token: str) -> Closed: ...  # type: ignore[empty-body]


async def without_annotation(token):  # type: ignore[no-untyped-def]
    ...


def of_claims(token: str) -> dict[str, Any]: ...  # type: ignore[empty-body]


def without_token() -> User: ...  # type: ignore[empty-body]


def of_nobody(token: str) -> None: ...


@pytest.mark.parametrize(
    ("auth", "taking", "fault"),
    [
        (Bearer(user_of), None, "parameter 'session' has no provider of its name or of type Users"),
        (Bearer(in_thread), Closed, "'user' is of type Closed, and tests.unit.test_http_auth.in_t"),
        (Bearer(without_scopes, scopes=["a"]), Closed, "returns Closed, and the view requires sco"),
        (Bearer(of_claims, scopes=["a"]), None, "returns dict[str, Any], and the view requires"),
        (Bearer(without_token), User, "verifies a bearer token: its first parameter takes it"),
        (Basic(in_thread), User, "verifies a user and a password: its first two parameters takes"),
        (Bearer(of_nobody), None, "returns None, which refuses every request"),
        (None, User, "takes the principal, and nothing verifies the client"),
        ({"get": None}, User, "takes the principal, and nothing verifies the client"),
        (Bearer(setting="log"), User, "takes the principal, and a secret in the settings has none"),
        (Bearer(setting="nothing"), None, "uses the setting 'nothing', which _Settings does not"),
        ({"put": Bearer(in_thread)}, None, "auth has 'put', but the view handles GET"),
        ("secret", None, "auth is a str: write Bearer"),
        (Bearer, None, "auth is Bearer: write Bearer(...)"),
    ],
)
def test_faults(auth: Any, taking: Any, fault: str) -> None:
    """`workerkit check` finds what cannot work, without a value of `auth`."""
    found = faults_of(auth, taking)

    assert fault in found
    assert "secret'" not in found


@pytest.mark.parametrize(
    ("create", "fault"),
    [
        (Bearer, "needs either a function or setting"),
        (lambda: Bearer(in_thread, setting="a"), "needs either a function or setting"),
        (lambda: Bearer("secret"), "write a function"),  # type: ignore[arg-type]
        (lambda: Bearer(in_thread, scopes="orders"), "write a list, such as"),
        (lambda: Bearer(in_thread, scopes=["a b"]), "without spaces"),
        (lambda: Bearer(setting="a", scopes=["b"]), "scopes need a function"),
        (lambda: APIKey(in_thread, header="a", query="b"), "one of header, query and cookie"),
        (lambda: APIKey(in_thread, header="a b"), "write the name of a header"),
        (lambda: Bearer(in_thread, name="a b"), "write letters"),
    ],
)
def test_invalid_arguments(create: Any, fault: str) -> None:
    """They are refused where the class is written."""
    with pytest.raises(ValueError, match=fault):
        create()


def test_an_unannotated_verifier() -> None:
    """Its principal may have any type."""

    class View(HTTPView):
        routes = ["/"]
        auth = Bearer(without_annotation)

        async def get(self, user: Annotated[User, Principal]) -> None: ...

    assert Runner(container_of(NO_BROKER), packages=[package_of(View)]).assemble().declared


def test_the_document() -> None:
    """Schemes, requirements, and the responses 401 and 403 come from `auth` alone."""

    class View(HTTPView):
        routes = ["/"]
        auth = {
            "get": Bearer(in_thread, format="JWT"),
            "put": APIKey(in_thread, query="key"),
            "post": Bearer(in_thread, name="bearer"),
            "delete": None,
        }

        async def get(self, user: Annotated[User, Principal]) -> None: ...

        async def put(self) -> None: ...

        async def post(self) -> None: ...

        async def delete(self) -> None: ...

        async def patch(self) -> None: ...

    schemes = {"default": {"type": "http", "scheme": "basic"}}
    openapi = {"security_schemes": schemes, "security": ["default"]}
    container = container_of(NO_BROKER, http={"openapi": openapi})
    assembly = Runner(container, packages=[package_of(View)]).assemble()
    made = document(assembly.declared, assembly.settings.http.openapi)
    validate(made)

    operations = made["paths"]["/"]
    assert made["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "key-query": {"type": "apiKey", "in": "query", "name": "key"},
        "bearer-2": {"type": "http", "scheme": "bearer"},
        **schemes,
    }
    assert operations["get"]["security"] == [{"bearer": []}]
    assert operations["put"]["security"] == [{"key-query": []}]
    assert operations["post"]["security"] == [{"bearer-2": []}]
    assert operations["delete"]["security"] == []
    assert "security" not in operations["patch"]
    assert "parameters" not in operations["get"]
    assert sorted(operations["get"]["responses"]) == ["204", "400", "401", "403", "default"]
    assert "WWW-Authenticate" in operations["get"]["responses"]["401"]["headers"]


async def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Not in the text of any record, nor in its fields."""
    caplog.set_level(logging.DEBUG)

    class View(HTTPView):
        routes = ["/keyed"]
        auth = APIKey(in_thread, query="key")

        async def get(self) -> None: ...

    async with serving(Orders, View, provided=users()) as client:
        for token in (TOKEN, "unknown-token"):
            await client.get("/orders", headers=bearer(token))
            await client.get("/keyed", query={"key": token})

    shown = "\n".join(str(vars(each)) for each in caplog.records)
    assert "request refused" in shown
    assert TOKEN not in shown
    assert "unknown-token" not in shown


async def test_verifiers_at_the_same_time() -> None:
    """Verifiers of several requests do not wait for each other."""
    together = threading.Barrier(10, timeout=30.0)

    def verify(token: str) -> str:
        together.wait()
        return token

    class View(HTTPView):
        routes = ["/"]
        auth = Bearer(verify)

        async def get(self, user: Annotated[str, Principal]) -> str:
            return user

    async with serving(View) as client:
        asked = [client.get("/", headers=bearer(str(number))) for number in range(10)]
        answers = await asyncio.gather(*asked)

    assert sorted(each.json() for each in answers) == [str(number) for number in range(10)]
