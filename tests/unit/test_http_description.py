"""Row FH6: settings and classes in the OpenAPI document, and optional values."""

import json
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from openapi_spec_validator import validate
from pydantic import Field

from tests.application import container_of, package_of
from tests.command import workerkit, write_package
from tests.serving import NO_BROKER, serving
from workerkit import Cookie, Header, HTTPView, Runner, StartError, WorkerSettings
from workerkit.http.openapi import document

API_KEY = {"type": "apiKey", "in": "header", "name": "X-Key"}
OAUTH = {
    "type": "oauth2",
    "flows": {
        "clientCredentials": {
            "tokenUrl": "https://id.example/token",
            "scopes": {"orders:read": "Read orders"},
        }
    },
}
OPENAPI = {
    "title": "Shop",
    "version": "2.1",
    "description": "Orders of a shop.",
    "servers": ["https://shop.example/v1", "https://test.example/v1"],
    "security_schemes": {"api_key": API_KEY, "oauth": OAUTH},
    "security": ["api_key"],
}


class Colour(Enum):
    RED = "red"


class Orders(HTTPView):
    """Orders."""

    routes = ["/orders"]
    security = {"get": [{"oauth": ["orders:read"]}, "api_key"], "delete": []}

    async def get(
        self,
        limit: int | None = None,
        since: Annotated[int, Field(gt=1)] | None = None,
        colour: Colour | None = None,
        ids: list[int | None] = [],  # noqa: B006
        many: list[int] | None = None,
        either: int | str | None = None,
        kind: Literal["a", None] = "a",
        if_match: Annotated[str | None, Header] = None,
        sid: Annotated[str | None, Cookie] = None,
    ) -> None:
        """List them."""

    async def delete(self) -> None:
        """Forget them."""

    async def post(self) -> None:
        """Add one."""


class Open(HTTPView):
    routes = ["/open/{part}"]
    security = []

    async def get(self, part: str | None = None) -> None:
        """Show it."""


def described(*views: type[HTTPView], **openapi: Any) -> dict[str, Any]:
    """Return the document of these views."""
    container = container_of(NO_BROKER, http={"openapi": openapi})
    assembly = Runner(container, packages=[package_of(*views)]).assemble()
    made = document(assembly.declared, assembly.settings.http.openapi)
    validate(made)
    found: dict[str, Any] = json.loads(json.dumps(made))
    return found


def test_fh6_settings_in_the_document() -> None:
    """FH6: title, version, description, servers and security schemes are in the document."""
    found = described(Orders, Open, **OPENAPI)

    assert found["info"] == {"title": "Shop", "version": "2.1", "description": "Orders of a shop."}
    assert found["servers"] == [
        {"url": "https://shop.example/v1"},
        {"url": "https://test.example/v1"},
    ]
    assert found["components"]["securitySchemes"] == {"api_key": API_KEY, "oauth": OAUTH}
    assert found["security"] == [{"api_key": []}]


def test_fh6_security_of_a_class() -> None:
    """FH6: it replaces the security of the settings, for each verb that it names."""
    found = described(Orders, Open, **OPENAPI)

    orders = found["paths"]["/orders"]
    assert orders["get"]["security"] == [{"oauth": ["orders:read"]}, {"api_key": []}]
    assert orders["delete"]["security"] == []
    assert "security" not in orders["post"]
    assert found["paths"]["/open/{part}"]["get"]["security"] == []


def test_fh6_without_settings() -> None:
    """FH6: the document is for its own server, and requires no security."""
    found = described(Open)

    assert found["servers"] == [{"url": "/"}]
    assert found["security"] == []
    assert "securitySchemes" not in found["components"]
    assert found["info"]["version"] == "0"


def test_fh6_optional_values_are_described_as_they_are_sent() -> None:
    """FH6: a text is never null, so the schema has no null; the value is not required."""
    parameters = described(Orders, **OPENAPI)["paths"]["/orders"]["get"]["parameters"]

    schemas = {each["name"]: each["schema"] for each in parameters}
    assert not any(each["required"] for each in parameters)
    for name in ("limit", "since", "colour", "ids", "many", "either", "if-match", "sid"):
        assert "null" not in json.dumps(schemas[name]), name
    assert schemas["limit"]["type"] == "integer"
    assert schemas["since"]["exclusiveMinimum"] == 1
    assert schemas["many"]["items"] == {"type": "integer"}
    assert [each["type"] for each in schemas["either"]["anyOf"]] == ["integer", "string"]
    assert schemas["kind"]["enum"] == ["a", None]


@pytest.mark.parametrize(
    ("security", "fault"),
    [
        (
            ["nobody"],
            "'nobody', which is not in TESTS_ONLY_HTTP__OPENAPI__SECURITY_SCHEMES",
        ),
        ({"post": ["api_key"]}, "security has 'post', but the view handles GET"),
        ("api_key", "write a list of names, such as ['api_key']"),
        ([1], "write a list of names, such as ['api_key']"),
        ({"get": "api_key"}, "write a list of names, such as ['api_key']"),
    ],
)
def test_fh6_invalid_security(security: Any, fault: str) -> None:
    """FH6: an undeclared scheme, or another form, is a fault of the start."""

    class View(HTTPView):
        routes = ["/"]

        async def get(self) -> None:
            """Answer."""

    View.security = security
    with pytest.raises(StartError) as raised:
        described(View, **OPENAPI)

    assert fault in str(raised.value)


async def test_fh6_the_served_document() -> None:
    """FH6: `/openapi.json` has them."""
    async with serving(Open, openapi=OPENAPI) as client:
        found = (await client.get("/openapi.json")).json()

    assert found["info"]["title"] == "Shop"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"": "false"}, (False, None)),
        ({"": "off", "__TITLE": "Shop"}, (False, "Shop")),
        ({"": "true", "__TITLE": "Shop"}, (True, "Shop")),
        ({"": '{"title": "Shop"}', "__VERSION": "2"}, (True, "Shop")),
        ({"__ENABLED": "false"}, (False, None)),
        ({"__SECURITY_SCHEMES__KEY": json.dumps(API_KEY)}, (True, None)),
        ({"__SECURITY_SCHEMES": json.dumps({"key": API_KEY})}, (True, None)),
        ({"__SERVERS": "https://a.example,https://b.example"}, (True, None)),
    ],
)
def test_fh6_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[bool, str | None]
) -> None:
    """FH6: the switch and the parts can be set in the environment together."""
    for name, text in variables.items():
        monkeypatch.setenv(f"WORKERKIT_HTTP__OPENAPI{name}", text)
    openapi = WorkerSettings().http.openapi

    assert (openapi.enabled, openapi.title) == expected
    if any("SCHEMES" in name for name in variables):
        assert openapi.security_schemes == {"key": API_KEY}
    if "__SERVERS" in variables:
        assert openapi.servers == ("https://a.example", "https://b.example")


def test_fh6_the_command(tmp_path: Any) -> None:
    """FH6: `workerkit openapi` prints the same; an invalid variable is named."""
    consumers = """
        from workerkit import HTTPView

        class Open(HTTPView):
            routes = ["/open"]

            async def get(self) -> None:
                "Show it."
    """
    package = write_package(tmp_path, consumers=consumers)
    done = workerkit("openapi", package, cwd=tmp_path, WORKERKIT_HTTP__OPENAPI__TITLE="Shop")
    wrong = workerkit("check", package, cwd=tmp_path, WORKERKIT_HTTP__OPENAPI="maybe")

    assert json.loads(done.stdout)["info"]["title"] == "Shop"
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("WORKERKIT_HTTP__OPENAPI is 'maybe': should be a valid boolean")
