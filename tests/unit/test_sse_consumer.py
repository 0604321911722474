"""Declarations of consumers of streams, the settings of their servers, and their faults."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dependency_injector import providers
from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from tests.application import package_of
from tests.command import workerkit, write_package
from workerkit import (
    Action,
    ConfigurationError,
    DeclarationError,
    InvalidBody,
    Runner,
    SSEConsumer,
    SSEEvent,
    WorkerContainer,
    WorkerSettings,
)
from workerkit.cli.settings import inventory
from workerkit.config.connections import SSESettings
from workerkit.runner import banner
from workerkit.sse.consumer import SSEOptions
from workerkit.sse.event_types import reader


class Settings(WorkerSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")


def container(**sse: Any) -> Any:
    """Return a container whose settings have these servers."""
    made = WorkerContainer()
    made.settings.override(providers.Object(Settings(sse=sse)))
    return made


def consumer(handle: Any = None, **attributes: Any) -> type[SSEConsumer]:
    """Return a class with these attributes."""

    async def nothing(self: Any, data: str) -> None: ...

    return type("Deployments", (SSEConsumer,), {"handle": handle or nothing, **attributes})


def options(class_: type[SSEConsumer], **sse: Any) -> SSEOptions:
    """Return the effective options."""
    (declared,) = Runner(container(**sse), packages=[package_of(class_)]).assemble().declared
    assert isinstance(declared.options, SSEOptions)
    return declared.options


def fault(class_: type[SSEConsumer], **sse: Any) -> str:
    """Return the only fault of a class."""
    with pytest.raises(DeclarationError) as caught:
        Runner(container(**sse), packages=[package_of(class_)]).assemble()
    (sentence,) = caught.value.faults
    return sentence.partition("Deployments: ")[2]


def test_the_defaults() -> None:
    """One event at a time in order; a failed event is handled again; an invalid one is skipped."""
    found = options(consumer(url="https://host/events"))

    assert (found.concurrency, found.timeout, found.routes) == (1, 300.0, ("",))
    assert (found.on_success, found.on_exception, found.on_invalid) == (
        Action.ACK,
        Action.REQUEUE,
        Action.REJECT,
    )
    assert (found.events, found.retry, found.verb) == (None, None, "GET")
    assert (found.batch_size, found.batch_interval) == (100, 1.0)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (
            {"url": "https://h/", "routes": "/events"},
            "option 'routes' is '/events': write a list, such as ['/events']",
        ),
        (
            {"url": "https://h/", "routes": ["events"]},
            "option 'routes' is ['events']: a route begins with '/', unlike 'events'",
        ),
        (
            {"url": "https://h/", "routes": ["/a", "/a"]},
            "option 'routes' is ['/a', '/a']: a route is listed twice",
        ),
        (
            {"url": "https://h/", "events": "created"},
            (
                "option 'events' is 'created': write a list, such as ['created'], "
                "or a dict of types by name"
            ),
        ),
        (
            {"url": "amqp://h/"},
            "option 'url' is ***: should start with http:// or https://",
        ),
        (
            {"url": "https://h/", "events": []},
            "option 'events' is []: no event would be handled: write names, or None for all events",
        ),
        (
            {"url": "https://h/", "routes": ["//host"]},
            "option 'routes' is ['//host']: a route begins with '/', unlike '//host'",
        ),
        (
            {"url": "https://h/", "retry": (0, 5)},
            "option 'retry' is (0, 5): write RetryPolicy(delays=(0, 5, 60))",
        ),
        (
            {},
            (
                "set url, or connection to one of the settings: the settings have no SSE "
                "connection 'default', only marathon; write its address into "
                "SHOP_SSE__DEFAULT__URL"
            ),
        ),
        (
            {"connection": "maraton"},
            (
                "the settings have no SSE connection 'maraton', only marathon; write its address "
                "into SHOP_SSE__MARATON__URL"
            ),
        ),
        (
            {"connection": "marathon", "url": "https://h/"},
            "set either url or connection; found both",
        ),
        (
            {"url": "https://me:secret@h/"},
            "url has a user or a password: those belong to a connection of the settings",
        ),
        (
            {"url": "https://h/", "json": {}, "method": "get"},
            "json is the body of a request, and GET has none: set method to 'POST'",
        ),
        (
            {"url": "https://h/", "headers": {"X-Key": "1"}},
            (
                "headers has to be an `async def headers(self)`; set constant headers in a "
                "connection of the settings"
            ),
        ),
        (
            {"url": "https://h/", "events": {"a": int}},
            "events['a'] is int, which handle does not take: add it to the annotation",
        ),
        (
            {"url": "https://h/", "rutes": ["/a"]},
            "there is no option 'rutes'; did you mean 'routes'?",
        ),
    ],
)
def test_faults_of_a_class(attributes: dict[str, Any], sentence: str) -> None:
    """Each is one sentence that says what is expected, before any socket opens."""
    assert fault(consumer(**attributes), marathon={"url": "https://m/"}) == sentence


class Filter(BaseModel):
    since: datetime = Field(serialization_alias="from")
    names: set[str]


@dataclass
class Page:
    size: Decimal


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            Filter(since=datetime(2026, 1, 2, tzinfo=UTC), names={"a"}),
            {"from": "2026-01-02T00:00:00Z", "names": ["a"]},
        ),
        (Page(Decimal("1.5")), {"size": "1.5"}),
        ({"page": Page(Decimal(1))}, {"page": {"size": "1"}}),
        ([1, ("a", None)], [1, ["a", None]]),
        ((1, 2), [1, 2]),
        (None, None),
    ],
)
def test_the_body_of_the_request_is_encoded_as_by_publish(given: object, sent: object) -> None:
    """A model is sent as an object with its aliases, not as pairs."""
    assert options(consumer(url="https://h/", json=given)).json == sent


@pytest.mark.parametrize("given", ["{}", b"{}", 3, {"a"}, Filter, Page, {"a": object()}])
def test_an_invalid_body_of_a_request(given: object) -> None:
    """Text, a class, and objects that JSON does not have are refused at the start."""
    found = fault(consumer(url="https://h/", json=given))

    assert found.startswith(f"option 'json' is {given!r}: ")


def test_a_type_by_name_may_be_a_subclass() -> None:
    """A handler of a class also takes its subclasses."""

    class Narrower(Page):
        """One of several."""

    async def handle(self: Any, event: SSEEvent[Page]) -> None: ...

    found = options(consumer(handle, url="https://h/", events={"a": Narrower, "b": Page}))

    assert found.events == ("a", "b")


def test_types_by_name_have_to_be_types_that_handle_takes() -> None:
    """A type that handle does not take, or that cannot be decoded, is a fault."""

    class Other:
        """A class that cannot be decoded from data."""

    async def handle(self: Any, event: SSEEvent[int | str]) -> None: ...

    assert fault(consumer(handle, url="https://h/", events={"a": int, "b": float})) == (
        "events['b'] is float, which handle does not take: add it to the annotation"
    )
    assert fault(consumer(handle, url="https://h/", events={"a": Other})).startswith(
        "events['a'] cannot be decoded: "
    )
    assert options(consumer(handle, url="https://h/", events={"a": int})).events == ("a",)


def test_a_type_of_no_event_is_a_warning() -> None:
    """It may be a mistake, or left over."""

    async def handle(self: Any, event: int | str | None) -> None: ...

    package = package_of(consumer(handle, url="https://h/", events={"a": int, "b": None}))
    (warning,) = Runner(container(), packages=[package]).assemble().warnings

    assert warning.endswith(": handle takes str, which is not in events: nothing is read as it")


def test_structs_by_name() -> None:
    """msgspec cannot decode their union, and no event is decoded as the union."""

    class Created(msgspec.Struct):
        id: int

    class Deleted(msgspec.Struct):
        id: int

    async def handle(self: Any, event: SSEEvent[Created | Deleted]) -> None: ...

    events = {"created": Created, "deleted": Deleted}
    assert options(consumer(handle, url="https://h/", events=events)).events == tuple(events)
    read = reader(Created | Deleted, False, events)

    assert read(SSEEvent('{"id": 1}', name="deleted")) == Deleted(1)
    with pytest.raises(InvalidBody, match="events of the class has no type for this event"):
        read(SSEEvent('{"id": 1}', name="added by an operator"))


def test_a_name_of_a_type_is_a_fault() -> None:
    """The class would have to be guessed."""
    found = fault(consumer(url="https://h/", events={"a": "Info", "b": str}))

    assert found == "events['a'] is 'Info': write the type itself, not its name"


def test_the_name_of_a_connection_ignores_case() -> None:
    """`MARATHON` in the environment is `marathon` in a class, and `Marathon` too."""
    found = options(consumer(connection="Marathon"), MARATHON={"url": "https://m/"})

    assert found.connection == "Marathon"


def test_the_banner_has_no_credentials() -> None:
    """It shows the server without secrets."""
    class_ = consumer(connection="m", routes=["/a", "/b"])
    made = container(m={"url": "https://me:pa55@host:8080/base?key=s3cret"})

    shown = banner(Runner(made, packages=[package_of(class_)]).assemble())

    assert shown.endswith("  Deployments: sse /a, /b, server https://host:8080/base")


def test_the_url_of_a_class_is_shown_without_its_secrets() -> None:
    """Neither when the process starts nor in the list of settings."""
    class_ = consumer(url="https://host/events?token=T0PSECRET", routes=[""])
    assembly = Runner(container(), packages=[package_of(class_)]).assemble()

    shown = banner(assembly) + repr(inventory(assembly)) + repr(assembly)

    assert "https://host/events" in shown
    assert "T0PSECRET" not in shown


@pytest.mark.parametrize(
    ("base", "route", "expected"),
    [
        ("https://h/base?token=a%2Bb%26c", "", "https://h/base?token=a%2Bb%26c"),
        ("https://h/base?token=a%2Bb%26c", "/r", "https://h/base/r?token=a%2Bb%26c"),
        ("https://h/base?a=1", "/r?b=2", "https://h/base/r?a=1&b=2"),
        ("https://h/b%20c/", "/d%2Fe", "https://h/b%20c/d%2Fe"),
    ],
)
def test_the_address_of_a_route(base: str, route: str, expected: str) -> None:
    """The percent-encoding is kept."""
    assert str(SSESettings(url=SecretStr(base)).address(route)) == expected


def test_a_wrong_connection_of_the_environment_names_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The operator has to correct it, not the author of the class."""
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__CONNECTION", "mm")
    made = container(m={"url": "https://m/"})

    with pytest.raises(DeclarationError) as caught:
        Runner(made, packages=[package_of(consumer(connection="m"))]).assemble()

    assert str(caught.value) == (
        "SHOP_CONSUMERS__DEPLOYMENTS__CONNECTION: the settings have no SSE connection 'mm', only m;"
        " write its address into SHOP_SSE__MM__URL"
    )


def test_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every setting of a server has a variable; headers are JSON."""
    monkeypatch.setenv("SHOP_SSE__MARATHON__URL", "https://m/base")
    monkeypatch.setenv("SHOP_SSE__MARATHON__HEADERS", '{"X-Key": "a"}')
    monkeypatch.setenv("SHOP_SSE__MARATHON__TOKEN", "t0ken")
    monkeypatch.setenv("SHOP_SSE__MARATHON__IDLE_TIMEOUT", "0")
    monkeypatch.setenv("SHOP_SSE__MARATHON__TLS__VERIFY", "false")
    monkeypatch.setenv("SHOP_CURSORS", str(tmp_path))

    settings = Settings()
    marathon = settings.sse["marathon"]

    assert marathon.request_headers() == {"X-Key": "a", "Authorization": "Bearer t0ken"}
    assert (marathon.idle_timeout, marathon.tls.verify) == (0.0, False)
    assert (settings.cursors, settings.cursors_fsync) == (tmp_path, True)
    assert "t0ken" not in repr(settings)
    assert "X-Key" not in str(marathon.token)


def test_options_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any option may be set there, lists with commas."""
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__EVENTS", "a, b")
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__ROUTES", "/x,/y")
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__METHOD", "post")
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__JSON", '{"a": 1}')
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__IDLE_TIMEOUT", "5")

    found = options(consumer(connection="m"), m={"url": "https://m/"})

    assert (found.events, found.routes, found.verb) == (("a", "b"), ("/x", "/y"), "POST")
    assert (found.json, found.idle_timeout) == ({"a": 1}, 5.0)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("SHOP_SSE__M__URL", "ftp://me:pa55word@h/", "should start with http:// or https://"),
        ("SHOP_SSE__M__URL", "https://", "should"),
        ("SHOP_SSE__M__IDLE_TIMOUT", "5", "did you mean SHOP_SSE__M__IDLE_TIMEOUT?"),
        ("SHOP_SSE__M__CONNECT_TIMEOUT", "0", "SHOP_SSE__M__CONNECT_TIMEOUT"),
        ("SHOP_SSE__M__USER", "me", "should have a token or a user, not both"),
        (
            "SHOP_SSE__M__TOKEN",
            "t0ken\nX: y",
            "SHOP_SSE__M__TOKEN is ***: should have no line break",
        ),
    ],
)
def test_faults_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, sentence: str
) -> None:
    """Each names its variable, and no secret."""
    monkeypatch.setenv("SHOP_SSE__M__URL", "https://h/")
    monkeypatch.setenv("SHOP_SSE__M__TOKEN", "t0ken")
    monkeypatch.setenv(name, text)
    made = WorkerContainer()
    made.settings.override(providers.Singleton(Settings))

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)

    with pytest.raises(ConfigurationError) as caught:
        Runner(Container(), packages=[package_of(consumer(connection="m"))]).assemble()

    assert sentence in str(caught.value)
    assert "SHOP_SSE__M" in str(caught.value)
    assert "pa55word" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


def test_faults_of_settings_and_of_options_are_reported_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server without a URL does not hide an invalid option."""
    monkeypatch.setenv("SHOP_SSE__M__TOKEN", "t0ken")
    monkeypatch.setenv("SHOP_CONSUMERS__DEPLOYMENTS__CONCURRENCY", "none of your business")

    class Container(WorkerContainer):
        settings = providers.Singleton(Settings)

    with pytest.raises(ConfigurationError) as caught:
        Runner(Container(), packages=[package_of(consumer(url="https://h/"))]).assemble()

    assert [each.split(":")[0].split(" ")[0] for each in caught.value.faults] == [
        "SHOP_SSE__M__URL",
        "SHOP_CONSUMERS__DEPLOYMENTS__CONCURRENCY",
    ]


@pytest.mark.parametrize(
    ("base", "route", "url"),
    [
        ("https://h", "", "https://h"),
        ("https://h", "/a", "https://h/a"),
        ("https://h/base/", "/a/b", "https://h/base/a/b"),
        ("https://h/base?key=1", "/a?x=2", "https://h/base/a?key=1&x=2"),
        ("https://me:pw@h:8443/", "/a%20b", "https://h:8443/a%20b"),
        ("https://h/#part", "/ü", "https://h/%C3%BC"),
    ],
)
def test_a_route_is_appended(base: str, route: str, url: str) -> None:
    """It is appended to the path of the server's URL; both may have a query."""
    settings = SSESettings.model_validate({"url": base})

    assert str(settings.address(route)) == url
    assert settings.display(route) == url.partition("?")[0]


def test_basic_authentication() -> None:
    """User and password come from the URL, decoded, or from their own settings."""
    inside = SSESettings.model_validate({"url": "https://me:p%40ss@h/"})
    beside = SSESettings.model_validate(
        {"url": "https://me:x@h/", "user": "me", "password": "p@ss"}
    )

    assert inside.request_headers() == {"Authorization": "Basic bWU6cEBzcw=="}
    assert beside.request_headers() == inside.request_headers()


def test_a_token_and_a_user_contradict_each_other() -> None:
    """One of them would not be sent."""
    with pytest.raises(ValidationError, match="should have a token or a user, not both"):
        SSESettings.model_validate({"url": "https://h/", "token": "t", "user": "me"})


def test_a_password_needs_a_user() -> None:
    """In the URL or in its setting; otherwise it would silently not be sent."""
    SSESettings.model_validate({"url": "https://me@h/", "password": "pa55word"})
    with pytest.raises(ValidationError, match="should have a user beside the password") as caught:
        SSESettings.model_validate({"url": "https://h/", "password": "pa55word"})

    assert "pa55word" not in str(caught.value)


def test_secret_files_are_read_again(tmp_path: Path) -> None:
    """The next attempt uses the new token of a replaced file."""

    class Mounted(WorkerSettings):
        model_config = SettingsConfigDict(env_prefix="SHOP_", secrets_dir=tmp_path)

    (tmp_path / "sse__m__url").write_text("https://h/")
    (tmp_path / "sse__m__token").write_text("old")
    settings = Mounted()
    (tmp_path / "sse__m__token").write_text("new")

    assert settings.stream_server("m").request_headers() == {"Authorization": "Bearer new"}


def test_streams_are_listed(tmp_path: Path) -> None:
    """`list` and `settings` show streams like other consumers, secrets as `***`."""
    text = """
        from workerkit import SSEConsumer

        class Deployments(SSEConsumer):
            connection = "marathon"
            routes = ["/v2/events"]
            events = {"info": int}

            async def handle(self, data: int) -> None: ...
    """
    name = write_package(tmp_path, consumers=text)
    variables = {
        "WORKERKIT_SSE__MARATHON__URL": "https://m/",
        "WORKERKIT_SSE__MARATHON__TOKEN": "t0ken",
    }

    (row,) = json.loads(workerkit("list", name, "--json", cwd=tmp_path, **variables).stdout)
    shown = workerkit("settings", name, cwd=tmp_path, **variables).stdout

    assert (row["kind"], row["source"], row["connection"]) == ("sse", "/v2/events", "marathon")
    assert row["options"]["events"] == ["info"]
    assert "WORKERKIT_SSE__MARATHON__TOKEN" in shown
    assert "t0ken" not in shown
