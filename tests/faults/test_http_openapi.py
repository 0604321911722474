"""Row H4: valid and invalid requests that are generated from the served OpenAPI document.

None is answered with a 500, and every response is as documented.
"""

import asyncio
import importlib
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from pydantic import BaseModel, Field, SecretStr
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.serving import serving
from workerkit import (
    Bearer,
    Cookie,
    Form,
    Header,
    HTTPView,
    Principal,
    Reject,
    Retry,
    SSESettings,
    UploadFile,
)
from workerkit.testing import override, running, sse_server

TEMPLATE = Path(__file__).parents[2] / "app_template"
EXAMPLES = 25
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
# These checks do not apply: Python accepts some invalid values ("1" is a number in a query), the
# application may refuse a valid value for its own reasons, and a 503 is allowed.
NOT_PROMISED = [
    checks.negative_data_rejection,
    checks.positive_data_acceptance,
    schemathesis.checks.not_a_server_error,
]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    item: Annotated[str, Field(min_length=1, max_length=50)]
    price: Annotated[Decimal, Field(ge=0, le=1_000_000)]
    colour: Colour = Colour.RED


class Order(BaseModel):
    id: int
    lines: list[Line] = []
    due: date | None = None
    labels: dict[str, int] = {}


class Orders(HTTPView):
    """Takes all kinds of values."""

    routes = ["/orders/{order_id}", "/shops/{shop:[a-z]{1,5}}/orders/{order_id}"]
    status = {"post": 201}

    async def get(
        self,
        order_id: int,
        shop: str = "main",
        colours: list[Colour] = [],  # noqa: B006
        limit: Annotated[int, Field(ge=1, le=100)] = 10,
        since: date | None = None,
        key: UUID | None = None,
        kind: Literal["a", "b"] = "a",
        exact: bool = False,
        x_count: Annotated[int, Header] = 0,
        if_match: Annotated[str | None, Header] = None,
        sid: Annotated[str | None, Cookie] = None,
    ) -> list[Order] | None:
        """Return the values."""
        if exact:
            return None
        return [Order(id=order_id, due=since)]

    async def post(self, order_id: int, order: Order) -> Order:
        """Give it back."""
        if order_id < 0:
            raise Reject("negative")
        if order_id > 100:
            raise Retry(after=5)
        return order

    def put(self, order_id: Decimal, lines: list[Line]) -> tuple[list[Line], Literal[202]]:
        """Give them back, from a thread."""
        return lines, 202

    async def delete(self, order_id: str) -> None:
        """Do nothing."""


def fuzz(
    url: str,
    endless: Container[str] = (),
    modes: Sequence[schemathesis.GenerationMode] = MODES,
    not_promised: Sequence[Any] = NOT_PROMISED,
    headers: Mapping[str, str] | None = None,
    document: str = "/openapi.json",
) -> list[str]:
    """Send requests as the document describes them, and others; return a summary of them.

    Args:
        endless: Paths whose responses do not end, which are omitted.
        headers: Of each request.
        document: The path of the document.
    """
    found = requests.get(f"{url}{document}", timeout=60.0).json()
    validate(found)
    schema = schemathesis.openapi.from_dict(found)
    asked: list[str] = []
    with requests.Session() as session:
        for result in schema.get_all_operations():
            assert isinstance(result, Ok)
            if result.ok().path in endless:
                continue
            for mode in modes:
                asked += _ask(result.ok(), mode, url, session, not_promised, headers)
    return asked


def _ask(
    operation: Any,
    mode: schemathesis.GenerationMode,
    url: str,
    session: requests.Session,
    not_promised: Sequence[Any],
    headers: Mapping[str, str] | None,
) -> Iterator[str]:
    @seed(1)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        answer = case.call_and_validate(
            base_url=url,
            session=session,
            headers=headers,
            excluded_checks=list(not_promised),
            timeout=60.0,
        )
        assert answer.status_code not in (500, 504)
        asked.append(f"{operation.method} {operation.path} {answer.status_code}")

    asked: list[str] = []
    # For some parameters there are no invalid values.
    with suppress(Unsatisfiable):
        ask()
    yield from asked


def user_of(token: str) -> str | None:
    """Return the user with a token."""
    return "ada" if token == "token-of-ada" else None


class Upload(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=10)]
    size: int = 0
    colours: list[Colour] = []


class Photos(HTTPView):
    """Takes forms of clients with a token."""

    routes = ["/photos"]
    auth = Bearer(user_of)
    etag = True

    async def get(self, user: Annotated[str, Principal], limit: int = 1) -> list[int]:
        """List them."""
        return list(range(min(max(limit, 0), 10)))

    async def post(
        self,
        title: Annotated[str, Form],
        photo: Annotated[UploadFile, Form],
        rating: Annotated[int | None, Form] = None,
    ) -> int:
        """Add one."""
        return photo.size

    async def put(self, form: Annotated[Upload, Form]) -> Upload:
        """Add one without a file."""
        return form


class Optional(HTTPView):
    """Takes only optional values."""

    routes = ["/optional"]

    async def get(
        self,
        limit: int | None = None,
        kind: Literal["a", "b"] | None = None,
        colour: Colour | None = None,
        colours: list[Colour | None] = [],  # noqa: B006
        many: list[int] | None = None,
        x_count: Annotated[int | None, Header] = None,
        sid: Annotated[int | None, Cookie] = None,
    ) -> None:
        """Take them."""


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return the container of the template's application, with an empty database."""
    monkeypatch.setenv("SHOP_DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.syspath_prepend(str(TEMPLATE))
    yield importlib.import_module("shop.container").Container()
    for name in [each for each in sys.modules if each.partition(".")[0] == "shop"]:
        del sys.modules[name]


async def test_h4_the_template(template: Any) -> None:
    """H4: the application of the template, with its broker."""
    async with sse_server() as stream:
        made = template.settings()
        pointed = made.model_copy(update={"sse": {"shop": SSESettings(url=SecretStr(stream.url))}})
        with override(template, settings=pointed):
            async with running(template, packages=["shop"]) as app:
                asked = await asyncio.to_thread(fuzz, app.http.url, ["/booked"])
                await app.idle()

    assert {each.rpartition(" ")[2] for each in asked} >= {"201", "202", "404", "422"}
    assert len(asked) > 3 * EXAMPLES


async def test_h4_all_kinds_of_values() -> None:
    """H4: a view that takes all kinds of values, and returns all kinds of responses."""
    async with serving(Orders) as client:
        asked = await asyncio.to_thread(fuzz, client.url)

    assert {each.rpartition(" ")[2] for each in asked} >= {"200", "201", "202", "204", "422"}
    assert len(asked) > 10 * EXAMPLES


async def test_h4_forms_and_authentication() -> None:
    """H4: forms of a client with a token; no request without one is accepted."""
    async with serving(Photos) as client:
        headers = {"Authorization": "Bearer token-of-ada"}
        asked = await asyncio.to_thread(fuzz, client.url, headers=headers)

    assert {each.rpartition(" ")[2] for each in asked} >= {"200", "422"}
    assert len(asked) > 3 * EXAMPLES


async def test_fh6_documented_values_are_accepted() -> None:
    """FH6: an optional value is never `null` in the document, so none is refused."""
    async with serving(Optional) as client:
        asked = await asyncio.to_thread(
            fuzz,
            client.url,
            modes=[schemathesis.GenerationMode.POSITIVE],
            not_promised=[checks.negative_data_rejection],
        )

    assert {each.rpartition(" ")[2] for each in asked} == {"204"}
    assert len(asked) >= EXAMPLES
